"""Durable files: written beside their place, synced and renamed; and what is said when the disk has no room."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from microkernel.durable import sync_folder
from microkernel.errors import DataLoss, PreconditionFailed

__all__ = ["PARTIAL", "require_room", "write_durably", "writing"]

PARTIAL = ".partial"
"""The end of a name whose file is not whole yet."""

FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_durably(path: Path, content: bytes) -> None:
    """Make `path` have `content`, as a whole or not at all, also after a power cut; nothing is left where it fails."""
    beside = path.with_name(path.name + PARTIAL)
    try:
        with writing(path.parent, len(content)):
            with beside.open("wb", buffering=0) as file:
                view = memoryview(content)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            beside.replace(path)
            sync_folder(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def require_room(folder: Path, needed: int) -> None:
    """Raise `PreconditionFailed` unless so many bytes are free: a disk is not filled to the brim just to learn it."""
    if needed > shutil.disk_usage(folder).free:
        raise full(folder, needed)


@contextmanager
def writing(folder: Path, needed: int) -> Iterator[None]:
    """Turn what the system says to a failed write in `folder`, where `needed` bytes were to go, into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise full(folder, needed) from error
        if error.errno == errno.EFBIG:
            raise PreconditionFailed(
                f"a file in {folder} may not take {needed / 1e6:.1f} MB",
                remedy="raise the limit on file sizes: ulimit -f",
            ) from error
        if error.errno in FORBIDDEN:
            raise PreconditionFailed(
                f"{folder} cannot be written to: {error.strerror}", remedy="use another folder, or mend its rights"
            ) from error
        raise DataLoss(f"writing in {folder} failed: {error}", remedy="check the disk") from error


def full(folder: Path, needed: int) -> PreconditionFailed:
    """The error for a disk without room."""
    free = shutil.disk_usage(folder).free
    return PreconditionFailed(
        f"disk full: a checkpoint needs {needed / 1e6:.1f} MB more in {folder}, {free / 1e6:.1f} MB are free; those "
        "before it are as they were",
        remedy="free space there, or keep fewer checkpoints",
    )
