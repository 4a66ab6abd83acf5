"""Ours: a node with the tree, asked from inside of its process as its services ask it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

from benchmarks.filesystem.place import Place
from microkernel.testing import TestKernel
from services.filesystem.service import Filesystem

__all__ = ["ReachableFilesystem", "TreeNode"]


class ReachableFilesystem(Filesystem):
    """The service, which can be reached from beside its messages."""

    made: ClassVar[list[Filesystem]] = []

    async def start(self) -> None:
        await super().start()
        self.made.append(self)


class TreeNode(Place):
    """A node whose state is on the disk."""

    filesystem = ReachableFilesystem

    async def start(self) -> None:
        """Boot."""
        await super().start()
        self.system = TestKernel(self.filesystem, root=self.folder / "state")
        await self.system.__aenter__()

    async def stop(self) -> None:
        """Shut down."""
        await self.system.__aexit__(None, None, None)
        await super().stop()

    async def write_stream(self, path: str, pieces: AsyncIterator[bytes]) -> None:
        """A file in pieces, durable when this returns."""
        async with self.system.stream("filesystem.write_stream", path=path) as stream:

            async def send() -> None:
                async for piece in pieces:
                    await stream.send(piece)
                await stream.finish()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send())
                await anext(stream)
