"""Ours in one process: a kernel with a service, called through its gates; and the same coroutine without any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from benchmarks.messages.service import Bench, Count, Ping, Span
from benchmarks.messages.stopwatch import rate
from microkernel.testing import TestKernel

__all__ = [
    "Bare",
    "BatchPublisher",
    "ByName",
    "Bound",
    "FromHandler",
    "Publisher",
    "QueuePublisher",
    "Streams",
    "BareStreams",
]

BATCH = 1000
READERS = 10
PATIENCE = 30.0  # seconds: so long only where an event was lost
BURST = 100  # events that are published before the readers have their turn
ITEMS = 1000


class _Booted:
    """A kernel with the service, for as long as the process lives."""

    async def start(self) -> None:
        """Boot."""
        self.service = Bench()
        self.system = TestKernel(self.service)
        await self.system.__aenter__()
        self.port = self.system.kernel.port

    async def stop(self) -> None:
        """Shut down."""
        await self.system.__aexit__(None, None, None)


class Bare(_Booted):
    """The handler's coroutine, awaited."""

    async def calls(self, seconds: float) -> float:
        """Calls a second."""
        method, ping = self.service.bare, Ping()

        async def step(count: int) -> None:
            for _ in range(count):
                await method(ping)

        return await rate(step, seconds, batch=BATCH)


class ByName(_Booted):
    """`await port.call("bench.noop", message)`."""

    async def calls(self, seconds: float) -> float:
        """Calls a second."""
        call, ping = self.port.call, Ping()

        async def step(count: int) -> None:
            for _ in range(count):
                await call("bench.noop", ping)

        return await rate(step, seconds, batch=BATCH)


class Bound(_Booted):
    """`method = port.method("bench.noop")`, then `await method(message)`."""

    async def calls(self, seconds: float) -> float:
        """Calls a second."""
        port: Any = self.port
        method, ping = port.method("bench.noop"), Ping()

        async def step(count: int) -> None:
            for _ in range(count):
                await method(ping)

        return await rate(step, seconds, batch=BATCH)


class FromHandler(_Booted):
    """A service that calls a service by its name: its call carries priority, deadline and chain of the one it is in."""

    async def calls(self, seconds: float) -> float:
        """Calls a second."""
        found = await self.port.call("bench.from_handler", Span(seconds), deadline=60.0)
        return float(found.rate)


class Publisher(_Booted):
    """`port.publish` to ten subscribers, each read with `async for` by a task of its own."""

    async def deliveries(self, seconds: float) -> float:
        """Events that have been read, by all together, a second. Raises TimeoutError where one was lost."""
        port = self.port
        subscriptions = [port.subscribe("bench.told") for _ in range(READERS)]
        tally = _Tally()

        async def step(count: int) -> None:
            for _ in range(count):
                port.publish("bench.told", PING)
            tally.expect(count * READERS)
            while tally.read_so_far < tally.expected:  # noqa: ASYNC110 - a turn of the loop is what the readers need
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as readers, asyncio.timeout(seconds + PATIENCE):
            for each in subscriptions:
                readers.create_task(self.read(each, tally))
            try:
                return await rate(step, seconds, batch=BURST) * READERS
            finally:
                for each in subscriptions:
                    each.close()

    async def read(self, subscription: Any, tally: _Tally) -> None:
        """Until the subscription is closed."""
        await tally.read(subscription)


class BatchPublisher(Publisher):
    """The same, read with `take`: all that has come, as a list."""

    async def read(self, subscription: Any, tally: _Tally) -> None:
        """Until the subscription is closed."""
        while events := await subscription.take():
            tally.read_so_far += len(events)


class QueuePublisher:
    """The same with ten `asyncio.Queue`s: no subjects, no patterns, no limit."""

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    async def deliveries(self, seconds: float) -> float:
        """As above."""
        queues: list[asyncio.Queue[Ping]] = [asyncio.Queue() for _ in range(READERS)]
        tally = _Tally()

        async def items(queue: asyncio.Queue[Ping]) -> AsyncGenerator[Ping, None]:
            while True:
                yield await queue.get()

        tasks = [asyncio.create_task(tally.read(items(each))) for each in queues]

        async def step(count: int) -> None:
            for _ in range(count):
                for each in queues:
                    each.put_nowait(PING)
            tally.expect(count * READERS)
            while tally.read_so_far < tally.expected:  # noqa: ASYNC110 - a turn of the loop is what the readers need
                await asyncio.sleep(0)

        try:
            return await rate(step, seconds, batch=BURST) * READERS
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Tally:
    """How many events have been read by all readers, and how many ought to be."""

    def __init__(self) -> None:
        self.read_so_far = 0
        self.expected = 0

    def expect(self, count: int) -> None:
        self.expected += count

    async def read(self, events: Any) -> None:
        async for _ in events:
            self.read_so_far += 1


class Streams(_Booted):
    """`async for item in port.stream(…)`."""

    async def items(self, seconds: float) -> float:
        """Items a second."""

        async def step(count: int) -> None:
            async for _ in self.port.stream("bench.items", Count(count)):
                pass

        return await rate(step, seconds, batch=ITEMS)


class BareStreams(_Booted):
    """The handler's generator, iterated."""

    async def items(self, seconds: float) -> float:
        """Items a second."""
        generator = self.service.items

        async def step(count: int) -> None:
            async for _ in generator(Count(count)):
                pass

        return await rate(step, seconds, batch=ITEMS)


PING = Ping()
