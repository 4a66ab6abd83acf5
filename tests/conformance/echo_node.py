"""A node that gives back what it is sent, behind a real socket, and what a raw client says to it and hears."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer
from conformance.frames import Frame, Opcode
from conformance.raw import RawSocket

from microkernel import Message, Service, handles
from microkernel.capability import Identity, Rights
from microkernel.testing import TestKernel
from microkernel.wire.binary import message_of, pack
from microkernel.wire.body import Bulk
from microkernel.wire.chunks import Assembly
from microkernel.wire.codec import Result
from microkernel.wire.limits import Limits
from microkernel.wire.server import WireServer

__all__ = ["Blob", "Calls", "Conversation", "Echo", "Text", "buffered", "echo_node"]

LARGEST = 2**26  # octets: nothing here is too long for the reader


class Text(Message):
    text: str


class Blob(Message):
    raw: bytes


class Echo(Service):
    """Returns what it is sent."""

    name = "echo"

    @handles
    async def text(self, message: Text) -> Text:
        return message

    @handles
    async def blob(self, message: Blob) -> Blob:
        return message


@asynccontextmanager
async def echo_node(**limits: Any) -> AsyncIterator[str]:
    """The address of a node with the service, and with the limits given."""
    async with TestKernel(Echo) as kernel:
        wire = WireServer(kernel.kernel.port, _admit, node="n1", epoch="e1", limits=Limits(**limits))
        app = web.Application()
        app.router.add_get("/mk", wire.handle)
        async with TestServer(app, host="127.0.0.1") as server:
            yield str(server.make_url("/mk"))
            await wire.close(drain=0.0)


class Calls:
    """What is said to a server: calls whose results are what they were made with."""

    def message(self, content: bytes, number: int, *, binary: bool) -> bytes:
        """A call of the echo service."""
        if binary:
            return buffered(b'{"t":"call","id":%d,"to":"echo.blob","body":{"raw":{"$buffer":0}}}' % number, content)
        return b'{"t":"call","id":%d,"to":"echo.text","body":{"text":"%b"}}' % (number, content)


class Conversation:
    """A client's session with the node: what comes back, as contents by number and frames that are not messages."""

    def __init__(self, socket: RawSocket) -> None:
        self.socket = socket
        self._ready: list[tuple[int, bytes]] = []
        self._assembly = Assembly(text=LARGEST, limit=LARGEST)

    async def open(self) -> None:
        """Shake hands."""
        await self.socket.send(Frame(Opcode.TEXT, b'{"t":"auth","v":1,"token":"t","binary":%d}' % LARGEST))
        heard: list[str] = []
        while "ready" not in heard:
            frame = await self.socket.read()
            assert frame is not None
            heard += [message["t"] for message in _messages(frame.payload)]

    async def next(self) -> tuple[int, bytes] | Frame | None:
        """The next content with the number it was sent under, or the next control frame; None at the end."""
        while not self._ready:
            frame = await self.socket.read()
            if frame is None or frame.opcode >= Opcode.CLOSE:
                return frame
            self._ready += self._texts(frame) if frame.opcode == Opcode.TEXT else self._blob(frame)
        return self._ready.pop(0)

    def _texts(self, frame: Frame) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        for message in _messages(frame.payload):
            assert message["t"] == "result", message
            body = message["body"]
            raw = body["text"].encode() if "text" in body else msgspec.convert(body["raw"], bytes)
            found.append((message["id"], raw))
        return found

    def _blob(self, frame: Frame) -> list[tuple[int, bytes]]:
        whole, _ = self._assembly.received(frame.payload)
        if whole is None:
            return []
        message = message_of(whole, text=LARGEST, limit=LARGEST)
        assert isinstance(message, Result)
        assert isinstance(message.body, Bulk)
        return [(message.id, bytes(message.body.buffers[0]))]


def buffered(json: bytes, content: bytes) -> bytes:
    """A binary frame of `mk.v1` with one buffer."""
    return pack(json, [memoryview(content)]).joined()


def _messages(payload: bytes) -> list[dict[str, Any]]:
    decoded = msgspec.json.decode(payload)
    return decoded if isinstance(decoded, list) else [decoded]


async def _admit(token: str) -> Identity:
    return Identity("root", Rights())
