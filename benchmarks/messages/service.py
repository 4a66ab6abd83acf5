"""The service that is called: handlers that do nothing, so that what is measured is the way to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

import msgspec

from benchmarks.messages.stopwatch import rate
from microkernel.message import Message
from microkernel.service import Service, handles, streams

__all__ = ["Bench", "Body", "Count", "Ping", "Rate", "Span"]


class Ping(Message):
    """A message with one field."""

    number: int = 0


class Body(Message):
    """A message whose body as JSON is as long as its text and eleven bytes."""

    text: str


class Count(Message):
    """How many."""

    count: Annotated[int, msgspec.Meta(ge=0)]


class Span(Message):
    """How long, in seconds."""

    seconds: float


class Rate(Message):
    """Things a second."""

    rate: float


class Bench(Service):
    """Answers at once."""

    name = "bench"

    async def start(self) -> None:
        """Nothing has been received."""
        self.received = 0
        self.body = Body("x" * 89)

    async def bare(self, message: Ping) -> None:
        """What `noop` does, reached by no gate."""

    @handles
    async def noop(self, message: Ping) -> None:
        """Nothing."""

    @handles(concurrency=4096, queue=4096)
    async def echo(self, message: Body) -> Body:
        """The same."""
        return message

    @handles(concurrency=4096, queue=4096)
    async def add(self, message: Body) -> None:  # noqa: ARG002 - it is sent, and that is all
        """Count it."""
        self.received += 1

    @handles
    async def count(self) -> Count:
        """How many have been counted."""
        return Count(self.received)

    @handles
    async def from_handler(self, message: Span) -> Rate:
        """Calls a second of `noop` by this handler."""
        call, ping = self.port.call, Ping()

        async def step(count: int) -> None:
            for _ in range(count):
                await call("bench.noop", ping)

        return Rate(await rate(step, message.seconds, batch=1000))

    @streams(credit=1024)
    async def items(self, message: Count) -> AsyncGenerator[Body, None]:
        """The same item again and again."""
        body = self.body
        for _ in range(message.count):
            yield body
