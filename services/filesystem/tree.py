"""The one tree: which volume a path leads into."""

from __future__ import annotations

import errno
from collections.abc import AsyncGenerator, Mapping
from typing import TypeGuard

from microkernel.errors import AlreadyExists, Invalid, NotFound, PreconditionFailed
from services.filesystem.messages import Stat
from services.filesystem.paths import ROOT, TreePath, twin_key
from services.filesystem.posix import posix
from services.filesystem.stored.volume import StoredVolume
from services.filesystem.volume import (
    Version,
    Volume,
    WritableVolume,
    folder_stat,
    no_versions,
    read_only,
)

__all__ = ["Tree"]


class Tree:
    """Volumes by where they are mounted: the nearest one above a path has it."""

    def __init__(self, mounts: Mapping[TreePath, Volume]) -> None:
        """One of `mounts` is at the root."""
        self.mounts = dict(mounts)

    def volume(self, path: TreePath) -> Volume:
        """The volume that has a path."""
        return self.mounts[self._mount(path)]

    def writable(self, path: TreePath) -> WritableVolume:
        """The volume of a path that is to be changed. Raises `PreconditionFailed` for one that cannot be."""
        volume = self.volume(path)
        if not _is_writable(volume):
            raise read_only(path)
        return volume

    def stored(self, path: TreePath) -> StoredVolume:
        """The volume of a path, which keeps versions. Raises `Invalid` for one that does not."""
        volume = self.volume(path)
        if not isinstance(volume, StoredVolume):
            raise no_versions(path)
        return volume

    async def stat(self, path: TreePath, user: str | None, version: Version = None) -> Stat:
        """What a path leads to. Raises `NotFound`."""
        try:
            return await self.volume(path).stat(path, user, version)
        except NotFound:
            if version is None and self._leads_to_mount(path):
                return folder_stat(path)
            raise

    async def list(
        self, path: TreePath, user: str | None, version: Version = None, *, after: str = "", limit: int = 10_000
    ) -> list[Stat]:
        """What is in a folder, by name, also volumes that are mounted in it. Raises `NotFound` and `Invalid`."""
        mounted = self._mounted_in(path) if version is None else set()
        try:
            found = await self.volume(path).list(path, user, version, after=after, limit=limit)
        except NotFound:
            if not mounted:
                raise
            found = []
        if not mounted:
            return found
        found = [each for each in found if _key(each) not in {twin_key(name) for name in mounted}]
        found += [await self.stat(path / name, user) for name in mounted if twin_key(name) > twin_key(after)]
        return sorted(found, key=_key)[:limit]

    def read(
        self, path: TreePath, user: str | None, start: int, stop: int | None, version: Version = None
    ) -> AsyncGenerator[bytes, None]:
        """A file's bytes. Raises as `stat`, and `Invalid` for a folder or a range that is none."""
        if start < 0 or (stop is not None and stop < start):
            raise Invalid(f"from {start} to {stop} is no part of a file", field="start")
        return self.volume(path).read(path, user, start, stop, version)

    async def copy(self, path: TreePath, to: TreePath, user: str | None, version: Version = None) -> Stat:
        """Have a file's content under another path too; into another volume byte by byte."""
        source, target = self.volume(path), self.writable(to)
        if source is target:
            return await target.copy(path, to, user, version)
        return await target.write_stream(to, source.read(path, user, 0, None, version), user)

    async def rename(self, path: TreePath, to: TreePath, user: str | None, *, replace: bool) -> Stat:
        """Another path for what a path leads to; a file may go to another volume: it is copied there, then removed."""
        self.check_free(path)
        source, target = self.writable(path), self.writable(to)
        if source is target:
            return await source.rename(path, to, user, replace=replace)
        found = await source.stat(path, user)
        if found.kind == "folder":
            raise PreconditionFailed(
                f"{path} and {to} are in different volumes, and only files are moved between volumes",
                remedy="copy what is in it, then remove it",
                causes=posix(errno.EXDEV),
            )
        if not replace and await self._is_there(to, user):
            raise AlreadyExists(f"{to} is there already", field="to")
        moved = await self.copy(path, to, user)
        await source.remove(path, user, recursive=False)
        return moved

    def check_free(self, path: TreePath) -> None:
        """Raises `PreconditionFailed` for a path at or above a mounted volume: that has no other place."""
        if path == ROOT or self._leads_to_mount(path):
            raise PreconditionFailed(
                f"a volume is mounted at or below {path}", remedy="mk fs mounts", causes=posix(errno.EBUSY)
            )

    async def _is_there(self, path: TreePath, user: str | None) -> bool:
        try:
            await self.stat(path, user)
        except NotFound:
            return False
        return True

    def _mount(self, path: TreePath) -> TreePath:
        names = path.names
        return next(mount for end in range(len(names), -1, -1) if (mount := TreePath(names[:end])) in self.mounts)

    def _mounted_in(self, path: TreePath) -> set[str]:
        """The names in a folder that lead to mounted volumes."""
        depth = len(path.names)
        return {mount.names[depth] for mount in self.mounts if mount != path and mount.is_within(path)}

    def _leads_to_mount(self, path: TreePath) -> bool:
        return any(mount.is_within(path) for mount in self.mounts if mount != ROOT)


_writable: dict[type[Volume], bool] = {}  # what a class can do: to ask for its methods one by one takes 100 us


def _is_writable(volume: Volume) -> TypeGuard[WritableVolume]:
    kind = type(volume)
    if kind not in _writable:
        _writable[kind] = isinstance(volume, WritableVolume)
    return _writable[kind]


def _key(found: Stat) -> str:
    return twin_key(found.path.rpartition("/")[2])
