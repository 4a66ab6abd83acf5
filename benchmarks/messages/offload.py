"""A function that does nothing, on another thread: our executor, and the loop's own way to a thread pool."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.messages.stopwatch import percentiles, rate, times
from microkernel.executor import Executor

__all__ = ["Ours", "ThreadPool"]

DEEP = 64  # jobs in flight
BATCH = 20 * DEEP


def _noop() -> None:
    pass


class _Offload:
    """What is measured; `self.offload()` runs one job and awaits it."""

    offload: Callable[[], Awaitable[Any]]

    async def offloads(self, seconds: float) -> dict[str, float]:
        """The time of a round trip, and jobs a second with 64 in flight, each awaited by a task of its own."""
        single = percentiles(await times(self.offload, seconds / 2, warm_up=200))

        async def some(count: int) -> None:
            for _ in range(count):
                await self.offload()

        async def step(count: int) -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(DEEP):
                    group.create_task(some(count // DEEP))

        return {"p50": single["p50"], "p99": single["p99"], "deep": await rate(step, seconds / 2, batch=BATCH)}


class Ours(_Offload):
    """`await executor.run(function)`, one thread."""

    async def start(self) -> None:
        """Start the thread."""
        self._executor = Executor("bench", threads=1)
        await self._executor.start()
        run = self._executor.run
        self.offload = lambda: run(_noop)

    async def stop(self) -> None:
        """End it."""
        await self._executor.stop()


class ThreadPool(_Offload):
    """`await loop.run_in_executor(pool, function)`, one thread."""

    async def start(self) -> None:
        """Make the pool."""
        self._pool = ThreadPoolExecutor(max_workers=1)
        loop = asyncio.get_running_loop()
        self.offload = lambda: loop.run_in_executor(self._pool, _noop)

    async def stop(self) -> None:
        """End it."""
        self._pool.shutdown()
