"""Files that are written once, and of which no damaged byte is read: hot, for every batch.

Whoever writes gets the file's BLAKE3, which names what is in it. A reader maps the file and needs no copy, but to hash
all of it would take a second for each gigabyte before the first step: so each part of 64 KiB has an XXH3 of 64 bits
too, and a part is compared with it when it is first read. A file that is cut is found when it is opened.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import blake3
import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from microkernel.errors import DataLoss, PreconditionFailed

__all__ = ["CheckedFile", "CheckedWriter", "Written", "writing"]

PART = 64 << 10
SUMS = ".sums"
READ_ONLY = 0o400
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Written(msgspec.Struct, frozen=True):
    """What a file has to be: its size in bytes, and the BLAKE3 (hexadecimal) of it and of the sums of its parts."""

    size: int
    digest: str
    sums: str


class CheckedWriter:
    """Writes a file from its beginning to its end, and beside it the sums of its parts."""

    def __init__(self, path: Path) -> None:
        """Raises `PreconditionFailed`, as all else here, where the disk takes no more."""
        self._path = path
        self._digest = blake3.blake3()
        self._sums: list[bytes] = []
        self._part = bytearray()
        self._size = 0
        with writing(path):
            self._handle: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def add(self, piece: bytes | memoryview) -> None:
        """The next bytes."""
        self._part += piece
        while len(self._part) >= PART:
            self._write(bytes(self._part[:PART]))
            del self._part[:PART]

    def finish(self) -> Written:
        """It is whole, and on the disk."""
        if self._part:
            self._write(bytes(self._part))
            self._part.clear()
        assert self._handle is not None
        with writing(self._path):
            os.fchmod(self._handle, READ_ONLY)
            os.fsync(self._handle)
        self.close()
        sums = b"".join(self._sums)
        beside = self._path.with_name(self._path.name + SUMS)
        with writing(beside), beside.open("xb") as file:
            os.fchmod(file.fileno(), READ_ONLY)
            file.write(sums)
            file.flush()
            os.fsync(file.fileno())
        return Written(self._size, self._digest.hexdigest(), blake3.blake3(sums).hexdigest())

    def close(self) -> None:
        """Nothing more is written, whether it is whole or not."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _write(self, part: bytes) -> None:
        assert self._handle is not None
        self._digest.update(part)
        self._sums.append(xxhash.xxh3_64_digest(part))
        self._size += len(part)
        view = memoryview(part)
        with writing(self._path):
            while view:
                view = view[os.write(self._handle, view) :]


class CheckedFile:
    """A file of numbers, mapped: `array` are all of them, and may be read where `check` was called for them."""

    def __init__(self, path: Path, written: Written, dtype: np.dtype[np.generic]) -> None:
        """Raises `DataLoss` where the file, or the sums beside it, are missing, cut or not what was written."""
        self._name = path.name
        self._folder = path.parent
        try:
            beside = path.with_name(path.name + SUMS).read_bytes()
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != written.size:
                    raise self._damaged(f"has {size} bytes, and {written.size} were written")
                mapped: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise self._damaged(f"cannot be read: {error.strerror}") from error
        if blake3.blake3(beside).hexdigest() != written.sums:
            raise self._damaged("has sums beside it that are not those that were written")
        self._bytes = memoryview(mapped)
        self._sums = beside
        self._seen = np.zeros(-(-size // PART), dtype=np.bool_)
        self._width = dtype.itemsize
        self.array: NDArray[np.generic] = np.frombuffer(mapped, dtype=dtype)

    def check(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """The numbers from each of `starts` to its `stops` are what was written. Raises `DataLoss` with the bytes."""
        first, last = starts * self._width // PART, (stops * self._width - 1) // PART
        new = ~(self._seen[first] & self._seen[last]) | (last - first > 1)
        for span in np.flatnonzero(new).tolist():
            for part in range(int(first[span]), int(last[span]) + 1):
                if not self._seen[part]:
                    self._compare(part)

    def check_all(self) -> None:
        """All of it is. Raises `DataLoss` that names the bytes."""
        for part in range(len(self._seen)):
            self._compare(part)

    def _compare(self, part: int) -> None:
        piece = self._bytes[part * PART : (part + 1) * PART]
        if xxhash.xxh3_64_digest(piece) != self._sums[8 * part : 8 * part + 8]:
            raise self._damaged(f"is damaged in bytes {part * PART} to {part * PART + len(piece)}")
        self._seen[part] = True

    def _damaged(self, why: str) -> DataLoss:
        return DataLoss(
            f"the prepared data's file {self._name} {why}",
            remedy=f"remove {self._folder}, and the data are prepared again",
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk says to a write, as `PreconditionFailed`."""
    try:
        yield
    except OSError as error:
        raise PreconditionFailed(
            f"the prepared data cannot be written to {path.parent}: {error.strerror}",
            remedy="free space on its disk" if error.errno in FULL else "check the disk and the folder's rights",
        ) from error
