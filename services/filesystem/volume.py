"""What a volume is: a tree of its own, mounted into the one of the node."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol, runtime_checkable

from microkernel.errors import Invalid, NotFound, PreconditionFailed
from services.filesystem.messages import FileKind, Stat
from services.filesystem.paths import TreePath
from services.filesystem.posix import posix

__all__ = [
    "CHUNK",
    "Version",
    "Volume",
    "WritableVolume",
    "a_folder",
    "folder_stat",
    "no_versions",
    "not_a_folder",
    "not_there",
    "page_of",
    "part_of",
    "read_only",
]

CHUNK = 256 << 10  # bytes that a reader gets at once

Version = int | str | None
"""A number, or the name of a snapshot; None is now."""


@runtime_checkable
class Volume(Protocol):
    """Paths are those from the root of the whole tree. `user` is on whose behalf; None is root."""

    @property
    def about(self) -> str:
        """What is in it, in a few words."""
        ...

    async def stat(self, path: TreePath, user: str | None, /, version: Version = None) -> Stat:
        """What a path leads to. Raises `NotFound`, also where the user may not see it."""
        ...

    async def list(
        self, path: TreePath, user: str | None, /, version: Version = None, *, after: str = "", limit: int = 10_000
    ) -> list[Stat]:
        """What is in a folder, by name. Raises `NotFound`, and `Invalid` for a file."""
        ...

    def read(
        self, path: TreePath, user: str | None, /, start: int, stop: int | None, version: Version = None
    ) -> AsyncGenerator[bytes, None]:
        """A file's bytes, in pieces of `CHUNK` at the most. Raises `NotFound`, and `Invalid` for a folder."""
        ...

    async def close(self) -> None:
        """Let go of all that it has open."""
        ...


@runtime_checkable
class WritableVolume(Volume, Protocol):
    """A volume whose files can be changed."""

    async def write(self, path: TreePath, content: bytes, user: str | None, if_version: int | None = None) -> Stat:
        """Put a content in place of what a path leads to."""
        ...

    async def write_stream(
        self,
        path: TreePath,
        pieces: AsyncIterator[bytes],
        user: str | None,
        start: int | None = None,
        if_version: int | None = None,
    ) -> Stat:
        """`write` in pieces; with `start` they are put in place of the file's bytes from there on."""
        ...

    async def make_folder(self, path: TreePath, user: str | None, *, exist_ok: bool) -> Stat:
        """Make a folder, and those on the way. Raises `AlreadyExists`."""
        ...

    async def remove(self, path: TreePath, user: str | None, *, recursive: bool) -> None:
        """Remove a file or folder. Raises `NotFound`, and `PreconditionFailed` for a folder that is not empty."""
        ...

    async def rename(self, path: TreePath, to: TreePath, user: str | None, *, replace: bool) -> Stat:
        """Give what a path leads to another one, in the same volume. Raises `NotFound` and `AlreadyExists`."""
        ...

    async def copy(self, path: TreePath, to: TreePath, user: str | None, version: Version = None) -> Stat:
        """Have a file's content under another path of the same volume too. Raises `NotFound`."""
        ...


def not_there(path: TreePath, remedy: str | None = None) -> NotFound:
    """A path that leads nowhere."""
    return NotFound(f"there is no {path}", field="path", remedy=remedy or f"see what is in {path.parent}: mk fs ls")


def not_a_folder(path: TreePath) -> Invalid:
    """A file, where a folder was asked for."""
    return Invalid(f"{path} is a file", field="path", remedy=f"mk fs cat {path}", causes=posix(errno.ENOTDIR))


def a_folder(path: TreePath) -> Invalid:
    """A folder, where a file was asked for."""
    return Invalid(f"{path} is a folder", field="path", remedy=f"mk fs ls {path}", causes=posix(errno.EISDIR))


def read_only(path: TreePath) -> PreconditionFailed:
    """A change, where nothing can be changed."""
    return PreconditionFailed(
        f"{path} cannot be written to", remedy="mk fs mounts shows what can", causes=posix(errno.EROFS)
    )


def no_versions(path: TreePath) -> Invalid:
    """A version, where none are kept."""
    return Invalid(f"no versions are kept of {path}", field="version", remedy="mk fs mounts shows where they are")


def part_of(content: bytes, start: int, stop: int | None) -> list[bytes]:
    """From `start` up to `stop`, in pieces."""
    wanted = memoryview(content)[start:stop]
    return [bytes(wanted[place : place + CHUNK]) for place in range(0, len(wanted), CHUNK)]


def page_of(found: list[Stat], after: str, limit: int) -> list[Stat]:
    """At most `limit` of a folder's names that were found in order, those after the name `after`."""
    names = [each.path.rpartition("/")[2] for each in found]
    first = names.index(after) + 1 if after in names else 0
    return found[first : first + limit]


def folder_stat(path: TreePath, about: str = "") -> Stat:
    """A folder that nobody owns."""
    return Stat(path=str(path), kind=FileKind.FOLDER, about=about)
