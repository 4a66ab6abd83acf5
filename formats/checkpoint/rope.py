"""Rotary positions (RoPE, https://arxiv.org/abs/2104.09864): one complex factor for each position and pair.

The tables are made once for the whole context; a token's rotation is then one complex multiplication.
"""

from __future__ import annotations

import math

import torch

from formats.checkpoint.architecture import DecoderConfig, RopeScaling

__all__ = ["frequencies", "rotations"]


def rotations(config: DecoderConfig, positions: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
    """The factors that turn pairs at `positions` (int64 [n]): complex64 [n, head_dim / 2].

    `factors` [head_dim / 2] divide the frequencies: Llama 3.1's scaling as GGUF files have it.
    """
    frequency, magnitude = frequencies(config)
    if factors is not None:
        frequency = frequency / factors.double()
    angles = positions.double()[:, None] * frequency
    return torch.polar(torch.full_like(angles, magnitude), angles).to(torch.complex64)


def frequencies(config: DecoderConfig) -> tuple[torch.Tensor, float]:
    """Radians a position for each pair, float64 [head_dim / 2], and the factor that yarn puts on lengths."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequency = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequency, 1.0
    if scaling.kind == "linear":
        return frequency / scaling.factor, 1.0
    original = scaling.original_length or config.context_length
    if scaling.kind == "llama3":
        return _llama3(frequency, scaling, original), 1.0
    magnitude = scaling.attention_factor
    if magnitude is None:
        magnitude = 0.1 * math.log(scaling.factor) + 1.0
    return _yarn(frequency, scaling, original, config), magnitude


def _llama3(frequency: torch.Tensor, scaling: RopeScaling, original: int) -> torch.Tensor:
    """Slow pairs are slowed by the factor, fast ones left alone, those between blended."""
    turns = original * frequency / (2 * math.pi)
    band = max(scaling.high_freq_factor - scaling.low_freq_factor, 1e-9)
    keep = ((turns - scaling.low_freq_factor) / band).clamp(0.0, 1.0)
    return frequency * (keep + (1.0 - keep) / scaling.factor)


def _yarn(frequency: torch.Tensor, scaling: RopeScaling, original: int, config: DecoderConfig) -> torch.Tensor:
    """As section 3.2 of the paper, with its ramp over the pairs' numbers as every implementation has it."""

    def pair(turns: float) -> float:
        return config.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair(scaling.beta_fast)), 0)
    high = min(math.ceil(pair(scaling.beta_slow)), config.head_dim - 1)
    index = torch.arange(config.head_dim // 2, dtype=torch.float64)
    squeeze = ((index - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
    return frequency * (1.0 - squeeze) + frequency / scaling.factor * squeeze
