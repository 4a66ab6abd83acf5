"""What tests of the tree ask of it, in few words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from microkernel.capability import Rights
from services.filesystem.messages import Stat


class TreeUser:
    """The tree as one user has it; None is root."""

    def __init__(self, system, name: str | None = None) -> None:
        port = system.kernel.port
        self.port = port if name is None else port.narrow(caller=f"session {name}", rights=Rights(), user=name)

    async def ask(self, what: str, path: str, **fields):
        return await self.port.call(f"filesystem.{what}", path=path, **fields)

    async def write(self, path: str, content: bytes = b"", **fields) -> Stat:
        return await self.ask("write", path, content=content, **fields)

    async def write_pieces(self, path: str, pieces: Iterable[bytes], **fields) -> Stat:
        async with self.port.stream("filesystem.write_stream", path=path, **fields) as stream:
            sending = asyncio.create_task(send(stream, pieces))
            try:
                return await anext(stream)
            finally:
                sending.cancel()
                await asyncio.wait([sending])

    async def read(self, path: str, **part) -> bytes:
        return b"".join([piece async for piece in self.port.stream("filesystem.read", path=path, **part)])

    async def names(self, path: str, **fields) -> list[str]:
        return [each.path.rpartition("/")[2] for each in await self.ask("list", path, **fields)]

    def all(self, what: str, **fields) -> AsyncIterator:
        return self.port.stream(f"filesystem.{what}", **fields)

    async def collect(self, what: str, **fields) -> list:
        return [each async for each in self.all(what, **fields)]


async def send(stream, pieces: Iterable[bytes]) -> None:
    """The items of a stream, to its end."""
    for piece in pieces:
        await stream.send(piece)
    await stream.finish()
