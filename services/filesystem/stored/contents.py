"""The bytes of files: large ones as files of their own, each with a checksum for every part (hot: once a part).

A content is named by the BLAKE3 of all of it, and its parts of 256 KiB have an XXH3 of 128 bits each, which costs a
reader 3 % where BLAKE3 would cost it 50: no byte leaves that was not compared. A file is written beside, synced and
renamed before anything refers to it. It blocks: for threads.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import blake3
import msgspec
import xxhash

from microkernel.errors import DataLoss, NotFound, PreconditionFailed
from services.filesystem.posix import posix

__all__ = [
    "PART",
    "Content",
    "ContentFiles",
    "ContentMemory",
    "ContentReader",
    "ContentStore",
    "ContentWriter",
    "digest_of",
]

PART = 256 << 10  # bytes that have a checksum
SUM = 16  # bytes of a checksum
PRIVATE = 0o600
READ_ONLY = 0o400
SHORT = 8 << 10  # bytes that are hashed in less time than it takes to get Python's lock back from another thread
AT_ONCE = 2047  # bytes for which the library keeps the lock
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Content(msgspec.Struct, frozen=True):
    """What is kept of a content: its bytes `inline`, or the name of its `file` with the sums of the parts."""

    digest: bytes
    size: int
    inline: bytes | None = None
    file: str | None = None
    sums: bytes = b""


def digest_of(content: bytes) -> bytes:
    """BLAKE3 of 256 bits."""
    digest = blake3.blake3()
    if len(content) > SHORT:
        return digest.update(content).digest()
    view = memoryview(content)
    for place in range(0, len(content), AT_ONCE):
        digest.update(view[place : place + AT_ONCE])
    return digest.digest()


class Sums:
    """The digest of a content and the sums of its parts, as it grows."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = blake3.blake3()
        self._part = xxhash.xxh3_128()
        self._sums: list[bytes] = []

    def add(self, piece: memoryview) -> None:
        """Take the next bytes in, however many."""
        self._digest.update(piece)
        while piece:
            room = PART - self.size % PART
            self._part.update(piece[:room])
            self.size += len(piece[:room])
            piece = piece[room:]
            if self.size % PART == 0:
                self._next()

    def finish(self, file: str) -> Content:
        """What the content is, now that it is whole."""
        if self.size % PART:
            self._next()
        return Content(self._digest.digest(), self.size, file=file, sums=b"".join(self._sums))

    def _next(self) -> None:
        self._sums.append(self._part.digest())
        self._part.reset()


class ContentWriter(Protocol):
    """One content on its way in."""

    def write(self, pieces: Sequence[bytes]) -> None:
        """Add bytes. Raises `PreconditionFailed` where there is no room."""
        ...

    def sync(self) -> None:
        """Have the disk begin with what is there; another thread may call it while one writes."""
        ...

    def finish(self) -> Content:
        """It is whole, and on the disk."""
        ...

    def abandon(self) -> None:
        """It is not wanted any more, however far it came."""
        ...


class ContentReader(Protocol):
    """One content on its way out; what it reads has been compared with the sums."""

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, both within the content. Raises `DataLoss` that names a damaged part."""
        ...

    def close(self) -> None:
        """Nothing more is read."""
        ...


class ContentStore(Protocol):
    """Where large contents are."""

    def begin(self) -> ContentWriter:
        """A new one."""
        ...

    def open(self, content: Content) -> ContentReader:
        """One that is there. Raises `NotFound`, which a collection may be the reason of."""
        ...

    def remove(self, files: Iterable[str]) -> None:
        """Forget contents that nothing refers to."""
        ...


class ContentFiles:
    """Contents in a folder: `aa/DIGEST-RANDOM`, read-only, and `partial/` for what is being written.

    The random part is what keeps a removal from taking an equal content that has just come in.
    """

    def __init__(self, root: Path, *, synced: bool = True) -> None:
        """Where contents are not `synced`, whoever wrote them has to sync the folder before they count."""
        self._root = root
        self._partial = root / "partial"
        self._synced = synced
        self._turn = threading.Lock()  # of the two below
        self._holders = 0
        self._waiting: list[str] = []  # to be removed when nobody holds them any more

    def open_store(self) -> None:
        """Make the folders, and clear away what was being written when the node died."""
        self._partial.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._partial.iterdir():
            path.unlink()

    def begin(self) -> ContentWriter:
        return _FileWriter(self._root, self._partial / secrets.token_hex(8), synced=self._synced)

    def open(self, content: Content) -> ContentReader:
        assert content.file is not None
        try:
            handle = os.open(self._root / content.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise NotFound(f"the content {content.digest.hex()} is not there") from error
        except OSError as error:
            raise DataLoss(f"{content.file} cannot be read: {error.strerror}", remedy="check the disk") from error
        return _FileReader(handle, content)

    def path_of(self, file: str) -> Path:
        """Where a content is."""
        return self._root / file

    def remove(self, files: Iterable[str]) -> None:
        with self._turn:
            if self._holders:
                self._waiting += files
                return
        for file in files:
            (self._root / file).unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is removed meanwhile goes at the end only: for who reads what the tables were before."""
        with self._turn:
            self._holders += 1
        try:
            yield
        finally:
            with self._turn:
                self._holders -= 1
                waiting = [] if self._holders else self._waiting
                self._waiting = self._waiting if self._holders else []
            self.remove(waiting)

    def older_than(self, seconds: float) -> Iterator[str]:
        """Contents that were written so long ago."""
        before = time.time() - seconds
        for folder in self._root.iterdir():
            if len(folder.name) == 2:
                yield from (f"{folder.name}/{path.name}" for path in folder.iterdir() if path.stat().st_mtime < before)


