"""Small files that a crash must not lose, synced to the disk, mode 0600. It blocks: for threads, or before the boot."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["append", "create", "replace", "replace_by", "sync_folder"]

PRIVATE = 0o600


def create(path: Path, body: bytes) -> None:
    """Make `path`. Raises `FileExistsError`: of two that make it at once, one does."""
    _write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE), (body,))
    sync_folder(path.parent)


def append(path: Path, body: bytes) -> None:
    """Add to `path`, which is made if it is not there; returns when it is on the disk."""
    is_new = not path.exists()
    _write(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE), (body,))
    if is_new:
        sync_folder(path.parent)


def replace(path: Path, body: bytes) -> None:
    """Put `body` in place of what `path` holds, in one step."""
    replace_by(path, (body,))


def replace_by(path: Path, pieces: Iterable[bytes]) -> None:
    """`replace` for what does not fit into memory."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)  # of a process that was killed
    _write(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE), pieces)
    fresh.replace(path)
    sync_folder(path.parent)


def _write(handle: int, pieces: Iterable[bytes]) -> None:
    with os.fdopen(handle, "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in a folder is on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
