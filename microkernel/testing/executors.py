"""Compute threads of a simulation: the promises of `Executor` without a thread.

A job runs on the loop, at a moment of the seed's. Order, limits, cancellation and the end are those of the real ones.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any, TypeVar

from microkernel.errors import Overloaded, Unavailable
from microkernel.executor import Executor, Executors, ExecutorStatus, Timing, _raisable, _settle
from microkernel.message import PRIORITY

__all__ = ["SimulatedExecutor", "SimulatedExecutors"]

T = TypeVar("T")

LONGEST = 0.05  # seconds of virtual time that a job takes, at most


class SimulatedExecutors(Executors):
    """The executors of a node in a simulation: each that is added is replaced by a simulated one."""

    def __init__(self, seed: int | str = 0) -> None:
        super().__init__()
        self._chance = random.Random(f"{seed} executors")  # noqa: S311 - a simulation's, no secret

    async def add(self, executor: Executor) -> None:
        """Make one like `executor` known; the real one is never started. Raises `AlreadyExists`."""
        await super().add(SimulatedExecutor(executor, self._chance))


class SimulatedExecutor(Executor):
    """Stands for `real`: the same name, number of threads, queue and `initialize`."""

    def __init__(self, real: Executor, chance: random.Random) -> None:
        threads, queue, initialize = real._wanted, real._limit, real._initialize  # noqa: SLF001 - of our own class
        super().__init__(real.name, threads=threads, queue=queue, initialize=initialize)
        self._free = threads
        self._capacity = queue
        self._threads_wanted = threads
        self._prepare: Callable[[], None] | None = initialize
        self._chance = chance
        self._open = False
        self._jobs: list[tuple[int, int, asyncio.Future[Any], Callable[[], Any]]] = []
        self._numbers = itertools.count()
        self._at_work: dict[asyncio.Future[Any], None] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._count = 0
        self._loop_here = asyncio.get_running_loop()

    async def start(self) -> None:
        """Run `initialize` as often as there are threads; raises what it raises."""
        if self._prepare is not None:
            for _ in range(self._threads_wanted):
                await self._loop_here.run_in_executor(None, self._prepare)
        self._open = True

    async def run(self, function: Callable[..., T], /, *arguments: Any, priority: int = PRIORITY) -> T:
        """As the real one."""
        waiting = self._waiting()
        if waiting >= self._capacity:
            raise Overloaded(f"executor {self.name} has {waiting} jobs waiting, its limit", retry_after=0.1)
        return await self._wait_for(function, arguments, priority)

    async def finish(self, function: Callable[..., T], /, *arguments: Any, priority: int = PRIORITY) -> T:
        """As the real one."""
        return await asyncio.shield(self._wait_for(function, arguments, priority))

    async def stop(self, *, timeout: float = 10.0) -> bool:
        """As the real one; what runs ends in its time."""
        self._open = False
        for *_, future, _job in sorted(self._jobs, key=lambda job: job[:2]):
            if not future.done():
                future.set_exception(Unavailable(f"executor {self.name} has stopped", may_have_run=False))
        self._jobs.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            # Whoever waits even now, or is left because we were cancelled.
            why = f"executor {self.name} has stopped while the work still ran"
            for future in self._at_work:
                if not future.done():
                    future.set_exception(Unavailable(why, may_have_run=True))

    def _wait_for(self, function: Callable[..., T], arguments: tuple[Any, ...], priority: int) -> asyncio.Future[T]:
        """The result of a job that is put into the queue."""
        if not self._open:
            raise Unavailable(f"executor {self.name} is not running", retry_after=1.0, may_have_run=False)
        future: asyncio.Future[T] = self._loop_here.create_future()
        heapq.heappush(self._jobs, (priority, next(self._numbers), future, lambda: function(*arguments)))
        self._loop_here.call_soon(self._give_out)
        return future

    def status(self) -> ExecutorStatus:
        """Counts; the costs of threads that are none are 0."""
        none = Timing(0, 0.0, 0.0, 0.0)
        return ExecutorStatus(
            name=self.name,
            threads=self._threads_wanted if self._open else 0,
            queued=self._waiting(),
            running=len(self._at_work),
            finished=self._count,
            busy_seconds=0.0,
            t_c=none,
            t_s=none,
            t_f=none,
        )

    def _waiting(self) -> int:
        return sum(1 for _, _, future, _ in self._jobs if not future.done())

    def _give_out(self) -> None:
        """Give the most urgent jobs to the threads that are free."""
        while self._free and self._jobs:
            *_, future, job = heapq.heappop(self._jobs)
            if future.done():
                continue  # whoever waited has gone
            self._free -= 1
            self._at_work[future] = None
            self._idle.clear()
            self._loop_here.call_later(self._chance.uniform(0.0, LONGEST), self._finish, future, job)

    def _finish(self, future: asyncio.Future[Any], job: Callable[[], Any]) -> None:
        result, failure = None, None
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the job
            failure = _raisable(error, job)
        self._free += 1
        self._count += 1
        self._at_work.pop(future, None)
        if not self._at_work:
            self._idle.set()
        _settle(future, result, failure)
        self._give_out()
