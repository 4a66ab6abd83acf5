"""Matrix products with the decoder's weights; hot: several times a layer, every step.

4-bit weights stay 4 bits in memory. Measured on two Zen 5 cores with 960 x 576 weights, microseconds for 1, 8, 64 and
512 rows: torch's int4 kernel 10, 29, 214, 1665; bfloat16 31, 36, 114, 608; float32 29, 88, 379, 2779. So few rows use
the int4 kernel, and many expand the weight (181 us) into a buffer that all layers share. The vocabulary projection of
an 8-bit file stays 8 bits: 830 us for one row against 1794 in bfloat16. (torch's *dynamic* int8 linear, which
also rounds the activations, agrees with the true model on half of the tokens: never use it.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import torch
from torch.nn import functional

from formats.checkpoint.checkpoint import GROUP, Blocks, Dense, Weight

__all__ = [
    "INT4_BYTES",
    "INT8_BYTES",
    "DenseLinear",
    "Int4Linear",
    "Int8Linear",
    "Linear",
    "int4_fits",
    "int8_fits",
    "make_linear",
]

INT4_BYTES = 0.5 + 4 / GROUP  # a weight, with its share of the scale and zero in bfloat16
INT8_BYTES = 2 * INT4_BYTES
EXPAND_ROWS = 112  # from here on, expanding the weight costs less than the int4 kernel's rows
TILE = 64  # outputs that the packed format keeps together where the kernel has AVX512
EXPAND_WEIGHTS = 1 << 22  # weights expanded at once: 8 MiB of bfloat16, shared by all layers


# torch calls its weight-only kernels by no public name.
_int4_pack: Callable[[torch.Tensor, int], torch.Tensor] = torch.ops.aten._convert_weight_to_int4pack_for_cpu  # noqa: SLF001
_int4_product: Callable[..., torch.Tensor] = torch.ops.aten._weight_int4pack_mm_for_cpu  # noqa: SLF001


class Linear(Protocol):
    """`x @ weight.T + bias`."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """From [n, columns] to [n, rows], in the dtype of `x`."""
        ...

    @property
    def nbytes(self) -> int:
        """What the weight takes in memory."""
        ...


class DenseLinear:
    """A weight as plain numbers."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """From [n, columns] to [n, rows]."""
        return functional.linear(x, self.weight, self._bias)

    @property
    def nbytes(self) -> int:
        """What the weight takes in memory."""
        return self.weight.nbytes


class Int8Linear:
    """A weight in 8 bits with a scale for each 32 of a row, as Q8_0 has it; bfloat16 in and out, CPU only.

    It runs on the int4 kernel: w = scale * (16 * high + low), so the two nibbles are two 4-bit weights side by side,
    and x comes twice. Nothing of Q8_0 is lost but scales rounded to bfloat16. torch's int8 kernel would take two
    thirds of the time, but has one scale for a whole row: twice the divergence from the true model (0.0018 nats on
    SmolLM2 against 0.0009), and one in a hundred likeliest tokens more that differ.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        """Round `weight` [rows, columns], any float dtype; see `int8_fits` for the shapes that can be."""
        rows, self._columns = weight.shape
        groups = self._columns // GROUP
        step = max(1, EXPAND_WEIGHTS // self._columns // TILE) * TILE
        packed, scales = [], torch.empty(2 * groups, rows, 2, dtype=torch.bfloat16)
        for first in range(0, rows, step):
            part = weight[first : first + step].float().view(-1, groups, GROUP)
            # Where the weight is Q8_0's, the largest of a group is 127 scales, and this finds them again.
            scale = part.abs().amax(2).clamp_min(1e-30) / 127
            quants = torch.round(part / scale[..., None]).clamp_(-127, 127).int().view(-1, self._columns) + 128
            packed.append(_int4_pack(torch.cat((quants >> 4, quants & 15), 1), 1))
            scale = scale.t().bfloat16()
            zero = torch.zeros_like(scale)
            scales[:groups, first : first + step] = torch.stack((16 * scale, zero), -1)
            scales[groups:, first : first + step] = torch.stack((scale, 8 * scale), -1)
        self._packed = torch.cat(packed)
        self._scales = scales

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """From [n, columns] to [n, rows]."""
        return _int4_product(torch.cat((x, x), -1), self._packed, GROUP, self._scales)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The rows of `tokens` (int64 [n]), bfloat16 [n, columns]: the same table serves as embedding."""
        tile, lane = tokens // TILE, tokens % TILE
        both = self._packed.view(-1, 2 * self._columns, TILE // 2)[tile, :, lane % (TILE // 2)]
        nibbles = (both >> (lane // (TILE // 2) * 4).to(torch.uint8)[:, None]) & 15
        quants = nibbles[:, : self._columns].float() * 16 + nibbles[:, self._columns :] - 128
        scale = self._scales[self._columns // GROUP :, tokens, 0].t().float()
        return (quants.view(len(tokens), -1, GROUP) * scale[..., None]).view(len(tokens), -1).bfloat16()

    @property
    def nbytes(self) -> int:
        """What the weight takes in memory."""
        return int(self._packed.nbytes + self._scales.nbytes)


class Int4Linear:
    """A weight in 4-bit blocks; bfloat16 in and out, CPU only."""

    def __init__(self, blocks: Blocks, bias: torch.Tensor | None = None) -> None:
        """Pack `blocks`; see `int4_fits` for the shapes that can be."""
        self._rows, self._columns = blocks.quants.shape
        self._packed = _int4_pack(blocks.quants.int(), 1)
        # [columns / 32, rows, 2]: scale and zero of each group of a row
        self._scales = torch.stack((blocks.scale.t(), blocks.zero.t()), -1).bfloat16().contiguous()
        self._bias = bias
        self._expands = self._rows % TILE == 0 and _packs_tiles()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """From [n, columns] to [n, rows]."""
        if x.shape[0] >= EXPAND_ROWS and self._expands:
            y = self._expanded(x)
        else:
            y = _int4_product(x, self._packed, GROUP, self._scales)
        return y if self._bias is None else y.add_(self._bias)

    def _expanded(self, x: torch.Tensor) -> torch.Tensor:
        step = max(1, EXPAND_WEIGHTS // self._columns // TILE) * TILE
        if step >= self._rows:
            return x @ self._expand(0, self._rows)
        y = x.new_empty(x.shape[0], self._rows)
        for first in range(0, self._rows, step):
            last = min(first + step, self._rows)
            y[:, first:last] = x @ self._expand(first, last)
        return y

    def _expand(self, first: int, last: int) -> torch.Tensor:
        """Outputs `first` to `last` of the weight, transposed: bfloat16 [columns, outputs], in the shared buffer."""
        outputs = last - first
        tiles = self._packed.view(-1, self._columns, TILE // 2)[first // TILE : last // TILE].transpose(0, 1)
        quants, weight = _buffers(self._columns * outputs)
        unpacked = quants.view(self._columns, outputs // TILE, TILE)
        torch.bitwise_and(tiles, 15, out=unpacked[..., : TILE // 2])
        torch.bitwise_right_shift(tiles, 4, out=unpacked[..., TILE // 2 :])
        grouped = weight.view(self._columns // GROUP, GROUP, outputs)
        # 8 is taken off while the quants are whole numbers: q * scale + minimum would round away half a step.
        grouped.copy_(quants.view(torch.int8).sub_(8).view_as(grouped))
        scales = self._scales[:, None, first:last]
        torch.addcmul(scales[..., 1], grouped, scales[..., 0], out=grouped)
        return weight.view(self._columns, outputs)

    @property
    def nbytes(self) -> int:
        """What the weight takes in memory."""
        return int(self._packed.nbytes + self._scales.nbytes)


def make_linear(
    weights: Sequence[Weight], device: torch.device, dtype: torch.dtype, biases: Sequence[torch.Tensor] = ()
) -> Linear:
    """One product for `weights` stacked by rows: queries, keys and values together, or gate and up.

    They stay 4 bits where all are blocks and the device has the kernel, and become `dtype` otherwise.
    """
    bias = torch.cat(list(biases)).to(device, dtype) if biases else None
    blocks = [weight for weight in weights if isinstance(weight, Blocks)]
    if len(blocks) == len(weights) and int4_fits(sum(b.quants.shape[0] for b in blocks), device, dtype):
        joined = Blocks(
            torch.cat([b.quants for b in blocks]),
            torch.cat([b.scale for b in blocks]),
            torch.cat([b.zero for b in blocks]),
        )
        return Int4Linear(joined, bias)
    dense = [w.values if isinstance(w, Dense) else w.dequantize() for w in weights]
    return DenseLinear(torch.cat([values.to(device, dtype) for values in dense]), bias)


def int4_fits(rows: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's int4 kernel takes a weight of so many rows on `device`; without AVX2 it is slower than dense."""
    fast = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return device.type == "cpu" and dtype is torch.bfloat16 and rows % 16 == 0 and fast


def int8_fits(rows: int, bits: float, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a vocabulary of so many rows, stored in so many bits each, loses nothing in 8 and `device` can do it."""
    return bits < 10 and rows % TILE == 0 and int4_fits(rows, device, dtype) and _packs_tiles()


@cache
def _packs_tiles() -> bool:
    """Whether the packed format is the one that `_expand` undoes: by packing, as it is torch's own affair."""
    quants = torch.arange(2 * TILE * GROUP, dtype=torch.int32).mul_(7).remainder_(16).view(2 * TILE, GROUP)
    quants = (quants + torch.arange(2 * TILE, dtype=torch.int32)[:, None] // 3).remainder_(16)
    packed = _int4_pack(quants, 1)
    tiles = packed.view(2, GROUP, TILE // 2)
    unpacked = torch.cat((tiles & 15, tiles >> 4), -1).transpose(1, 2).reshape(2 * TILE, GROUP)
    return torch.equal(unpacked.int(), quants)


_scratch = threading.local()


def _buffers(weights: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Space to expand so many weights in, uint8 and bfloat16: one for all layers of a thread, which run in turn."""
    held: tuple[torch.Tensor, torch.Tensor] | None = getattr(_scratch, "buffers", None)
    if held is None or held[0].numel() < weights:
        with torch.inference_mode(mode=False):  # a tensor made in inference mode could not be written outside of it
            held = torch.empty(weights, dtype=torch.uint8), torch.empty(weights, dtype=torch.bfloat16)
        _scratch.buffers = held
    return held[0][:weights], held[1][:weights]
