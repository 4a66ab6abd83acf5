"""A listening node that notes who comes, and links to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.cluster.certificates.contexts import ServerTls, peer_of
from services.cluster.certificates.names import host_of

__all__ = ["REFUSED", "Door", "Link", "asked", "dialled", "opened"]

# What a client meets when the other end breaks the handshake off: with TLS 1.3 it may think by then that it is over.
REFUSED = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)


class Door:
    """A listening node that answers each line by the name of who has sent it."""

    def __init__(self, tls: ServerTls | ssl.SSLContext) -> None:
        self.tls = tls
        self.links: list[str | None] = []
        self.heard = b""
        self.port = 0
        self._open: dict[asyncio.StreamWriter, asyncio.Event] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[writer] = asyncio.Event()
        name = peer_of(writer.transport)
        self.links.append(name)
        try:
            while line := await reader.readline():
                self.heard += line
                writer.write(f"{name}\n".encode())
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()
            self._open.pop(writer).set()

    async def leave(self) -> None:
        for writer, ended in list(self._open.items()):
            writer.transport.abort()
            await ended.wait()


@asynccontextmanager
async def opened(tls: ServerTls | ssl.SSLContext) -> AsyncIterator[Door]:
    door = Door(tls)
    context = tls.context if isinstance(tls, ServerTls) else tls
    server = await asyncio.start_server(door.serve, "127.0.0.1", 0, ssl=context)
    door.port = server.sockets[0].getsockname()[1]
    try:
        yield door
    finally:
        server.close()
        await door.leave()
        await server.wait_closed()


class Link:
    """A link to a door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.transport = writer.transport
        self._reader = reader
        self._writer = writer

    async def ask(self) -> str:
        """As whom the door knows us."""
        self._writer.write(b"who\n")
        return (await self._reader.readuntil(b"\n")).decode().strip()


@asynccontextmanager
async def dialled(
    door: Door, context: ssl.SSLContext, node: str = "n1", host: str | None = None
) -> AsyncIterator[Link]:
    """A link to `door`, where `node` is meant to be."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", door.port, ssl=context, server_hostname=host or host_of(node)
    )
    try:
        yield Link(reader, writer)
    finally:
        writer.transport.abort()


async def asked(door: Door, context: ssl.SSLContext, node: str = "n1", host: str | None = None) -> str:
    """As whom `door` knows the one who dials with `context`."""
    async with dialled(door, context, node, host) as link:
        return await link.ask()
