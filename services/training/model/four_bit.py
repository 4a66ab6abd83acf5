"""A frozen matrix, plain or in 4 bits: as in QLoRA (https://arxiv.org/abs/2305.14314) it is expanded for each product.

A group of 32 weights of a row shares a scale and a minimum, `quant * scale + minimum`, which is GGML's Q4_1 and holds
Q4_0 as well: 5 bits a weight where both are float16 as in those files, 6 where a number does not fit it. Expanding
goes through one buffer that all matrices of a thread share, so what the model takes is what is packed.
"""

from __future__ import annotations

import threading
from typing import Protocol

import torch

from formats.checkpoint.checkpoint import GROUP, Blocks

__all__ = ["DenseMatrix", "FourBitMatrix", "Matrix", "round_to_blocks"]

SLAB = 1 << 17  # weights expanded at once: what is written is still in the cache when the next operation reads it
HALF = GROUP // 2
LARGEST = 65504.0  # in float16


class Matrix(Protocol):
    """A frozen weight [rows, columns]."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        ...

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The values [rows, columns], valid until the next matrix of this thread is asked for its own."""
        ...


class DenseMatrix:
    """Plain numbers."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self._values.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self._values.nbytes

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The values [rows, columns]."""
        return self._values.to(dtype)


class FourBitMatrix:
    """Two quants in a byte: the low one of byte `i` of a group is weight `i`, the high one weight `i + 16`."""

    def __init__(self, blocks: Blocks, device: torch.device) -> None:
        """Pack `blocks`, whose columns are a multiple of 32."""
        rows, columns = blocks.quants.shape
        pairs = blocks.quants.view(rows, columns // GROUP, 2, HALF)
        self._packed = (pairs[:, :, 0] | pairs[:, :, 1] << 4).to(device)
        minimum = blocks.zero - 8.0 * blocks.scale
        fits = torch.equal(_zero(minimum.half(), blocks.scale.half()), blocks.zero)
        kept = torch.float16 if fits and torch.equal(blocks.scale.half().float(), blocks.scale) else torch.float32
        self._scale, self._minimum = blocks.scale.to(device, kept), minimum.to(device, kept)
        self._shape = rows, columns

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._shape

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self._packed.nbytes + self._scale.nbytes + self._minimum.nbytes

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """The values [rows, columns] as `Blocks.dequantize` gives them, bit for bit; in the shared buffer."""
        rows, columns = self._shape
        groups = columns // GROUP
        quants, values = _buffers(rows * columns, self._packed.device, dtype)
        unpacked, weight = quants.view(rows, groups, 2, HALF), values.view(rows, groups, GROUP)
        step = max(1, SLAB // columns)
        for first in range(0, rows, step):
            slab = slice(first, first + step)
            packed, part = self._packed[slab], unpacked[: min(step, rows - first)]
            torch.bitwise_and(packed, 15, out=part[:, :, 0])
            torch.bitwise_right_shift(packed, 4, out=part[:, :, 1])
            whole = part.view(torch.int8).sub_(8).view(-1, groups, GROUP)
            scale = self._scale[slab].float()
            zero = _zero(self._minimum[slab], scale)
            if dtype is torch.float32:
                into = weight[slab]
                torch.addcmul(zero[..., None], into.copy_(whole), scale[..., None], out=into)
            else:
                weight[slab].copy_(torch.addcmul(zero[..., None], whole.float(), scale[..., None]))
        return values.view(rows, columns)


def round_to_blocks(values: torch.Tensor) -> Blocks:
    """The nearest in 4 bits to `values` [rows, columns], columns a multiple of 32: minimum and range of each group."""
    rows, columns = values.shape
    groups = values.float().view(rows, columns // GROUP, GROUP)
    low = groups.amin(2).clamp(-LARGEST, LARGEST).half().float()
    scale = ((groups.amax(2) - low) / 15.0).clamp(0.0, LARGEST).half().float()
    steps = (groups - low[..., None]) / scale.clamp_min(1e-30)[..., None]
    quants = steps.round_().clamp_(0.0, 15.0).to(torch.uint8).view(rows, columns)
    return Blocks(quants, scale, _zero(low, scale))


def _zero(minimum: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The value of the quant 8, as readers of files compute it."""
    return minimum.float() + 8.0 * scale.float()


_scratch = threading.local()


def _buffers(weights: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Space to expand so many weights in: the quants of one slab, and the values."""
    held: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]]
    held = _scratch.__dict__.setdefault("buffers", {})
    found = held.get((device, dtype))
    if found is None or found[1].numel() < weights:
        quants = torch.empty(weights, dtype=torch.uint8, device=device)
        found = held[device, dtype] = quants, torch.empty(weights, dtype=dtype, device=device)
    return found[0][:weights], found[1][:weights]
