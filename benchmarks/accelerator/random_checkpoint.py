"""A checkpoint of a given shape whose weights are made where they are wanted: as fast as trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from formats.checkpoint.architecture import DecoderConfig, expected_shapes
from formats.checkpoint.checkpoint import Dense, Stored

__all__ = ["SHAPES", "RandomCheckpoint"]

DEVIATION = 0.02


def _llama(layers: int, hidden: int, heads: int, kv_heads: int, head: int, ffn: int, words: int) -> DecoderConfig:
    return DecoderConfig(
        architecture="llama",
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head,
        ffn_size=ffn,
        vocab_size=words,
        context_length=8192,
        rope_theta=500_000.0,
        tied_embeddings=True,
        quantization="BF16",
    )


SHAPES = {
    "tiny": _llama(2, 64, 4, 2, 16, 128, 512),
    "135m": _llama(30, 576, 9, 3, 64, 1536, 49_152),  # SmolLM2-135M
    "1b": _llama(16, 2048, 32, 8, 64, 8192, 128_256),  # Llama-3.2-1B
    "8b": _llama(32, 4096, 32, 8, 128, 14_336, 128_256),  # Llama-3.1-8B, but for its second table
}


class RandomCheckpoint:
    """Normal weights on `device`; norms are one."""

    def __init__(self, config: DecoderConfig, device: torch.device) -> None:
        self.path = Path("random")
        self.config = config
        self._device = device
        self._shapes = expected_shapes(config)
        self._draw = torch.Generator(device).manual_seed(1)

    @property
    def tokenizer_source(self) -> dict[str, Any]:
        return {}

    def has(self, name: str) -> bool:
        return name in self._shapes

    def bits(self, name: str) -> float:  # noqa: ARG002 - all are the same
        return 16.0

    def is_blocks(self, name: str) -> bool:  # noqa: ARG002
        return False

    def kind(self, name: str) -> str:  # noqa: ARG002
        return "BF16"

    def stored(self, name: str) -> Stored:
        raise NotImplementedError(name)  # only our CPU kernels ask for bytes

    def weight(self, name: str, dtype: torch.dtype = torch.float32) -> Dense:
        shape = self._shapes[name]
        if len(shape) == 1:
            return Dense(torch.ones(shape, dtype=dtype, device=self._device), 16.0)
        values = torch.empty(shape, dtype=dtype, device=self._device)
        return Dense(values.normal_(0.0, DEVIATION, generator=self._draw), 16.0)
