"""A file's bytes, unpacked where its name ends with `.gz` or `.zst`: streamed, and bounded against bombs.

A file of 10 MB can hold 10 GB of nothing (gzip packs up to 1,032 times, Zstandard more), so what comes out has a limit
that follows what went in. A packed file that ends before its last frame does is damaged, and said to be.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from microkernel.errors import DataLoss, Invalid, NotFound

try:
    import zstandard
except ImportError:
    zstandard = None  # type: ignore[assignment]  # the package is not installed

__all__ = ["PACKED", "Unpacked", "open_unpacked"]

PACKED = (".gz", ".zst")
MOST_TIMES = 200  # texts become 3 to 10 times smaller, logs up to 50 times
ALWAYS_TAKEN = 64 << 20  # bytes that come out of a file however small it is
BUFFER = 1 << 20
ZST_INPUT = 1 << 10  # bytes at once: a block of 128 KiB that repeats a byte takes 4, so 32 MiB come out at most


class Unpacked(io.BufferedReader):
    """The unpacked bytes; `taken` are those of the file itself that were read so far, for telling progress."""

    def __init__(self, raw: io.RawIOBase, file: io.FileIO) -> None:
        super().__init__(raw, BUFFER)
        self._file = file

    @property
    def taken(self) -> int:
        return self._file.tell()


@contextmanager
def open_unpacked(path: Path, name: str) -> Iterator[Unpacked]:
    """The bytes of the file at `path`, which users call `name`; its ending says how it is packed.

    Raises `NotFound` where there is no such file, `Invalid` for a packing that cannot be undone here; reading raises
    `DataLoss` for a damaged file and `Invalid` for one that unpacks to too much.
    """
    try:
        file = io.FileIO(path)
    except OSError as error:
        raise NotFound(f"{name} cannot be read: {error.strerror}") from error
    most = max(ALWAYS_TAKEN, MOST_TIMES * path.stat().st_size)
    with file:
        ending = Path(name).suffix.lower()
        if ending == ".zst" and zstandard is None:
            raise Invalid(f"{name} is packed with Zstandard, which is not installed", remedy="pip install zstandard")
        if ending == ".gz":
            with gzip.GzipFile(fileobj=io.BufferedReader(file, BUFFER)) as archive:
                yield Unpacked(_Source(archive.read1, name, most), file)
        elif ending == ".zst":
            yield Unpacked(_Source(_ZstInput(file).read, name, most), file)
        else:
            yield Unpacked(_Source(file.read, name, None), file)


class _Source(io.RawIOBase):
    """What `read` gives, at most so many bytes at once, and `most` in all."""

    def __init__(self, read: Callable[[int], bytes], name: str, most: int | None) -> None:
        self._read = read
        self._name = name
        self._most = most
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._read(len(buffer))
        except (EOFError, OSError, zlib.error) as error:
            raise DataLoss(f"{self._name} is damaged: {error}", remedy="fetch the file again") from error
        self._given += len(piece)
        if self._most is not None and self._given > self._most:
            raise Invalid(
                f"{self._name} unpacks to more than {MOST_TIMES} times its size", remedy="unpack it, if that is right"
            )
        buffer[: len(piece)] = piece
        return len(piece)


class _ZstInput:
    """Zstandard's frames, one behind the other. The library's own stream takes a file that is cut for one that ends."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = io.BufferedReader(file, BUFFER)
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._rest = b""
        self._out = memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._out:
            packed = self._rest or self._file.read(ZST_INPUT)
            self._rest = b""
            if not packed:
                if self._begun:
                    raise EOFError("it ends within a frame")
                return b""
            self._unpack(packed)
        piece, self._out = self._out[:size], self._out[size:]
        return bytes(piece)

    def _unpack(self, packed: bytes) -> None:
        self._begun = True
        try:
            self._out = memoryview(self._frame.decompress(packed))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        if self._frame.eof:
            self._rest = self._frame.unused_data
            self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._begun = False
