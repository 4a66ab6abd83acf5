"""A checkpoint: a decoder's shape and its weights by name, whatever the file format.

Names and layout are canonical whatever the file's own: GGUF's names, rows are outputs, and the rows of each query
and key head are in rotary pairs (2i, 2i+1), so that one complex multiplication turns them. Everything that a header
claims is checked against the file's size before it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from formats.checkpoint.architecture import DecoderConfig, expected_shapes
from microkernel.errors import DataLoss, Invalid, NotFound

__all__ = [
    "GROUP",
    "Blocks",
    "Checkpoint",
    "Dense",
    "Stored",
    "Weight",
    "check_tensors",
    "open_checkpoint",
    "pair_rows",
]

GROUP = 32  # weights that share a scale, in all of GGML's 4-bit formats


class Dense(msgspec.Struct, frozen=True):
    """A weight as plain numbers. `bits` is what one weight takes in the file: 8 for Q8_0, 16 for BF16."""

    values: torch.Tensor
    bits: float

    def dequantize(self) -> torch.Tensor:
        """The values as float32."""
        return self.values.float()


class Blocks(msgspec.Struct, frozen=True):
    """A weight in 4 bits: `(quants - 8) * scale + zero`, a scale and a zero for each 32 weights of a row.

    Shapes: quants [rows, columns] uint8 from 0 to 15; scale and zero [rows, columns / 32] float32.
    """

    quants: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor

    def dequantize(self) -> torch.Tensor:
        """The values as float32 [rows, columns]."""
        rows, columns = self.quants.shape
        quants = self.quants.view(rows, columns // GROUP, GROUP).float() - 8.0
        return torch.addcmul(self.zero[..., None], quants, self.scale[..., None]).view(rows, columns)

    def rows(self, order: torch.Tensor) -> Blocks:
        """The same weight with its rows in another order."""
        return Blocks(self.quants[order], self.scale[order], self.zero[order])


Weight = Dense | Blocks


class Stored(msgspec.Struct, frozen=True):
    """A weight as its file has it: GGML's name of the type, and the bytes of each row, uint8 [rows, bytes]."""

    kind: str
    rows: NDArray[np.uint8]

    def floats(self) -> NDArray[np.float32]:
        """The values, [rows, columns]."""
        return np.asarray(dequantize(self.rows, GGMLQuantizationType[self.kind]), dtype=np.float32)


class Checkpoint(Protocol):
    """What the decoder loads from.

    `tokenizer_source` is the Hugging Face folder, or of GGUF's metadata what is about text: `tokenizer.*` and
    `general.sampling.*`.
    """

    path: Path
    config: DecoderConfig

    @property
    def tokenizer_source(self) -> dict[str, Any] | Path:
        """Where the tokenizer and the chat template are."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that canonical name."""
        ...

    def bits(self, name: str) -> float:
        """How many bits one weight of this tensor takes in the file, scales included."""
        ...

    def is_blocks(self, name: str) -> bool:
        """Whether `weight` gives this tensor as 4-bit blocks."""
        ...

    def kind(self, name: str) -> str:
        """GGML's name for the type that this tensor is stored in: Q4_1, BF16."""
        ...

    def stored(self, name: str) -> Stored:
        """One matrix as the file has it, its rows in canonical order. It may be a view of the file."""
        ...

    def weight(self, name: str, dtype: torch.dtype = torch.float32) -> Weight:
        """Read one tensor, always as a copy of its own; a dense one as `dtype`."""
        ...


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a GGUF file, or a folder in the Hugging Face layout (`config.json` and `*.safetensors`).

    Raises `NotFound`, `Invalid` (not a model, or one that this engine does not compute) or `DataLoss` (cut off or
    damaged), each naming the file and what is wrong with it.
    """
    from formats.checkpoint.gguf_checkpoint import GGUFCheckpoint  # noqa: PLC0415 - they build on this module
    from formats.checkpoint.safetensors_checkpoint import SafetensorsCheckpoint  # noqa: PLC0415

    try:
        if path.is_dir():
            return SafetensorsCheckpoint(path)
        return GGUFCheckpoint(path)
    except FileNotFoundError as error:
        raise NotFound(f"{error.filename or path}: no such file") from error
    except OSError as error:
        raise DataLoss(f"{path.name}: cannot be read: {error.strerror or error}") from error


def check_tensors(where: str, config: DecoderConfig, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise `DataLoss` for a tensor that is missing and `Invalid` for one whose shape does not fit the others."""
    for name, expected in expected_shapes(config).items():
        shape = shapes.get(name)
        if shape is None:
            raise DataLoss(f"{where}: tensor {name} is missing", remedy="pull the model again")
        if shape != expected:
            raise Invalid(f"{where}: tensor {name} has the shape {list(shape)}, and {list(expected)} is expected")


def pair_rows(heads: int, head_dim: int) -> torch.Tensor:
    """The row order that puts the halves (i, i + head_dim/2) which a rotation turns side by side; int64 [rows]."""
    return torch.arange(heads * head_dim).view(heads, 2, head_dim // 2).transpose(1, 2).reshape(-1)


def rotated(name: str, config: DecoderConfig) -> torch.Tensor | None:
    """The row order that brings a tensor stored in rotary halves into pairs; None where it is not rotated."""
    part = name.split(".")[-2]
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads, "attn_q_norm": 1, "attn_k_norm": 1}.get(part)
    return None if heads is None else pair_rows(heads, config.head_dim)
