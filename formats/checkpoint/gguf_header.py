"""The header of a GGUF file: metadata and where each tensor lies, with every claim checked before it is believed.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The library `gguf` reads
headers too, but trusts them (a forged count allocates until memory ends) and takes 1.8 s for a vocabulary of 49,152;
this takes a twentieth of that. The library does what it is good at: the list of types, and dequantising.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import msgspec
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from microkernel.errors import DataLoss, Invalid

__all__ = ["Header", "TensorSpan", "read_header"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ARRAY = 1 << 22  # entries; the largest vocabularies have 2^18 tokens and 2^19 merges
MAX_ENTRIES = 1 << 24  # of all arrays together, each of which takes some ten bytes beside its own
KEPT_ARRAYS = ("tokenizer.", "general.")  # others are read over: only scalars are asked of them
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_ALIGNMENT = 1 << 20
MAX_DEPTH = 3  # arrays of arrays
KEY_BYTES = 13  # the smallest key: its length, its type, one byte of value
TENSOR_BYTES = 24  # the smallest tensor entry: length of its name, count of dimensions, type, offset

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class TensorSpan(msgspec.Struct, frozen=True):
    """One tensor in the file: shape in rows first (numpy's order), bytes from `start` to `end`."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    end: int


class Header(msgspec.Struct, frozen=True):
    """What a GGUF file says about itself."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorSpan]


def read_header(path: Path) -> Header:
    """Read and check a file's header.

    Raises `Invalid` for what is no GGUF file or breaks the format, `DataLoss` for one that is cut off, `OSError`.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < len(MAGIC):
            raise DataLoss(
                f"{path.name}: {size} bytes are no model: the download is incomplete", remedy="pull it again"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(path.name, data, size).header()


class _Cursor:
    """Reads forward through the header; no read goes past the end of the file."""

    def __init__(self, where: str, data: mmap.mmap, size: int) -> None:
        self._where = where
        self._data = data
        self._size = size
        self._at = 0
        self._entries = 0

    def header(self) -> Header:
        if self._take(4, "the magic") != MAGIC:
            raise Invalid(f"{self._where}: not a GGUF file: it does not begin with the letters GGUF")
        version = self._number("I", "the version")
        if version not in VERSIONS:
            order = " (a big-endian file)" if version >> 16 else ""
            raise Invalid(f"{self._where}: GGUF version {version}{order} is not one of {VERSIONS}")
        tensors = self._count(MAX_TENSORS, TENSOR_BYTES, "tensors")
        keys = self._count(MAX_KEYS, KEY_BYTES, "metadata keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string("a metadata key")
            if key in metadata:
                raise Invalid(f"{self._where}: the metadata key '{_short(key)}' comes twice")
            kind = self._number("I", f"the type of '{_short(key)}'")
            if kind == ARRAY and not key.startswith(KEPT_ARRAYS):
                self._skip_array(f"'{_short(key)}'", 0)
                metadata[key] = ()  # whoever asks for a number there is told that it is none
            else:
                metadata[key] = self._value(kind, f"'{_short(key)}'", 0)
        entries = [self._tensor() for _ in range(tensors)]
        return Header(metadata, self._locate(entries, self._alignment(metadata)))

    def _take(self, count: int, what: str) -> bytes:
        start = self._at
        self._skip(count, what)
        return self._data[start : self._at]

    def _skip(self, count: int, what: str) -> None:
        end = self._at + count
        if end > self._size:
            raise DataLoss(
                f"{self._where}: the file ends at byte {self._size}, {what} needs bytes up to {end}: "
                "the download is incomplete or damaged",
                remedy="pull the model again",
            )
        self._at = end

    def _number(self, kind: str, what: str) -> Any:
        return struct.unpack("<" + kind, self._take(struct.calcsize("<" + kind), what))[0]

    def _count(self, limit: int, least: int, what: str) -> int:
        count: int = self._number("Q", f"the count of {what}")
        if count > limit:
            raise Invalid(f"{self._where}: the header claims {count} {what}, and {limit} is the limit")
        if count * least > self._size - self._at:
            raise DataLoss(
                f"{self._where}: the file ends at byte {self._size}, too soon for the {count} {what} that it claims: "
                "the download is incomplete or damaged",
                remedy="pull the model again",
            )
        return count

    def _string(self, what: str) -> str:
        raw = self._take(self._number("Q", f"the length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            # Broken bytes in one of 100,000 tokens are no reason to refuse a model; in a name they will not be found.
            return raw.decode(errors="replace")

    def _value(self, kind: int, what: str, depth: int) -> Any:
        if kind == STRING:
            return self._string(what)
        if kind == ARRAY:
            return self._array(what, depth)
        if kind not in SCALARS:
            raise Invalid(f"{self._where}: metadata {what} has the unknown type {kind}")
        return self._number(SCALARS[kind], what)

    def _array(self, what: str, depth: int) -> list[Any]:
        kind, count, least = self._array_head(what, depth)
        self._entries += count
        if self._entries > MAX_ENTRIES:
            raise Invalid(f"{self._where}: the header's arrays have more than {MAX_ENTRIES} entries, up to {what}")
        if kind in SCALARS:
            return list(struct.unpack(f"<{count}{SCALARS[kind]}", self._take(count * least, what)))
        return [self._value(kind, what, depth + 1) for _ in range(count)]

    def _skip_array(self, what: str, depth: int) -> None:
        """Read over an array without building what is in it."""
        kind, count, least = self._array_head(what, depth)
        if kind in SCALARS:
            self._skip(count * least, what)
            return
        for _ in range(count):
            if kind == ARRAY:
                self._skip_array(what, depth + 1)
            else:
                self._skip(self._number("Q", f"the length of {what}"), what)

    def _array_head(self, what: str, depth: int) -> tuple[int, int, int]:
        """Type and count of an array's items, and the bytes that each takes at least."""
        if depth >= MAX_DEPTH:
            raise Invalid(f"{self._where}: metadata {what} nests arrays deeper than {MAX_DEPTH}")
        kind = self._number("I", f"the item type of {what}")
        scalar = SCALARS.get(kind)
        least = struct.calcsize("<" + scalar) if scalar else 8 if kind == STRING else 12
        if scalar is None and kind not in (STRING, ARRAY):
            raise Invalid(f"{self._where}: metadata {what} has the unknown type {kind}")
        return kind, self._count(MAX_ARRAY, least, f"entries of {what}"), least

    def _tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self._string("a tensor's name")
        short = f"tensor {_short(name)}"
        dimensions = self._number("I", f"the dimensions of {short}")
        if not 1 <= dimensions <= 4:
            raise Invalid(f"{self._where}: {short} has {dimensions} dimensions, and 1 to 4 are possible")
        shape = tuple(self._number("Q", f"the shape of {short}") for _ in range(dimensions))
        kind = self._number("I", f"the type of {short}")
        try:
            known = GGMLQuantizationType(kind)
        except ValueError as error:
            raise Invalid(f"{self._where}: {short} has the unknown type {kind}") from error
        return name, shape[::-1], known, self._number("Q", f"the offset of {short}")

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise Invalid(f"{self._where}: general.alignment is {str(alignment)[:40]!r}, not a power of two")
        return alignment

    def _locate(
        self, entries: list[tuple[str, tuple[int, ...], GGMLQuantizationType, int]], alignment: int
    ) -> dict[str, TensorSpan]:
        origin = -(-self._at // alignment) * alignment
        spans: dict[str, TensorSpan] = {}
        for name, shape, kind, offset in entries:
            short = f"tensor {_short(name)}"
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if name in spans:
                raise Invalid(f"{self._where}: {short} comes twice")
            if shape[-1] % block or 0 in shape:
                raise Invalid(f"{self._where}: {short} has the shape {list(shape)}, which {kind.name} cannot store")
            if offset % alignment:
                raise Invalid(f"{self._where}: {short} lies at offset {offset}, no multiple of {alignment}")
            start = origin + offset
            end = start + math.prod(shape) // block * block_bytes
            if end > self._size:
                raise DataLoss(
                    f"{self._where}: the file ends at byte {self._size}, {short} needs bytes up to {end}: "
                    "the download is incomplete",
                    remedy="pull the model again",
                )
            spans[name] = TensorSpan(name, kind, shape, start, end)
        return spans


def _short(name: str) -> str:
    """A name from the file as an error may show it: one line, and not all of it if it is long."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name[:65])
    return shown if len(shown) <= 64 else shown[:61] + "..."
