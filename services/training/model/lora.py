"""Low-rank products beside the matrices of a layer: LoRA, https://arxiv.org/abs/2106.09685.

A matrix `W` [outputs, inputs] acts as `W + alpha / rank * b @ a`, with `a` [rank, inputs] and `b` [outputs, rank]
trained and `W` frozen. As PEFT does, `a` begins uniform in +-1/sqrt(inputs) (Kaiming's with a = sqrt(5)) and `b` zero,
so the model begins as it was. Dropout falls on the input of the product: one draw for all that share an input.
"""

from __future__ import annotations

import hashlib

import torch

from formats.checkpoint.architecture import DecoderConfig, expected_shapes
from services.training.config import MethodConfig
from services.training.model.flat import FlatParameters

__all__ = ["STACKS", "draw_kept", "draw_seed", "fill_start", "low_rank_shapes", "stack_targets"]

STACKS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
"""Matrices of a layer with the same input, computed as one."""


def stack_targets(stack: tuple[str, ...], method: MethodConfig) -> tuple[str, ...]:
    """Those of a stack that have low-rank products beside them."""
    return tuple(part for part in stack if part in method.targets)


def low_rank_shapes(config: DecoderConfig, method: MethodConfig) -> dict[str, tuple[int, ...]]:
    """What is trained, by name: `blk.0.attn_q.weight.lora_a` and `…lora_b`; within a stack all `a` before all `b`."""
    matrices = expected_shapes(config)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(config.layers):
        for stack in STACKS:
            names = [f"blk.{layer}.{part}.weight" for part in stack_targets(stack, method)]
            shapes |= {f"{name}.lora_a": (method.rank, matrices[name][1]) for name in names}
            shapes |= {f"{name}.lora_b": (matrices[name][0], method.rank) for name in names}
    return shapes


def fill_start(flat: FlatParameters, seed: int) -> None:
    """Draw all `a` and set all `b` to zero: a pure function of the layout and the seed."""
    generator = torch.Generator().manual_seed(seed)
    flat.values.zero_()
    for slot in flat.layout.slots:
        if slot.name.endswith(".lora_a"):
            bound = slot.shape[1] ** -0.5
            flat.value(slot.name).copy_(torch.empty(slot.shape).uniform_(-bound, bound, generator=generator))


def draw_seed(seed: int, step: int, shard: int) -> int:
    """What dropout draws from in one shard of one step: the same wherever and whenever it is computed."""
    digest = hashlib.blake2b(f"dropout {seed} {step} {shard}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little")


def draw_kept(x: torch.Tensor, dropout: float, seed: int, place: int) -> torch.Tensor:
    """For each element of `x` 1 / (1 - dropout), or 0 with the probability `dropout`: [n, inputs] in its dtype.

    Drawn from `seed` and the matrix's `place` in the model alone, so that recomputing a layer draws the same.
    """
    generator = torch.Generator(x.device).manual_seed(seed + (place << 48))
    kept = torch.empty_like(x).bernoulli_(1.0 - dropout, generator=generator)
    return kept.div_(1.0 - dropout)
