"""Compute threads of a device (hot: once a quantum): create, schedule, end.

Work that would hold up the loop leaves it here. Each device has its own threads, a bounded queue ordered by priority,
and one wake-up of the loop for each burst of results. The cost of a thread's life is measured the way schedulers are
taught: T_c to create it, T_s to schedule a job (from submit to start), T_f to end it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from microkernel.errors import AlreadyExists, Internal, Invalid, NotFound, Overloaded, Unavailable
from microkernel.message import PRIORITY

__all__ = ["Executor", "ExecutorStatus", "Executors", "Timing"]

T = TypeVar("T")

SWITCH_INTERVAL = 0.001  # seconds; Python's 5 ms would let a thread in Python code delay the loop by that much
SAMPLES = 1024


class Timing(msgspec.Struct, frozen=True):
    """A cost over its last 1,024 samples, in seconds."""

    count: int
    median: float
    p99: float
    worst: float


class ExecutorStatus(msgspec.Struct, frozen=True):
    """How an executor is doing. `t_c`, `t_s` and `t_f` are the costs to create, schedule and end."""

    name: str
    threads: int
    queued: int
    running: int
    finished: int
    busy_seconds: float
    t_c: Timing
    t_s: Timing
    t_f: Timing


class _Samples:
    """The last samples of one cost."""

    __slots__ = ("_count", "_recent")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=SAMPLES)
        self._count = 0

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)
        self._count += 1

    def timing(self) -> Timing:
        ordered = sorted(self._recent)
        if not ordered:
            return Timing(0, 0.0, 0.0, 0.0)
        last = len(ordered) - 1
        return Timing(self._count, ordered[last // 2], ordered[round(last * 0.99)], ordered[-1])


class _Job:
    __slots__ = ("arguments", "error", "function", "future", "order", "result", "submitted")

    def __init__(
        self,
        order: tuple[int, int],
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        future: asyncio.Future[Any],
    ) -> None:
        self.order = order
        self.function = function
        self.arguments = arguments
        self.future = future
        self.submitted = time.perf_counter()
        self.result: Any = None
        self.error: Exception | None = None

    def __lt__(self, other: _Job) -> bool:
        return self.order < other.order


class _SwitchInterval:
    """How often Python's threads take turns: shortened from the first executor's start to the last one's end."""

    def __init__(self) -> None:
        self._executors: set[Executor] = set()
        self._usual = 0.0

    def shorten(self, executor: Executor) -> None:
        if not self._executors:
            self._usual = sys.getswitchinterval()
            sys.setswitchinterval(min(self._usual, SWITCH_INTERVAL))
        self._executors.add(executor)

    def restore(self, executor: Executor) -> None:
        if executor not in self._executors:
            return
        self._executors.remove(executor)
        if not self._executors:
            sys.setswitchinterval(self._usual)


_switch_interval = _SwitchInterval()  # of the process, as is what it sets


