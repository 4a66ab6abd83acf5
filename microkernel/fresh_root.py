"""A state folder that is made beside its place, and put there in one step once it is whole. It blocks.

Whatever ends the work before that, the place is as it was: half a folder never has its name. It is locked from its
first moment to its last: what a process that was killed has left is nobody's, and goes with the next one.

A mount point cannot be replaced. There the folder is made within it, and what is in it is moved up; until that is done
a file says so, and no node boots on it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from microkernel import durable
from microkernel.durable import sync_folder
from microkernel.errors import Aborted, PreconditionFailed
from microkernel.root import CUT_OFF, LOCK, Root

__all__ = ["FreshRoot", "check_place"]

MARK, BEFORE = ".restoring-", "before-"  # of names
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
    if not replace and (_things(place) if place.is_mount() else any(place.iterdir())):
        raise PreconditionFailed(
            f"{place} is not empty",
            remedy="choose another folder with --root, or have what is there put aside with --force",
        )


class FreshRoot:
    """A folder beside a place, in the making."""

    def __init__(self, place: Path) -> None:
        """Make it, and clear away those of others that were killed. A place that is a link is the one it leads to."""
        self.place = place.resolve()
        self._within = self.place.is_mount()
        self._home = self.place if self._within else self.place.parent
        self._prefix = MARK if self._within else f"{self.place.name}{MARK}"
        self._home.mkdir(parents=True, exist_ok=True)
        for left in self._home.glob(f"{escape(self._prefix)}*"):
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
            path = self._home / f"{self._prefix}{secrets.token_hex(4)}"
            path.mkdir(mode=0o700)
            handle = _locked(path)  # somebody may have taken it for one that was left
            if handle is not None:
                return path, handle
        raise Aborted(f"folders beside {self.place} are removed as soon as they are made", remedy="do it once more")

    def put_in_place(self, *, replace: bool) -> Path | None:
        """Have it be the folder at the place, all of it on the disk; returns where what was there has gone.

        Raises `PreconditionFailed` where something has come there meanwhile; then nothing has changed.
        """
        (self.path / LOCK).unlink(missing_ok=True)
        _sync(self.path)
        check_place(self.place, replace=replace)
        aside = self._move_up() if self._within else self._replace()
        sync_folder(self._home)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        return aside

    def _replace(self) -> Path | None:
        """Have the folder be the one at the place."""
        aside = None
        if self.place.is_dir() and any(self.place.iterdir()):
            with _held(self.place):
                aside = self.place.with_name(f"{self.place.name}.{_before()}")
                self.place.rename(aside)
        try:
            self.path.rename(self.place)  # an empty folder may be there
        except OSError as error:
            if aside is not None:
                aside.rename(self.place)
            raise PreconditionFailed(f"{self.place} cannot be replaced: {error.strerror}") from error
        return aside

    def _move_up(self) -> Path | None:
        """Have what is in the folder be in the place; it is no state folder as long as that takes."""
        aside = None
        with _held(self.place):
            mark = self.place / CUT_OFF
            if not mark.exists():
                durable.create(mark, b"a restore is under way, or was cut off\n")
            if things := [thing for thing in _things(self.place) if thing != mark]:
                aside = self.place / _before()
                aside.mkdir(mode=0o700)
                for thing in things:
                    thing.rename(aside / thing.name)
            for thing in self.path.iterdir():
                thing.rename(self.place / thing.name)
            self.path.rmdir()
            sync_folder(self.place)
            mark.unlink()
        return aside


@contextmanager
def _held(place: Path) -> Iterator[None]:
    """No node begins on a folder meanwhile."""
    root = Root(place)
    root.acquire(restoring=True)
    try:
        yield
    finally:
        with suppress(OSError):
            root.release()


def _things(place: Path) -> list[Path]:
    """What is in a mount point, but for what is no part of a node: a lock that nobody has, and what was put aside."""
    others = {"lost+found", LOCK}
    return [
        thing for thing in place.iterdir() if thing.name not in others and not thing.name.startswith((MARK, BEFORE))
    ]


def _before() -> str:
    return f"{BEFORE}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


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
        sync_folder(Path(path))


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
