"""The header of a GGUF file, read just far enough to know what the model is and that no byte of it is missing.

Follows https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count is held against the file's size before it
is believed, so that a damaged or hostile file costs neither memory nor time.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO, Any

import msgspec
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from microkernel.errors import DataLoss, Invalid

__all__ = ["GgufHeader", "read_gguf_header"]

MAGIC = b"GGUF"
SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
STRING, ARRAY = 8, 9
KEPT = ("general.architecture", "general.license", "general.alignment", "general.type")
DEPTH = 4  # arrays of arrays of … : nobody writes them deeper


class GgufHeader(msgspec.Struct, frozen=True):
    """What a GGUF file says of itself; `end` is the offset behind its last tensor, in bytes. `type` may be adapter."""

    architecture: str | None
    license: str | None
    tensors: int
    end: int
    type: str = "model"


def read_gguf_header(path: Path, *, shown: str) -> GgufHeader:
    """Read and check the header; errors call the file `shown`.

    Raises `Invalid` where it is no GGUF file of a version that we know, `DataLoss` where it is damaged or cut off.
    """
    size = path.stat().st_size
    if size < 24:
        raise Invalid(f"{shown} is no GGUF file: it has only {size} bytes")
    with path.open("rb") as file:  # not mapped: a file that somebody shortens meanwhile would kill us
        magic = file.read(len(MAGIC))
        if magic != MAGIC:
            raise Invalid(f"{shown} is no GGUF file: it starts with {magic!r}")
        header = _Cursor(file, size, shown).header()
    if header.end > size:
        raise DataLoss(f"{shown} was cut off: it ends at byte {size}, its tensors need {header.end}")
    return header


class _Cursor:
    """Reads a file from front to back and never past its end."""

    def __init__(self, file: IO[bytes], size: int, shown: str) -> None:
        self.file, self.size, self.shown, self.at = file, size, shown, len(MAGIC)

    def header(self) -> GgufHeader:
        version = self.scalar("<I")
        if version not in (2, 3):
            swapped = " (it is big-endian)" if version in (2 << 24, 3 << 24) else ""
            raise Invalid(f"{self.shown} is a GGUF file of version {version}{swapped}; versions 2 and 3 are known")
        tensors, fields = (
            self.count(24),
            self.count(13),
        )  # the least that a tensor and a field can take, in bytes
        kept: dict[str, Any] = {}
        for _ in range(fields):
            key = self.string()
            value = self.value(self.scalar("<I"))
            if key in KEPT:
                kept[key] = value
        ends = [self.tensor_end() for _ in range(tensors)]
        alignment = kept.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise DataLoss(f"{self.shown} is damaged: alignment {alignment!r}")
        data = -(-self.at // alignment) * alignment
        return GgufHeader(
            _text(kept.get("general.architecture")),
            _text(kept.get("general.license")),
            tensors,
            data + max(ends, default=0),
            _text(kept.get("general.type")) or "model",
        )

    def tensor_end(self) -> int:
        """Where a tensor ends, in bytes from the start of the data."""
        name = self.string()
        dimensions = [self.scalar("<Q") for _ in range(min(self.scalar("<I"), 9))]
        kind, offset = self.scalar("<I"), self.scalar("<Q")
        if kind not in set(GGMLQuantizationType):
            raise Invalid(f"{self.shown} has a tensor {name[:64]!r} of the unknown type {kind}")
        elements = 1
        for dimension in dimensions:
            elements *= dimension
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        return int(offset + -(-elements // block) * width)

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            if kind not in SCALARS:
                raise self.damaged(f"a field of the unknown type {kind}")
            return self.scalar(SCALARS[kind])
        if depth == DEPTH:
            raise self.damaged("arrays nested too deep")
        inner = self.scalar("<I")
        if inner in SCALARS:
            width = struct.calcsize(SCALARS[inner])
            return self.skip(self.count(width) * width)
        for _ in range(self.count(8)):
            self.value(inner, depth=depth + 1)
        return None

    def string(self) -> str:
        return self.take(self.count(1)).decode("utf-8", errors="replace")

    def count(self, width: int) -> int:
        """A count of things of at least `width` bytes each, which must fit into what is left of the file."""
        number = int(self.scalar("<Q"))
        if number * width > self.size - self.at:
            raise self.damaged(f"{number} entries are said to follow byte {self.at} of {self.size}")
        return number

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def take(self, width: int) -> bytes:
        content = self.file.read(width)
        if len(content) < width:
            raise self.damaged(f"the header goes on past the file's end at byte {self.size}")
        self.at += width
        return content

    def skip(self, width: int) -> None:
        self.file.seek(width, os.SEEK_CUR)
        self.at += width

    def damaged(self, why: str) -> DataLoss:
        return DataLoss(f"{self.shown} is damaged or was cut off: {why}")


def _text(value: Any) -> str | None:
    """A short text for people to read; None for anything else that a stranger may have written there."""
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 200 else None