class Executor:
    """The compute threads of one device.

    `initialize` runs first on each thread; if it raises, `start` does. Jobs of lower `priority` run first, among equals
    the one that came first. A job that runs cannot be interrupted: whoever waits for it is freed at once when
    cancelled, and its result is dropped.
    """

    def __init__(
        self, name: str, *, threads: int = 1, queue: int = 1024, initialize: Callable[[], None] | None = None
    ) -> None:
        if threads < 1 or queue < 1:
            raise Invalid(f"executor {name}: threads and queue must be at least 1")
        self.name = name
        self._wanted = threads
        self._limit = queue
        self._initialize = initialize
        self._threads: list[threading.Thread] = []
        self._jobs: list[_Job] = []
        self._sequence = itertools.count()
        self._wake = threading.Condition()
        self._done: deque[_Job] = deque()
        self._notified = False
        self._closing = False
        self._running: set[_Job] = set()
        self._finished = 0
        self._busy = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._created, self._scheduled, self._ended = _Samples(), _Samples(), _Samples()

    async def start(self) -> None:
        """Create the threads; returns when each has run `initialize`. After an error no thread is left."""
        self._loop = asyncio.get_running_loop()
        _switch_interval.shorten(self)
        try:
            for number in range(self._wanted):
                await self._create(number, self._loop)
        except BaseException:
            await self.stop()
            raise

    async def run(self, function: Callable[..., T], /, *arguments: Any, priority: int = PRIORITY) -> T:
        """Run `function(*arguments)` on a compute thread; returns its result or raises its error.

        Raises `Overloaded` when the queue is full and `Unavailable` after `stop`.
        """
        loop = self._loop
        if loop is None or self._closing:
            raise Unavailable(f"executor {self.name} is not running", retry_after=1.0, may_have_run=False)
        if len(self._jobs) >= self._limit:
            raise Overloaded(f"executor {self.name} has {len(self._jobs)} jobs waiting, its limit", retry_after=0.1)
        job = _Job((priority, next(self._sequence)), function, arguments, loop.create_future())
        with self._wake:
            heapq.heappush(self._jobs, job)
            self._wake.notify()
        try:
            return await job.future  # type: ignore[no-any-return] # what `function` returned
        except asyncio.CancelledError:
            self._withdraw(job)
            raise

    async def stop(self, *, timeout: float = 10.0) -> bool:
        """End the threads; jobs that wait end with `Unavailable`, those that run are waited for.

        Returns False if a thread was still busy after `timeout` seconds; being a daemon it will not keep the process.
        Whoever waits for a job that runs even then, or when `stop` is cancelled, gets `Unavailable`.
        """
        began = time.perf_counter()
        with self._wake:
            self._closing = True
            waiting, self._jobs = self._jobs, []
            self._wake.notify_all()
        for job in waiting:
            if not job.future.done():
                job.future.set_exception(Unavailable(f"executor {self.name} has stopped", may_have_run=False))
        try:
            while any(thread.is_alive() for thread in self._threads):
                if time.perf_counter() - began > timeout:
                    return False
                await asyncio.sleep(0.001)
        finally:
            self._deliver()
            self._abandon()
            _switch_interval.restore(self)
        if self._threads:
            self._ended.add(time.perf_counter() - began)
        self._threads.clear()
        return True

    def status(self) -> ExecutorStatus:
        """Counts and costs as of now."""
        return ExecutorStatus(
            name=self.name,
            threads=len(self._threads),
            queued=len(self._jobs),
            running=len(self._running),
            finished=self._finished,
            busy_seconds=self._busy,
            t_c=self._created.timing(),
            t_s=self._scheduled.timing(),
            t_f=self._ended.timing(),
        )

    async def _create(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        began = time.perf_counter()
        ready: asyncio.Future[None] = loop.create_future()
        thread = threading.Thread(target=self._work, args=(loop, ready), name=f"{self.name}.{number}", daemon=True)
        self._threads.append(thread)
        thread.start()
        await ready
        self._created.add(time.perf_counter() - began)

    def _withdraw(self, job: _Job) -> None:
        with self._wake:
            if job in self._jobs:
                self._jobs.remove(job)
                heapq.heapify(self._jobs)

    def _work(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Future[None]) -> None:
        """The life of one thread."""
        failure: Exception | None = None
        try:
            if self._initialize is not None:
                self._initialize()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits in `start`
            failure = _raisable(error, self._initialize)
        try:
            loop.call_soon_threadsafe(_settle, ready, None, failure)
        except RuntimeError:
            return  # the loop has closed: nobody is left to hear of it
        if failure is not None:
            return
        while True:
            with self._wake:
                while not self._jobs and not self._closing:
                    self._wake.wait()
                if self._closing:
                    return
                job = heapq.heappop(self._jobs)
                self._running.add(job)
            began = time.perf_counter()
            try:
                job.result = job.function(*job.arguments)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the job
                job.error = _raisable(error, job.function)
            ended = time.perf_counter()
            with self._wake:
                self._running.discard(job)
                self._finished += 1
                self._busy += ended - began
                self._scheduled.add(began - job.submitted)
                self._done.append(job)
                notify = not self._notified
                self._notified = True
            del job
            if notify:
                try:
                    loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    return  # the loop has closed: nobody is left to hear of it

    def _deliver(self) -> None:
        """Hand a burst of results to those who wait; on the loop."""
        with self._wake:
            self._notified = False
            done, self._done = self._done, deque()
        for job in done:
            _settle(job.future, job.result, job.error)

    def _abandon(self) -> None:
        """Free those who wait for jobs that run still."""
        with self._wake:
            running = tuple(self._running)
        for job in running:
            why = f"executor {self.name} has stopped while the work still ran"
            _settle(job.future, None, Unavailable(why, may_have_run=True))


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Give `future` its outcome, unless whoever waited has gone."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _raisable(error: BaseException, function: Any) -> Exception:
    """`error` as it may be raised where it is waited for."""
    name = getattr(function, "__qualname__", function)
    wrapped: Exception
    if isinstance(error, StopIteration):
        # A future refuses it: it would end the generator that waits.
        wrapped = RuntimeError(f"{name} raised StopIteration")
    elif isinstance(error, Exception):
        return error
    else:
        # SystemExit and KeyboardInterrupt would end the loop, CancelledError would pass for a cancellation.
        wrapped = Internal(f"{name} raised {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


class Executors:
    """The executors of a node by device name."""

    def __init__(self) -> None:
        self._executors: dict[str, Executor] = {}

    async def add(self, executor: Executor) -> None:
        """Start `executor` and make it known. Raises `AlreadyExists`."""
        if executor.name in self._executors:
            raise AlreadyExists(f"there is an executor '{executor.name}' already")
        self._executors[executor.name] = executor
        try:
            await executor.start()
        except BaseException:
            del self._executors[executor.name]
            raise

    def get(self, name: str) -> Executor:
        """Raises `NotFound`."""
        executor = self._executors.get(name)
        if executor is None:
            known = ", ".join(sorted(self._executors)) or "none"
            raise NotFound(f"no device is named '{name}'", remedy=f"devices here: {known}")
        return executor

    async def remove(self, name: str, *, timeout: float = 10.0) -> bool:
        """Stop and forget; False if a thread did not end in time."""
        executor = self._executors.pop(name, None)
        return True if executor is None else await executor.stop(timeout=timeout)

    def status(self) -> tuple[ExecutorStatus, ...]:
        """All executors."""
        return tuple(executor.status() for executor in self._executors.values())

    async def close(self) -> None:
        """Stop all."""
        for name in tuple(self._executors):
            await self.remove(name)
