"""The tree of this node, over any link: what is where, and what is in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from microkernel.service import Service, handles, streams
from services.filesystem.live import DeviceFiles, ProcessFiles
from services.filesystem.messages import ListFolder, ReadFile, ShowFile, Stat
from services.filesystem.tree import Tree

__all__ = ["Filesystem"]


class Filesystem(Service):
    """One tree of names: `/proc` and `/dev` are the node as it is now."""

    name = "filesystem"
    uses = ("kernel", "devices", "memory", "scheduler")

    async def start(self) -> None:
        self._tree = Tree({"/proc": ProcessFiles(self), "/dev": DeviceFiles(self)})

    @handles(idempotent=True)
    async def stat(self, message: ShowFile) -> Stat:
        """What a path leads to."""
        return await self._tree.stat(message.path)

    @handles(name="list", idempotent=True)
    async def list_folder(self, message: ListFolder) -> list[Stat]:
        """What is in a folder, by name; users other than root see what they may."""
        return await self._tree.list(message.path)

    @streams
    async def read(self, message: ReadFile) -> AsyncIterator[bytes]:
        """A file's bytes, piece by piece."""
        async with aclosing(self._tree.read(message.path, message.start, message.stop)) as pieces:
            async for piece in pieces:
                yield piece
