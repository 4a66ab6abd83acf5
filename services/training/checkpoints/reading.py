"""Reads tensors of a checkpoint, from a file or from memory, and compares every piece with its digest as it comes.

What is given was hashed where it lies. A file that is mapped instead could change after it was compared, and one that
is cut off meanwhile would end the process with a signal. Training writes into its tensors anyway: they are copied once,
here.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Callable
from pathlib import Path

import blake3
import torch

from microkernel.errors import DataLoss
from services.training.checkpoints.image import header_of, image_of
from services.training.checkpoints.manifest import PIECE, StoredFile

__all__ = ["read_file", "read_tensors"]

PICKLES = (b"\x80", b"PK\x03\x04")  # how those begin that torch.save and pickle make

Source = Callable[[memoryview, int], int]
"""Reads bytes from a place of the file into memory, and says how many; 0 is the end."""


def read_tensors(file: StoredFile, source: Source) -> dict[str, torch.Tensor]:
    """The tensors of a file, float32 [elements] on the CPU, in one piece of memory.

    Raises `DataLoss` that names the file and the piece that is damaged or missing.
    """
    buffer = torch.empty(file.size, dtype=torch.uint8)
    memory = buffer.numpy().data
    header = header_of(file.tensors)
    for index, digest in enumerate(file.pieces):
        place = index * PIECE
        piece = memory[place : place + PIECE]
        _fill(file.name, piece, source, place)
        if place == 0:
            _check_head(file.name, bytes(piece[: len(header)]), header[: len(piece)])
        if not hmac.compare_digest(blake3.blake3(piece).hexdigest(), digest):
            raise DataLoss(
                f"{file.name} is damaged between the bytes {place} and {place + len(piece)}",
                remedy="check the disk; the checkpoint before it is taken",
            )
    starts = image_of(file.tensors).starts
    return {name: buffer[start : start + 4 * file.tensors[name]].view(torch.float32) for name, start in starts.items()}


def read_file(folder: Path, file: StoredFile) -> dict[str, torch.Tensor]:
    """`read_tensors` of a file in `folder`."""
    try:
        handle = os.open(folder / file.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise DataLoss(f"{file.name} cannot be opened: {error.strerror}") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size:
            raise DataLoss(f"{file.name} has {found.st_size} bytes, and should have {file.size}")
        return read_tensors(file, lambda memory, place: os.preadv(handle, [memory], place))
    finally:
        os.close(handle)


def _fill(name: str, piece: memoryview, source: Source, place: int) -> None:
    done = 0
    while done < len(piece):
        try:
            came = source(piece[done:], place + done)
        except OSError as error:
            raise DataLoss(f"{name} cannot be read at byte {place + done}: {error.strerror}") from error
        if came == 0:
            raise DataLoss(f"{name} ends at byte {place + done}: it is cut off")
        done += came


def _check_head(name: str, found: bytes, header: bytes) -> None:
    if found == header:
        return
    what = "it is a pickle, which is never opened" if found.startswith(PICKLES) else "its header is another"
    raise DataLoss(f"{name} is not the safetensors file that was written: {what}")