class _FileWriter:
    def __init__(self, root: Path, path: Path, *, synced: bool) -> None:
        self._root, self._path = root, path
        self._synced = synced
        self._sums = Sums()
        with _room(path):
            self._handle: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)

    def write(self, pieces: Sequence[bytes]) -> None:
        assert self._handle is not None
        for piece in pieces:
            view = memoryview(piece)
            self._sums.add(view)
            with _room(self._path):
                while view:
                    view = view[os.write(self._handle, view) :]

    def sync(self) -> None:
        """Have the disk begin with what is there; from another thread than the one that writes."""
        handle = self._handle
        if handle is not None:
            with _room(self._path):
                os.fdatasync(handle)

    def finish(self) -> Content:
        assert self._handle is not None
        with _room(self._path):
            os.fchmod(self._handle, READ_ONLY)
            if self._synced:
                os.fsync(self._handle)
            self._close()
            content = self._sums.finish("")
            digest = content.digest.hex()
            folder = self._root / digest[:2]
            if not folder.exists():
                folder.mkdir(exist_ok=True, mode=0o700)
                if self._synced:
                    _sync(self._root)
            name = f"{digest}-{self._path.name}"
            self._path = self._path.rename(folder / name)
            if self._synced:
                _sync(folder)
        return msgspec.structs.replace(content, file=f"{folder.name}/{name}")

    def abandon(self) -> None:
        self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


class _FileReader:
    def __init__(self, handle: int, content: Content) -> None:
        self._handle: int | None = handle
        self._content = content

    def read(self, start: int, stop: int) -> bytes:
        assert self._handle is not None
        first = start - start % PART
        end = min(-(-stop // PART) * PART, self._content.size)
        try:
            found = os.pread(self._handle, end - first, first)
        except OSError as error:
            raise damaged(self._content, start, stop) from error
        parts = memoryview(found)
        for place in range(first, end, PART):
            number, part = place // PART, parts[place - first : min(place + PART, end) - first]
            if xxhash.xxh3_128_digest(part) != self._content.sums[number * SUM : (number + 1) * SUM]:
                raise damaged(self._content, place, min(place + PART, end))
        return found[start - first : stop - first]

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        self.close()


class ContentMemory:
    """Contents in memory, for a volume that ends with the node."""

    def __init__(self) -> None:
        self._kept: dict[str, list[bytes]] = {}

    def begin(self) -> ContentWriter:
        return _MemoryWriter(self._kept)

    def open(self, content: Content) -> ContentReader:
        parts = self._kept.get(content.file or "")
        if parts is None:
            raise NotFound(f"the content {content.digest.hex()} is not there")
        return _MemoryReader(parts)

    def remove(self, files: Iterable[str]) -> None:
        for file in files:
            self._kept.pop(file, None)


class _MemoryWriter:
    def __init__(self, kept: dict[str, list[bytes]]) -> None:
        self._kept = kept
        self._file = secrets.token_hex(16)
        self._sums = Sums()
        self._parts: list[bytes] = []
        self._last = bytearray()

    def write(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            self._sums.add(view)
            while view:
                room = PART - len(self._last)
                self._last += view[:room]
                view = view[room:]
                if len(self._last) == PART:
                    self._parts.append(bytes(self._last))
                    self._last.clear()

    def sync(self) -> None:
        """There is no disk."""

    def finish(self) -> Content:
        if self._last:
            self._parts.append(bytes(self._last))
        content = self._sums.finish(self._file)
        self._kept[self._file] = self._parts
        return content

    def abandon(self) -> None:
        self._kept.pop(self._file, None)


class _MemoryReader:
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def read(self, start: int, stop: int) -> bytes:
        return b"".join(
            self._parts[place // PART][max(0, start - place) : stop - place]
            for place in range(start - start % PART, stop, PART)
        )

    def close(self) -> None:
        self._parts = []


def damaged(content: Content, start: int, stop: int) -> DataLoss:
    """A part of a content is not what was written."""
    return DataLoss(
        f"bytes {start} to {stop} of the content {content.digest.hex()} are damaged",
        remedy="mk fs scrub repairs it from a mirror where there is one; mk fs rollback brings an older version back",
    )


@contextmanager
def _room(path: Path) -> Iterator[None]:
    """What the disk says to a write, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise PreconditionFailed(
            f"nothing more can be written to {path.parent}: {error.strerror}",
            remedy="free space on its disk" if error.errno in FULL else "check the disk and the folder's rights",
            may_have_run=False,
            causes=posix(error.errno or errno.EIO),
        ) from error


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
