"""A state folder that is made beside its place, and put there in one step once it is whole. It blocks.

Whatever ends the work before that, the place is as it was: half a folder never has its name. It is locked from its
first moment to its last: what a process that was killed has left is nobody's, and goes with the next one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from contextlib import suppress
from glob import escape
from pathlib import Path

from microkernel.errors import Aborted, PreconditionFailed
from microkernel.root import Root

__all__ = ["FreshRoot", "check_place"]

MARK = ".restoring-"
TRIES = 5


def check_place(place: Path, *, replace: bool) -> None:
    """Raises `PreconditionFailed` where no state folder can be put: a node runs there, or something is there already.

    With `replace` only the former: what is there is to be put aside.
    """
    place = place.resolve()
    if Root(place).is_taken():
        raise PreconditionFailed(
            f"a node runs on the state folder {place}", remedy="stop it, or choose another folder with --root"
        )
    if not os.path.lexists(place):
        return
    if not place.is_dir():
        raise PreconditionFailed(f"{place} is a file", remedy="choose another place with --root")
    if place.is_mount():
        raise PreconditionFailed(
            f"{place} is a file system of its own, in whose place nothing can be put",
            remedy=f"choose a folder in it: --root {place / 'node'}",
        )
    if not replace and any(place.iterdir()):
        raise PreconditionFailed(
            f"{place} is not empty",
            remedy="choose another folder with --root, or have what is there put aside with --force",
        )


class FreshRoot:
    """A folder beside a place, in the making."""

    def __init__(self, place: Path) -> None:
        """Make it, and clear away those of others that were killed. A place that is a link is the one it leads to."""
        self.place = place.resolve()
        self.place.parent.mkdir(parents=True, exist_ok=True)
        for left in self.place.parent.glob(f"{escape(self.place.name)}{MARK}*"):
            handle = _locked(left)
            if handle is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(handle)
        self.path, self._handle = self._make()

    def discard(self) -> None:
        """It is not wanted, or has been put in its place."""
        handle, self._handle = self._handle, None
        if handle is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(handle)

    def _make(self) -> tuple[Path, int | None]:
        for _ in range(TRIES):
            path = self.place.with_name(f"{self.place.name}{MARK}{secrets.token_hex(4)}")
            path.mkdir(mode=0o700)
            handle = _locked(path)  # somebody may have taken it for one that was left
            if handle is not None:
                return path, handle
        raise Aborted(f"folders beside {self.place} are removed as soon as they are made", remedy="do it once more")

    def put_in_place(self, *, replace: bool) -> Path | None:
        """Have it be the folder at the place, all of it on the disk; returns where what was there has gone.

        Raises `PreconditionFailed` where something has come there meanwhile; then nothing has changed.
        """
        (self.path / "lock").unlink(missing_ok=True)
        _sync(self.path)
        aside = None
        check_place(self.place, replace=replace)
        if self.place.is_dir() and any(self.place.iterdir()):
            aside = self._put_aside()
        try:
            self.path.rename(self.place)  # an empty folder may be there
        except OSError as error:
            if aside is not None:
                aside.rename(self.place)
            raise PreconditionFailed(f"{self.place} cannot be replaced: {error.strerror}") from error
        _sync_folder(self.place.parent)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        return aside

    def _put_aside(self) -> Path:
        """Another name for what is at the place, while no node can begin there."""
        old = Root(self.place)
        old.acquire()
        try:
            when = time.strftime("%Y%m%d-%H%M%S")
            aside = self.place.with_name(f"{self.place.name}.before-{when}-{secrets.token_hex(2)}")
            self.place.rename(aside)
        finally:
            with suppress(OSError):
                old.release()
        return aside


def _locked(folder: Path) -> int | None:
    """A handle with which a folder is this process's alone; None where it is another one's, or is gone."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _sync(folder: Path) -> None:
    """Have all that is in a folder on the disk, from the leaves on."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            file = Path(path, name)
            if not file.is_symlink():
                _sync_file(file)
        _sync_folder(Path(path))


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
