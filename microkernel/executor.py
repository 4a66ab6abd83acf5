"""Compute threads of a device (hot: once a quantum): create, schedule, end.

Work that would hold up the loop leaves it here. Each device has its own threads, a bounded queue ordered by priority,
and one wake-up of the loop for each burst of results. The cost of a thread's life is measured the way schedulers are
taught: T_c to create it, T_s to schedule a job (from submit to start), T_f to end it.

A thread without work sleeps on a lock of its own, and whoever brings work opens just that one: no condition variable,
no polling. In one step under the queue's lock a thread gives back its last job and takes the next.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from microkernel.errors import AlreadyExists, Internal, Invalid, NotFound, Overloaded, Unavailable
from microkernel.message import PRIORITY
from microkernel.timing import Samples, Timing

__all__ = ["Executor", "ExecutorStatus", "Executors", "Timing"]

T = TypeVar("T")

SWITCH_INTERVAL = 0.001  # seconds; Python's 5 ms would let a thread in Python code delay the loop by that much
WITHDRAWN = 64  # cancelled jobs that may lie in the queue before it is swept, or as many as there are others


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


class _Job:
    """Work that waits, runs, has run or was withdrawn."""

    __slots__ = ("arguments", "error", "function", "future", "result", "submitted", "waits")

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], future: asyncio.Future[Any], submitted: float
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.future = future
        self.submitted = submitted
        self.waits = True  # for a thread
        self.result: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Find the result or the error; on a compute thread."""
        try:
            self.result = self.function(*self.arguments)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the job
            self.error = _raisable(error, self.function)

    def empty(self) -> None:
        """Let go of what a withdrawn job holds: it may lie in the heap for a while."""
        self.function, self.arguments = _nothing, ()


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
        self._lock = threading.Lock()  # over all that the threads and the loop share, from here to `_ended_at`
        self._heap: list[tuple[int, int, _Job]] = []  # tuples: they are compared without a step of Python
        self._sequence = itertools.count()
        self._queued = 0
        self._withdrawn = 0  # jobs in the heap that nobody waits for any more
        self._sleepers: list[threading.Lock] = []  # the last to fall asleep is woken first: its caches are warm
        self._done: list[_Job] = []
        self._notified = False
        self._closing = False
        self._running: set[_Job] = set()
        self._finished = 0
        self._busy = 0.0
        self._ended_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._created, self._scheduled, self._ended = Samples(), Samples(), Samples()

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
        if self._queued >= self._limit:  # only this loop adds, so that it cannot be more by the next line
            raise Overloaded(f"executor {self.name} has {self._queued} jobs waiting, its limit", retry_after=0.1)
        job = self._enter(function, arguments, priority)
        try:
            return await job.future  # type: ignore[no-any-return] # what `function` returned
        except asyncio.CancelledError:
            self._withdraw(job)
            raise

    async def finish(self, function: Callable[..., T], /, *arguments: Any, priority: int = PRIORITY) -> T:
        """As `run`, for what has to be done: it is, also when nobody waits for it any more, and however many jobs wait.

        Raises `Unavailable` after `stop`.
        """
        return await asyncio.shield(self._enter(function, arguments, priority).future)

    async def stop(self, *, timeout: float = 10.0) -> bool:
        """End the threads; jobs that wait end with `Unavailable`, those that run are waited for.

        Returns False if a thread was still busy after `timeout` seconds; being a daemon it will not keep the process.
        Whoever waits for a job that runs even then, or when `stop` is cancelled, gets `Unavailable`.
        """
        began = time.perf_counter()
        with self._lock:
            self._closing = True
            waiting = [job for *_, job in self._heap if job.waits]
            sleepers, self._sleepers = self._sleepers, []
            self._heap, self._queued, self._withdrawn = [], 0, 0
        for sleeper in sleepers:
            sleeper.release()
        for job in waiting:
            job.waits = False
            _settle(job.future, None, Unavailable(f"executor {self.name} has stopped", may_have_run=False))
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
            self._ended.add(max(0.0, self._ended_at - began))  # by the thread's own watch: ours looks each millisecond
        self._threads.clear()
        return True

    def status(self) -> ExecutorStatus:
        """Counts and costs as of now."""
        return ExecutorStatus(
            name=self.name,
            threads=len(self._threads),
            queued=self._queued,
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

    def _enter(self, function: Callable[..., Any], arguments: tuple[Any, ...], priority: int) -> _Job:
        """Put a job into the queue, and wake a thread for it."""
        loop = self._loop
        if loop is None or self._closing:
            raise Unavailable(f"executor {self.name} is not running", retry_after=1.0, may_have_run=False)
        job = _Job(function, arguments, loop.create_future(), time.perf_counter())
        with self._lock:
            self._queued += 1
            heapq.heappush(self._heap, (priority, next(self._sequence), job))
            sleeper = self._sleepers.pop() if self._sleepers else None
        if sleeper is not None:
            sleeper.release()
        return job

    def _withdraw(self, job: _Job) -> None:
        """Take out a job that nobody waits for: at once from the count, from the heap when there are many."""
        with self._lock:
            if not job.waits:
                return
            job.waits = False
            self._queued -= 1
            self._withdrawn += 1
            if self._withdrawn > max(WITHDRAWN, self._queued):
                self._heap = [entry for entry in self._heap if entry[2].waits]
                heapq.heapify(self._heap)
                self._withdrawn = 0
        job.empty()  # not under the lock: what it lets go of may end with code of its own

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
            if failure is None:
                self._take_turns(loop)
        except RuntimeError:
            return  # the loop has closed: nobody is left to hear of it
        finally:
            with self._lock:
                self._ended_at = time.perf_counter()

    def _take_turns(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run job after job until `stop`. Raises `RuntimeError` when the loop has closed."""
        asleep = threading.Lock()
        asleep.acquire()
        job: _Job | None = None
        began = ended = 0.0
        while True:
            with self._lock:
                notify = False
                if job is not None:
                    self._running.discard(job)
                    self._finished += 1
                    self._busy += ended - began
                    self._done.append(job)
                    notify, self._notified = not self._notified, True
                job = self._next()
                closing = self._closing
                if job is not None:
                    self._running.add(job)
                elif not closing:
                    self._sleepers.append(asleep)
            if notify:
                loop.call_soon_threadsafe(self._deliver)
            if job is not None:
                began = time.perf_counter()
                self._scheduled.add(began - job.submitted)
                job.run()
                ended = time.perf_counter()
            elif closing:
                return
            else:
                asleep.acquire()

    def _next(self) -> _Job | None:
        """The most urgent job; under the lock."""
        while self._heap:
            job = heapq.heappop(self._heap)[2]
            if not job.waits:
                self._withdrawn -= 1
                continue
            job.waits = False
            self._queued -= 1
            if not job.future.done():  # else whoever waited was cancelled a moment ago
                return job
        return None

    def _deliver(self) -> None:
        """Hand a burst of results to those who wait; on the loop."""
        with self._lock:
            self._notified = False
            done, self._done = self._done, []
        for job in done:
            _settle(job.future, job.result, job.error)

    def _abandon(self) -> None:
        """Free those who wait for jobs that run still."""
        with self._lock:
            running = tuple(self._running)
        for job in running:
            why = f"executor {self.name} has stopped while the work still ran"
            _settle(job.future, None, Unavailable(why, may_have_run=True))


def _nothing() -> None:
    """What a withdrawn job would do."""


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
