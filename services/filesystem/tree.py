"""The one tree: which volume a path leads into."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from microkernel.errors import Invalid
from services.filesystem.messages import FileKind, Stat
from services.filesystem.paths import ROOT, TreePath, parse
from services.filesystem.volume import Volume, not_there

__all__ = ["Tree"]


class Tree:
    """Volumes by where they are mounted; the folders between them are nobody's, and only lead there."""

    def __init__(self, mounts: Mapping[str, Volume]) -> None:
        """`mounts` by path; none is mounted in another one."""
        self._mounts = {parse(path): volume for path, volume in mounts.items()}

    async def stat(self, text: str) -> Stat:
        """What a path leads to. Raises `NotFound`, and `Invalid` for what is no path."""
        path = parse(text)
        mount = self._mount(path)
        if mount is None:
            return self._between(path)
        if path == mount:
            return self._mounted(mount)
        return await self._mounts[mount].stat(path.below(mount), path)

    async def list(self, text: str) -> list[Stat]:
        """What is in a folder, by name. Raises as `stat`, and `Invalid` for a file."""
        path = parse(text)
        mount = self._mount(path)
        if mount is not None:
            return await self._mounts[mount].list(path.below(mount), path)
        self._between(path)
        depth = len(path.names)
        below = sorted({each.names[depth] for each in self._mounts if each.is_within(path)})
        return [await self.stat(str(path / name)) for name in below]

    def read(self, text: str, start: int, stop: int | None) -> AsyncGenerator[bytes, None]:
        """A file's bytes. Raises as `stat`, and `Invalid` for a folder or a range that is none."""
        path = parse(text)
        if start < 0 or (stop is not None and stop < start):
            raise Invalid(f"from {start} to {stop} is no part of a file", field="start")
        mount = self._mount(path)
        if mount is None:
            self._between(path)
            raise Invalid(f"{path} is a folder", field="path", remedy=f"mk fs ls {path}")
        return self._mounts[mount].read(path.below(mount), path, start, stop)

    def _mount(self, path: TreePath) -> TreePath | None:
        return next((mount for mount in self._mounts if path.is_within(mount)), None)

    def _mounted(self, mount: TreePath) -> Stat:
        return Stat(path=str(mount), kind=FileKind.FOLDER, about=self._mounts[mount].about)

    def _between(self, path: TreePath) -> Stat:
        """A folder that leads to mounts. Raises `NotFound` for one that does not."""
        if path != ROOT and not any(mount.is_within(path) for mount in self._mounts):
            raise not_there(path)
        return Stat(path=str(path), kind=FileKind.FOLDER)
