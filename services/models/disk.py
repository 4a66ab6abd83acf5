"""Durable files: written beside their place, flushed and renamed; locks between processes; and what is said when the
disk has no room.

The order is the one that survives a power cut: write to a temporary file, fsync it, rename it, fsync the folder.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from microkernel.errors import DataLoss, PreconditionFailed
from services.models.transfer import Transfer

__all__ = [
    "Digested",
    "copy",
    "digest_of",
    "exclusive",
    "flush_folder",
    "full",
    "readable",
    "require_room",
    "write",
    "writing",
]

CHUNK = 1 << 20  # sha256 and the page cache are at full speed from here on, and a cancelled pull ends within 1 ms
LOCK_POLL = 0.1  # seconds; flock has no timeout, and a pull that waits must still hear that it was cancelled
FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class Digested(msgspec.Struct, frozen=True):
    """What was read: sha256 in hex, and how many bytes."""

    digest: str
    bytes: int


def write(path: Path, content: bytes) -> None:
    """Replace `path` by `content` as a whole: a reader sees the old file or the new one, and so does a power cut."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with writing(path.parent, len(content)), beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    flush_folder(path.parent)


def copy(source: IO[bytes], target: Path, transfer: Transfer, *, stage: str, done: int, total: int) -> Digested:
    """Write what `source` gives to `target` and hash it in the same pass; nothing is left of it if that fails.

    `done` of `total` bytes of the whole transfer were there before.
    """
    digest, written = hashlib.sha256(), 0
    missing = max(0, total - done)
    try:
        with writing(target.parent, missing):
            file = target.open("wb", buffering=0)  # unbuffered: a full disk shows at the write, not at the close
        with file:
            while chunk := source.read(CHUNK):
                transfer.check()
                digest.update(chunk)
                with writing(target.parent, missing - written):
                    _write_all(file.fileno(), chunk)
                written += len(chunk)
                transfer.tell(stage, done + written, total)
            with writing(target.parent, 0):
                os.fsync(file.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return Digested(digest.hexdigest(), written)


def digest_of(path: Path, transfer: Transfer, *, stage: str = "checking", done: int = 0, total: int = 0) -> Digested:
    """The sha256 and size of a file."""
    digest, read = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            transfer.check()
            digest.update(chunk)
            read += len(chunk)
            transfer.tell(stage, done + read, total or None)
    return Digested(digest.hexdigest(), read)


def flush_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_room(folder: Path, needed: int, *, reserve: int) -> None:
    """Raise `PreconditionFailed` unless `needed` bytes fit into the free space, with `reserve` bytes left over."""
    if needed + reserve > shutil.disk_usage(folder).free:
        raise full(folder, needed, reserve=reserve)


@contextmanager
def writing(folder: Path, needed: int) -> Iterator[None]:
    """Turn what the system says to a failed write in `folder`, with `needed` bytes to go, into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise full(folder, needed) from error
        if error.errno == errno.EFBIG:
            raise PreconditionFailed(
                f"a file in {folder} may not grow by {readable(needed)} more",
                remedy="raise the limit on file sizes: ulimit -f",
            ) from error
        if error.errno in FORBIDDEN:
            raise PreconditionFailed(
                f"{folder} cannot be written to: {error.strerror}",
                remedy="use another root folder, or mend its rights",
            ) from error
        raise DataLoss(f"writing in {folder} failed: {error}", remedy="check the disk") from error


@contextmanager
def exclusive(path: Path, wait: Callable[[float], None]) -> Iterator[None]:
    """Hold the lock file `path`, alone among all processes and threads; `wait` sleeps between tries and may raise.

    The system frees the lock when its holder dies. A lock file may be deleted by its holder: who waited for the deleted
    one then takes the new one.
    """
    while True:
        with writing(path.parent, 0):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if _try_lock(handle) and _is_at(handle, path):
                yield
                return
        finally:
            os.close(handle)
        wait(LOCK_POLL)


def full(folder: Path, needed: int, *, reserve: int = 0, note: str = "") -> PreconditionFailed:
    """The error for a disk without room for `needed` bytes more in `folder`; 0 where the size is not known."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = readable(shutil.disk_usage(there).free)
    needs = f"needs {readable(needed)} more in {folder}, {free} free" if needed else f"{folder} has {free} free"
    kept = f", of which {readable(reserve)} stay in reserve" if reserve else ""
    return PreconditionFailed(
        f"disk full: {needs}{kept}" + (f"; {note}" if note else ""),
        remedy="free space there, or use a root folder on another disk",
    )


def readable(count: int) -> str:
    """A size as people write it, in decimal units: 98 MB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _write_all(handle: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(handle, view) :]


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
