"""A client of `mk.v1` on a plain socket, cheap enough to have a thousand of them; it can stop reading."""

from __future__ import annotations

import asyncio
import base64
import os
import resource
from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks.messages.idle import masked
from benchmarks.messages.process import split_address

__all__ = ["Messages", "WebSocket", "many_sockets"]

CLOSE, FIRST_OF_LONG, LONG = 0x8, 126, 127  # RFC 6455, section 5.2
PATIENCE = 60.0  # seconds for a handshake: a thousand of them at once take their time

Messages = Callable[[list[dict[str, Any]]], None]
"""Is given the messages of each frame."""


class WebSocket(asyncio.Protocol):
    """One link. It reads whole text frames, which is all that a node sends to who takes no binary ones."""

    def __init__(self, take: Messages) -> None:
        self._take = take
        self._buffer = bytearray()
        self._upgraded = False
        self._transport: asyncio.Transport
        self._welcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.session = ""
        self.closed: tuple[int, str] | None = None  # code and reason, where the node could still tell them
        self.is_open = False
        self.over = asyncio.Event()

    @classmethod
    async def connect(cls, address: str, take: Messages) -> WebSocket:
        """Open a session. Raises ConnectionError and TimeoutError."""
        url, token = split_address(address)
        host, _, port = url.removeprefix("http://").partition(":")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE):
            _, socket = await loop.create_connection(lambda: cls(take), host, int(port))
            key = base64.b64encode(os.urandom(16)).decode()
            socket._transport.write(
                f"GET /mk HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Protocol: mk.v1\r\n\r\n".encode()
            )
            socket.say({"t": "auth", "v": 1, "token": token})
            socket.session = await socket._welcome
        return socket

    def say(self, *messages: dict[str, Any]) -> None:
        """Send the messages in one frame, which has to be shorter than 64 KiB."""
        self._transport.write(masked(msgspec.json.encode(messages if len(messages) > 1 else messages[0])))

    def stop_reading(self) -> None:
        """Leave all that comes in the kernel's buffers."""
        self._transport.pause_reading()

    def read_again(self) -> None:
        """Go on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Break the link off."""
        self._transport.abort()

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands; who is asked for has still to say so."""
        self._transport = transport  # type: ignore[assignment] # a socket's transport is one that writes
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, by a close frame or without one."""
        self.is_open = False
        self.over.set()
        if not self._welcome.done():
            self._welcome.set_exception(exc or ConnectionError(f"the node closed the link: {self.closed}"))

    def data_received(self, data: bytes) -> None:
        """Some bytes."""
        self._buffer += data
        if not self._upgraded:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 101 " not in head[:20]:
                self._welcome.set_exception(ConnectionError(head.decode(errors="replace")))
                self.close()
                return
            self._upgraded, self._buffer = True, rest
        while (frame := self._next_frame()) is not None:
            self._read(*frame)

    def _next_frame(self) -> tuple[int, bytes] | None:
        """Operation and content of a frame that is there as a whole."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1], 2
        if size in {FIRST_OF_LONG, LONG}:
            start = 4 if size == FIRST_OF_LONG else 10
            if len(buffer) < start:
                return None
            size = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + size:
            return None
        operation, content = buffer[0] & 0xF, bytes(buffer[start : start + size])
        del buffer[: start + size]
        return operation, content

    def _read(self, operation: int, content: bytes) -> None:
        if operation == CLOSE:
            self.closed = int.from_bytes(content[:2], "big"), content[2:].decode(errors="replace")
            self._transport.close()
            return
        messages = msgspec.json.decode(content)
        messages = messages if isinstance(messages, list) else [messages]
        for message in messages:
            kind = message["t"]
            if kind == "ping":
                self.say({"t": "pong", "ts": message.get("ts", 0)})
            elif kind == "ready":
                self._welcome.set_result(message["session"])
        self._take(messages)


def many_sockets() -> None:
    """Let this process have as many sockets as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
