"""The test's end of a raw websocket, in both roles: the opening handshake, and octets cut as a case wants them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

from conformance.frames import Frame, FrameReader

__all__ = ["Octets", "RawSocket", "Refused", "accept", "dial"]

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
NONCE = base64.b64encode(bytes(range(16))).decode()
TURNS = 3  # of the loop between two chops: each is read by itself, for the loop polls the sockets once a turn


class Refused(Exception):
    """The server has answered with another status than 101."""

    def __init__(self, status: int, headers: dict[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class Octets(asyncio.Protocol):
    """A connection that keeps what has come before it broke: asyncio's streams drop that, the close frame with it."""

    def __init__(self) -> None:
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._change = asyncio.Event()
        self._over = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are of no class of asyncio's
        self.connected.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._came += data
        self._change.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._over.set()
        self._change.set()

    def write(self, octets: bytes) -> None:
        """Send; nothing happens when the connection is gone."""
        if self._transport is not None and not self._over.is_set():
            self._transport.write(octets)

    async def readexactly(self, size: int) -> bytes:
        """The next octets; raises `EOFError` when the connection has ended before."""
        await self._until(lambda: len(self._came) >= size)
        octets = bytes(self._came[:size])
        del self._came[:size]
        return octets

    async def readuntil(self, separator: bytes) -> bytes:
        """The octets up to the end of the next `separator`."""
        await self._until(lambda: separator in self._came)
        return await self.readexactly(self._came.index(separator) + len(separator))

    async def aclose(self) -> None:
        """End the connection; returns when it has ended."""
        if self._transport is not None:
            self._transport.close()
            await self._over.wait()

    async def _until(self, enough: Callable[[], bool]) -> None:
        while not enough():
            if self._over.is_set():
                raise EOFError
            self._change.clear()
            await self._change.wait()


class RawSocket:
    """One end of an open websocket, which sends any octets and reads strictly."""

    def __init__(self, octets: Octets, *, client: bool, headers: dict[str, str]) -> None:
        """`client` is whether this end is one: then it masks. `headers` are what the other end opened with."""
        self.headers = headers
        self._client = client
        self._octets = octets
        self._frames = FrameReader(octets, masked=not client)

    async def send(self, *frames: Frame) -> None:
        """Send frames in one write."""
        await self.write([self.encoded(frames)])

    def encoded(self, frames: Iterable[Frame]) -> bytes:
        """Frames as this end sends them."""
        return b"".join([frame.encoded(masked=self._client) for frame in frames])

    async def write(self, chops: Sequence[bytes]) -> None:
        """Send octets, each piece by itself. That the other end has gone is found by reading, not here."""
        for chop in chops:
            self._octets.write(chop)
            for _ in range(TURNS if len(chops) > 1 else 0):
                await asyncio.sleep(0)

    async def read(self) -> Frame | None:
        """The next message or control frame; None when the other end has ended the connection."""
        return await self._frames.read()

    async def aclose(self) -> None:
        """End the connection."""
        await self._octets.aclose()


@asynccontextmanager
async def dial(url: str, changes: dict[str, str | None] | None = None) -> AsyncIterator[RawSocket]:
    """A websocket to the server at `url`, with headers of the handshake changed or left out (None) as `changes` says.

    Raises `Refused` when the server opens none.
    """
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    assert parts.hostname is not None
    assert parts.port is not None
    _, octets = await loop.create_connection(Octets, parts.hostname, parts.port)
    request: dict[str, str | None] = {
        "Host": parts.netloc,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": NONCE,
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "mk.v1",
        **(changes or {}),
    }
    try:
        octets.write(_head("GET /mk HTTP/1.1", request))
        status, answer = await _read_head(octets)
        if status.split()[1] != "101":
            raise Refused(int(status.split()[1]), answer)
        assert answer["sec-websocket-accept"] == _accepts(NONCE)
        yield RawSocket(octets, client=True, headers=answer)
    finally:
        await octets.aclose()


async def accept(octets: Octets, changes: dict[str, str | None] | None = None) -> RawSocket:
    """Answer a client's handshake, with headers changed or left out (None) as `changes` says."""
    await octets.connected
    _, asked = await _read_head(octets)
    answer: dict[str, str | None] = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": _accepts(asked["sec-websocket-key"]),
        "Sec-WebSocket-Protocol": "mk.v1",
        **(changes or {}),
    }
    octets.write(_head("HTTP/1.1 101 Switching Protocols", answer))
    return RawSocket(octets, client=False, headers=asked)


def _head(first: str, headers: dict[str, str | None]) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([first, *lines, "", ""]).encode()


async def _read_head(octets: Octets) -> tuple[str, dict[str, str]]:
    first, *lines = (await octets.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    return first, {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _accepts(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()
