"""A service that any node answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from microkernel import Message, Service, handles, streams
from microkernel.service import Placement


class Ask(Message):
    text: str = ""
    start: int = 0
    stop: int = 0
    model: str | None = None


class Continued:
    """A count that goes on after the last number that came."""

    def __init__(self, message: Ask) -> None:
        self._message = message
        self._next = message.start

    def take(self, item: int) -> int:
        self._next = item + 1
        return item

    def message(self) -> Ask | None:
        return None if self._next >= self._message.stop else Ask(start=self._next, stop=self._message.stop)


class Answers(Service):
    """Answers on any node; counts what it was asked."""

    name = "answers"
    placement = Placement.NODE

    async def start(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()
        self.failing: Exception | None = None
        self.slow = False
        self.cancelled = 0

    @handles(idempotent=True, anywhere=True)
    async def read(self, message: Ask) -> str:
        self.asked += 1
        if self.failing is not None:
            raise self.failing
        if self.slow:
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return self.node

    @handles(anywhere=True)
    async def write(self, message: Ask) -> str:
        self.asked += 1
        if self.failing is not None:
            raise self.failing
        if self.slow:
            await self.go.wait()
        return self.node

    @handles(anywhere=True, where="model")
    async def with_model(self, message: Ask) -> str:
        return self.node

    @handles
    async def own(self) -> str:
        return self.node

    @streams(credit=4, anywhere=True, continues=Continued)
    async def count(self, message: Ask) -> AsyncIterator[int]:
        self.asked += 1
        for number in range(message.start, message.stop):
            yield number
            if self.slow and number >= message.stop // 2:
                await self.go.wait()

    @streams(credit=4, anywhere=True)
    async def plain(self, message: Ask) -> AsyncIterator[int]:
        self.asked += 1
        for number in range(message.start, message.stop):
            yield number
            if self.slow and number >= message.stop // 2:
                await self.go.wait()
