"""Thousands of websockets that are open and say nothing, on plain sockets; and what each costs the server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource

from benchmarks.messages.line import Running
from benchmarks.messages.process import Broken, split_address

__all__ = ["IdleAiohttp", "IdleNode", "idle_memory"]

MANY, FEW = 5000, 200
AT_ONCE = 50  # that shake hands at a time


def idle_memory(running: Running, is_quick: bool) -> dict[str, float]:
    """Bytes of the server for each client: resident with all of them, less what it was before, by their number."""
    count = FEW if is_quick else MANY
    client, server = running.client, running.server
    assert server is not None
    client.ask("open", count=10)  # what is made at the first ones is not theirs
    before = server.ask("memory")
    client.ask("open", count=count)
    after = server.ask("memory")
    still_open = client.ask("alive")
    if still_open < count:
        raise Broken(f"only {still_open} of {count} clients are still connected")
    return {"memory": (after - before) / count}


class _Idle:
    """Clients of one server."""

    path: str
    headers: str = ""
    greeting: bytes = b""
    welcome: bytes

    def __init__(self, address: str) -> None:
        url, self._token = split_address(address)
        host, _, port = url.removeprefix("http://").partition(":")
        self._host, self._port = host, int(port)
        self._clients: list[_Client] = []

    async def start(self) -> None:
        """Let this process have as many sockets as it may."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    async def stop(self) -> None:
        """Close all."""
        for client in self._clients:
            client.close()

    async def open(self, count: int) -> None:
        """So many more, each past its handshake when this returns."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with gate, asyncio.timeout(30):
                self._clients.append(await self._connect())

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())

    async def alive(self) -> int:
        """How many are still connected."""
        return sum(client.is_open for client in self._clients)

    async def _connect(self) -> _Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: _Client(self.welcome), self._host, self._port)
        key = base64.b64encode(os.urandom(16)).decode()
        client.write(
            f"GET {self.path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{self.headers}\r\n".encode()
        )
        await client.upgraded
        client.write(masked(self.first_message()))
        await client.welcomed
        return client

    def first_message(self) -> bytes:
        raise NotImplementedError


class IdleNode(_Idle):
    """Sessions of `mk.v1`, each let in by its token; pings are answered."""

    path = "/mk"
    headers = "Sec-WebSocket-Protocol: mk.v1\r\n"
    welcome = b'"t":"ready"'

    def first_message(self) -> bytes:
        """Who we are."""
        return json.dumps({"t": "auth", "v": 1, "token": self._token}).encode()


class IdleAiohttp(_Idle):
    """Websockets of which each has had one message sent back."""

    path = "/echo"
    welcome = b"hello"

    def first_message(self) -> bytes:
        """What comes back."""
        return b"hello"


class _Client(asyncio.Protocol):
    """One websocket: as much of RFC 6455 as it takes to be silent on it."""

    def __init__(self, welcome: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.upgraded: asyncio.Future[None] = loop.create_future()
        self.welcomed: asyncio.Future[None] = loop.create_future()
        self.is_open = False
        self._welcome = welcome
        self._seen = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # a socket's transport is one that writes
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if b'"t":"ping"' in data:
            self.write(masked(b'{"t":"pong"}'))
        if self.welcomed.done():
            return
        self._seen += data
        if not self.upgraded.done() and b"\r\n\r\n" in self._seen:
            if b" 101 " in self._seen[:20]:
                self.upgraded.set_result(None)
            else:
                self.upgraded.set_exception(ConnectionError(self._seen.decode(errors="replace")))
        if self._welcome in self._seen:
            self.welcomed.set_result(None)
            self._seen = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        for future in (self.upgraded, self.welcomed):
            if not future.done():
                future.set_exception(exc or ConnectionError("the server closed the connection"))

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def close(self) -> None:
        self._transport.abort()


def masked(text: bytes) -> bytes:
    """`text` of at most 65,535 bytes as a masked text frame (RFC 6455 §5.2); the mask is zero, which is one too."""
    length = len(text)
    head = bytes([0x81, 0x80 | length]) if length < 126 else bytes([0x81, 0xFE]) + length.to_bytes(2, "big")
    return head + b"\0\0\0\0" + text
