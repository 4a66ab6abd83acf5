"""The files of a folder in the Hugging Face layout: which there are, and what their headers say.

The format: https://github.com/huggingface/safetensors#format. Headers are read here first, so that a file that was
cut off is named before a library maps it.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec

from microkernel.errors import DataLoss, Invalid

__all__ = ["FLOATS", "FileTensor", "Span", "read_object", "read_spans", "read_tensors"]

FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
"""The types of weights that are computed with, and what each takes in bytes."""

MAX_HEADER = 100 << 20  # the format's own limit
MAX_JSON = 16 << 20


class FileTensor(msgspec.Struct, frozen=True):
    """A tensor in a file: the format's name for its type, and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Span(msgspec.Struct, frozen=True):
    """One tensor in a file: its type, its shape, and its bytes from `start` to `end` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_tensors(folder: Path) -> dict[str, FileTensor]:
    """All tensors of a folder by the files' own names. Raises `DataLoss` for what is missing, cut off or damaged."""
    return {
        name: FileTensor(file, span.dtype, span.shape)
        for file in _shards(folder)
        for name, span in read_spans(file).items()
    }


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises `DataLoss` where it is no JSON, `Invalid` where it is no object."""
    if path.stat().st_size > MAX_JSON:
        raise Invalid(f"{path.name}: larger than {MAX_JSON >> 20} MiB")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataLoss(f"{path.name}: not JSON: {error}", remedy="pull the model again") from error
    if not isinstance(value, dict):
        raise Invalid(f"{path.name}: not a JSON object")
    return value


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise Invalid(f"{index.name}: has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name:
                raise Invalid(f"{index.name}: '{name[:64]}' is not a file name in its own folder")
            if not (folder / name).is_file():
                raise DataLoss(f"{folder.name}: the shard {name} is missing", remedy="pull the model again")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Invalid(f"{folder.name}: no *.safetensors beside config.json")
    return files


def read_spans(path: Path) -> dict[str, Span]:
    """The tensors of a file by name, after a check that it is as long as its header says; raises as `read_tensors`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER
        if length > MAX_HEADER or 8 + length > size:
            raise DataLoss(
                f"{path.name}: the file ends at byte {size}, before its header does: the download is incomplete or it "
                "is no safetensors file",
                remedy="pull the model again",
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise DataLoss(f"{path.name}: the header is not JSON", remedy="pull the model again") from error
    if not isinstance(header, dict):
        raise Invalid(f"{path.name}: the header is not a JSON object")
    tensors: dict[str, Span] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, start, end = _entry(path.name, name, entry)
        if 8 + length + end > size:
            raise DataLoss(
                f"{path.name}: the file ends at byte {size}, tensor {name[:64]!r} needs bytes up to "
                f"{8 + length + end}: the download is incomplete",
                remedy="pull the model again",
            )
        tensors[name] = Span(dtype, shape, 8 + length + start, 8 + length + end)
    return tensors


def _entry(where: str, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if all(
            isinstance(size, int) and size >= 0 for size in shape
        ):
            if 0 <= start <= end and (dtype not in FLOATS or end - start == math.prod(shape) * FLOATS[dtype]):
                return dtype, tuple(shape), start, end
    raise Invalid(f"{where}: the header's entry for tensor {name[:64]!r} makes no sense")
