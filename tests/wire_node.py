"""A real node behind a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from microkernel import Message, Service, current_call, handles, streams
from microkernel.capability import Identity, Rights
from microkernel.errors import NotFound
from microkernel.inputs import Inputs
from microkernel.testing import TestKernel
from microkernel.wire.limits import Limits
from microkernel.wire.server import WireServer
from microkernel.wire.system import System

ALL, SOME = "all-of-it", "some-of-it"


class Add(Message):
    a: int
    b: int


class Sum(Message):
    total: int
    parts: list[int]


class Count(Message):
    to: int
    size: int = 0


class Blob(Message):
    raw: bytes


class Maths(Service):
    """Handlers of every kind; counts what it has begun and ended."""

    name = "maths"

    async def start(self) -> None:
        self.made = 0
        self.closed = 0
        self.cancelled = 0
        self.sent: list[int] = []
        self.waited = 0
        self.hanging = asyncio.Event()
        self.go = asyncio.Event()
        self.changed = asyncio.Condition()

    @handles
    async def add(self, message: Add) -> Sum:
        return Sum(message.a + message.b, [message.a, message.b])

    @handles
    async def echo(self, message: Blob) -> Blob:
        return message

    @handles(concurrency=1000, deadline=None)
    async def hang(self) -> None:
        self.hanging.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
            await self._note()

    @handles
    async def wait(self, message: Add) -> Sum:
        self.waited += 1
        self.hanging.set()
        await self._note()
        await self.go.wait()
        return Sum(message.a + message.b, [])

    @handles(idempotent=True)
    async def wait_again(self, message: Add) -> Sum:
        return await self.wait(message)

    @handles
    async def fail(self) -> None:
        raise NotFound("there is no such thing", remedy="look elsewhere")

    @handles
    async def crash(self) -> None:
        raise ZeroDivisionError("by zero")

    @handles
    async def unsayable(self) -> Any:
        return object()

    @handles
    async def big(self, message: Count) -> str:
        return "x" * message.to

    @handles
    async def who(self) -> dict[str, Any]:
        call = current_call()
        assert call is not None
        return {"caller": call.caller, "user": call.user, "priority": call.priority, "timed": call.deadline is not None}

    @handles
    async def note(self, message: Add) -> None:
        self.sent.append(message.a)
        self.publish("maths.noted", a=message.a)

    @streams
    async def count(self, message: Count) -> AsyncIterator[dict[str, Any]]:
        try:
            for number in range(message.to):
                self.made += 1
                yield {"number": number, "pad": "x" * message.size}
        finally:
            self.closed += 1
            await self._note()

    @streams(credit=8)
    async def add_up(self, message: Count, inputs: Inputs[int]) -> AsyncIterator[int]:
        total = 0
        try:
            if message.to:
                await self.go.wait()
            async for number in inputs:
                self.made += 1
                total += number
                yield total
        finally:
            self.closed += 1
            await self._note()

    @streams
    async def break_off(self) -> AsyncIterator[int]:
        yield 1
        raise NotFound("the second one is gone")

    async def _note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, condition: Any) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)


def break_link(system: System) -> bool:
    """The client's connection is gone, without a word to either end; False if it has none now."""
    pump = system._connection._pump
    connection = None if pump is None else pump._socket._response.connection
    if connection is None or connection.transport is None:
        return False
    connection.transport.abort()
    return True


async def authenticate(token: str) -> Identity | None:
    if token == SOME:
        return Identity("ana", Rights(allow=("maths.*",), deny=("maths.crash", "maths.secret")))
    return Identity("root", Rights()) if token == ALL else None


class Node:
    """What a test holds of a running node."""

    def __init__(self, kernel: TestKernel, maths: Maths, wire: WireServer, url: str) -> None:
        self.kernel = kernel
        self.maths = maths
        self.wire = wire
        self.url = url

    async def leave_and_come_back(self, drain: float = 5.0) -> None:
        """As a node that is booted anew: what runs ends, clients are told, and another one is at its place."""
        leaving = self.wire
        await leaving.close("it is booted anew", after=0.0, drain=drain)
        self.wire = WireServer(self.kernel.kernel.port, authenticate, node="n1", epoch="e2", limits=Limits())


@asynccontextmanager
async def node(*others: type[Service], origins: tuple[str, ...] = (), **limits: Any) -> AsyncIterator[Node]:
    maths = Maths()
    async with TestKernel(maths, *others) as kernel:
        wire = WireServer(
            kernel.kernel.port, authenticate, node="n1", epoch="e1", limits=Limits(**limits), allowed_origins=origins
        )
        kept: list[Node] = []

        async def handle(request: web.Request) -> web.StreamResponse:
            return await kept[0].wire.handle(request)

        app = web.Application()
        app.router.add_get("/mk", handle)
        async with TestServer(app, host="127.0.0.1") as server:
            here = Node(kernel, maths, wire, str(server.make_url("/")))
            kept.append(here)
            yield here
            await here.wire.close(drain=0.0)
