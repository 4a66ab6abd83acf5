"""A client of a node, in a process of its own: calls, sends and streams over one link."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from benchmarks.messages.open_loop import Arrivals, run_open_loop
from benchmarks.messages.process import split_address
from benchmarks.messages.service import Body, Count
from benchmarks.messages.stopwatch import percentiles, rate, times
from microkernel.wire.client import connect

__all__ = ["BODY", "NodeClient", "deep"]

BODY = "x" * 89  # with `{"text":""}` around it a body of 100 bytes
WINDOW = 2000  # one-way messages and items between two looks at the clock


class NodeClient:
    """Holds one link."""

    def __init__(self, address: str) -> None:
        self._url, self._token = split_address(address)

    async def start(self) -> None:
        """Connect."""
        self._link = connect(self._url, self._token)
        self._system = await self._link.__aenter__()

    async def stop(self) -> None:
        """Close the link."""
        await self._link.__aexit__(None, None, None)

    async def round_trips(self, seconds: float) -> dict[str, float]:
        """Seconds of one call at a time with a body of 100 bytes, which comes back."""
        found = await times(self._echo, seconds)
        return {**percentiles(found), "count": len(found)}

    async def calls(self, seconds: float, depth: int) -> float:
        """Calls a second with `depth` of them in flight."""
        return await rate(deep(self._echo, depth), seconds, batch=10 * depth)

    async def sends(self, seconds: float) -> float:
        """One-way messages a second that have been handled: after each window their number is asked for.

        Raises RuntimeError where one was lost.
        """
        send, call, body = self._system.send, self._system.call, Body(BODY)
        sent = (await call("bench.count", result_type=Count)).count

        async def step(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                await send("bench.add", body)
            sent += count
            while (await call("bench.count", result_type=Count)).count < sent:  # noqa: ASYNC110 - they are in another process
                await asyncio.sleep(0)

        async with asyncio.timeout(seconds + 30):
            return await rate(step, seconds, batch=WINDOW)

    async def items(self, seconds: float) -> float:
        """Items of a stream that have been read, a second."""
        system = self._system

        async def step(count: int) -> None:
            async with system.stream("bench.items", Count(count), credit=1024, result_type=Body) as stream:
                async for _ in stream:
                    pass

        return await rate(step, seconds, batch=5 * WINDOW)

    async def open_loop(self, seconds: float, calls: float, seed: int = 1) -> dict[str, float]:
        """Seconds from the moment that a call was to be sent, at `calls` a second on average."""
        return percentiles(await run_open_loop(self._echo, Arrivals(calls, seconds, seed)))

    async def _echo(self) -> object:
        return await self._system.call("bench.echo", ECHO, result_type=Body)


def deep(call: Callable[[], Awaitable[object]], depth: int) -> Callable[[int], Awaitable[None]]:
    """A step that makes `count` calls with `depth` tasks, each of them one call after the other."""

    async def some(count: int) -> None:
        for _ in range(count):
            await call()

    async def step(count: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(depth):
                group.create_task(some(count // depth))

    return step


ECHO = Body(BODY)
