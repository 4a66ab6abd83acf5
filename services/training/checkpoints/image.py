"""Files of tensors as they lie in memory: byte for byte what is written (https://github.com/huggingface/safetensors).

A header is padded with spaces to a whole page, which the format allows. So tensors begin on a page, and pieces go to
the disk from where they lie, past the page cache. The header of given tensors is always the same: whoever reads a file
compares it and need not believe it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import msgspec

__all__ = ["FILE_BYTES", "HUGE", "PAGE", "Image", "SlotPlan", "aligned", "header_of", "image_of", "plan"]

PAGE = 4096  # what memory, files and the disk have to be aligned to for each other
HUGE = 2 << 20  # a huge page: slots begin on one
FLOAT = 4  # bytes
FILE_BYTES = 4 << 30
"""Bytes of tensors from which on a further file is begun: one that is copied again after a fault is no larger."""


class Image(msgspec.Struct, frozen=True):
    """One file: it begins at byte `place` of the slot. `starts` are the bytes of the file at which tensors begin."""

    sizes: dict[str, int]
    starts: dict[str, int]
    header: bytes
    place: int
    size: int


class SlotPlan(msgspec.Struct, frozen=True):
    """The files of a checkpoint, one behind the other in `size` bytes."""

    images: tuple[Image, ...]
    size: int


def aligned(size: int, unit: int) -> int:
    """The least multiple of `unit` that is no less than `size`."""
    return -(-size // unit) * unit


def header_of(sizes: Mapping[str, int]) -> bytes:
    """The first bytes of a file with flat float32 tensors of so many elements, in this order: whole pages."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, elements in sizes.items():
        end = place + elements * FLOAT
        entries[name] = {"dtype": "F32", "shape": [elements], "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode("ascii")
    length = aligned(8 + len(text), PAGE) - 8
    return struct.pack("<Q", length) + text.ljust(length)


def plan(sizes: Mapping[str, int], file_bytes: int = FILE_BYTES) -> SlotPlan:
    """Where the tensors of a state are: sorted by name, and a file is full when the next would pass `file_bytes`."""
    groups: list[dict[str, int]] = []
    room = 0
    for name in sorted(sizes):
        needed = sizes[name] * FLOAT
        if not groups or needed > room:
            groups.append({})
            room = file_bytes
        groups[-1][name] = sizes[name]
        room -= needed
    images, place = [], 0
    for group in groups:
        image = image_of(group, place)
        images.append(image)
        place = aligned(place + image.size, PAGE)
    return SlotPlan(tuple(images), aligned(place, HUGE))


def image_of(sizes: Mapping[str, int], place: int = 0) -> Image:
    """The file of these tensors, in this order."""
    header = header_of(sizes)
    starts, size = {}, len(header)
    for name, elements in sizes.items():
        starts[name] = size
        size += elements * FLOAT
    return Image(dict(sizes), starts, header, place, size)
