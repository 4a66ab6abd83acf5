"""The door of one handler (hot: once a message): admission, priority, deadline, deadlock, kill.

A gate runs its handler in the caller's task: no task, no future and no queue on the fast path, which gives
cancellation, context and tracebacks for nothing. A call that never suspends is never tracked. Once it does, it can be
interrupted: by its deadline, or by a kill of the service. An interrupt cancels the caller's task and is turned into the
named error at this gate, before the caller sees it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from microkernel.deadlines import Deadlines
from microkernel.errors import (
    DeadlineExceeded,
    Deadlock,
    MicrokernelError,
    Overloaded,
    Unavailable,
    from_exception,
)
from microkernel.message import Call, _current
from microkernel.run import Closing, Lease, Run

__all__ = ["Closed", "Gate", "Waits"]

Waits = dict["asyncio.Task[Any]", "_Waiter"]
"""Which task waits at which gate, for all gates of a kernel: what a cycle is found in."""

E = TypeVar("E", bound=MicrokernelError)

_sequence = itertools.count()


class Closed(Unavailable):
    """The gate closed before the handler began: another incarnation may answer the same call."""


class Gate:
    """Admits at most `concurrency` calls at a time and lets at most `queue` more wait, most urgent first."""

    __slots__ = (
        "_concurrency",
        "_free",
        "_handler",
        "_idle",
        "_queue",
        "_reserved",
        "_waits",
        "calls",
        "closed",
        "deadlines",
        "failures",
        "running",
        "service",
        "target",
        "waiting",
    )  # fmt: skip

    def __init__(
        self,
        target: str,
        handler: Callable[..., Any],
        *,
        concurrency: int,
        queue: int,
        deadlines: Deadlines,
        waits: Waits,
    ) -> None:
        self.target = target
        self.service = target.partition(".")[0]
        self.closed: Closed | None = None
        self.calls = 0
        self.failures = 0
        self._handler = handler
        self._concurrency = concurrency
        self._queue = queue
        self._free = concurrency
        self._reserved = 0  # slots granted to waiters that have not woken yet
        self.waiting: list[_Waiter] = []
        self.running: set[Run] = set()
        self.deadlines = deadlines
        self._waits = waits
        self._idle: asyncio.Event | None = None

    @property
    def in_flight(self) -> int:
        """Calls that were admitted and have not ended."""
        return self._concurrency - self._free

    @property
    def queued(self) -> int:
        """Calls that wait to be admitted."""
        return len(self.waiting)

    async def call(self, message: tuple[Any, ...], call: Call) -> Any:
        """Run the handler; returns what it returns.

        Raises the handler's own `MicrokernelError`, `Internal` for anything else that it raises, `Overloaded`,
        `DeadlineExceeded`, `Deadlock`, and when the service stops `Closed` before the handler has begun, `Unavailable`
        later.
        """
        if self._free and not self.waiting and self.closed is None:
            self._free -= 1
        else:
            await self._admit(call)
        self.calls += 1
        token = _current.set(call)
        try:
            return await Run(self, self._handler(*message), call.deadline)
        except MicrokernelError as error:
            self.failures += 1
            error.service = error.service or self.service
            raise
        except (Exception, SystemExit) as error:
            self.failures += 1
            raise from_exception(error, service=self.service) from error
        finally:
            _current.reset(token)
            self._release()

    async def stream(self, message: tuple[Any, ...], call: Call) -> AsyncGenerator[Any, None]:
        """Run the generator handler as far as the reader pulls it; the slot is held until the stream ends."""
        if self._free and not self.waiting and self.closed is None:
            self._free -= 1
        else:
            await self._admit(call)
        self.calls += 1
        items: AsyncGenerator[Any, None] = self._handler(*message)
        lease = Lease(self)
        pull, deadline = items.__anext__, call.deadline
        loop = asyncio.get_running_loop()  # to look it up for each item would cost a fifth of the whole
        self.running.add(lease)
        bucket = None if deadline is None else self.deadlines.watch(deadline, lease)
        try:
            try:
                while True:
                    if lease.cause is not None:
                        raise lease.cause  # it ended between two pulls
                    lease.task = asyncio.current_task(loop)  # a stream may be handed from one reader to the next
                    token = _current.set(call)
                    try:
                        item = await Run(self, pull(), deadline, holds_slot=False)
                    finally:
                        _current.reset(token)
                    yield item
            finally:
                lease.task = asyncio.current_task(loop)
                token = _current.set(call)
                try:
                    await Closing(self, items.aclose())
                finally:
                    _current.reset(token)
        except StopAsyncIteration:
            return
        except MicrokernelError as error:
            self.failures += 1
            error.service = error.service or self.service
            raise
        except (Exception, SystemExit) as error:
            self.failures += 1
            raise from_exception(error, service=self.service) from error
        finally:
            self.running.discard(lease)
            if bucket is not None:
                self.deadlines.forget(bucket, lease)
            self._release()

    def close(self, reason: MicrokernelError) -> None:
        """Admit nobody any more; those who wait end with `reason` as `Closed`, those who run go on."""
        self.closed = _copy(reason, Closed)
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.interrupt(_copy(reason, Closed))

    def retire(self) -> None:
        """Let go of the service, which has stopped: whoever keeps this gate must not keep a dead incarnation."""
        self._handler = _retired

    def kill(self, reason: MicrokernelError) -> None:
        """End every call that runs with `reason`."""
        for run in tuple(self.running):
            run.interrupt(_copy(reason, type(reason)))

    async def drained(self) -> None:
        """Return once no admitted call is left."""
        while self.in_flight:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()

    async def _admit(self, call: Call) -> None:
        """Wait for a slot; on return it is ours."""
        if self.closed is not None:
            raise _copy(self.closed, Closed)
        if len(self.waiting) >= self._queue:
            raise Overloaded(
                f"{self.target} has {self.in_flight} calls running and {self.queued} waiting, which is its limit",
                service=self.service,
                retry_after=1.0,
            )
        task = asyncio.current_task()
        if task is None:
            raise Unavailable(f"{self.target} was called outside of a task", service=self.service)
        if self._never_free(task):
            raise Deadlock(f"{self.target} waits for itself: {' → '.join(call.chain)}", service=self.service)
        waiter = _Waiter(self, call)
        heapq.heappush(self.waiting, waiter)
        self._waits[task] = waiter
        bucket = None if call.deadline is None else self.deadlines.watch(call.deadline, waiter)
        try:
            await waiter.granted
        except BaseException:
            # Granted and cancelled before it woke: the slot was reserved for it and must not be lost.
            if waiter.has_slot:
                self._reserved -= 1
                self._release()
            else:
                waiter.abandon()
            raise
        else:
            self._reserved -= 1
        finally:
            self._waits.pop(task, None)
            if bucket is not None:
                self.deadlines.forget(bucket, waiter)

    def _never_free(self, task: asyncio.Task[Any]) -> bool:
        """Whether each slot here is held by a task that waits, through others, for this one.

        A slot that is neither reserved nor held by a run is that of a handler which has not suspended yet: `task`'s.
        """
        visited: set[Gate] = set()

        def is_stuck(gate: Gate) -> bool:
            if gate in visited:
                return True  # a cycle; any way out of it has returned False already
            visited.add(gate)
            if gate._reserved:
                return False
            return all(waits_for_us(run.task) for run in gate.running if run.holds_slot)

        def waits_for_us(holder: asyncio.Task[Any] | None) -> bool:
            if holder is None or holder is task:
                return holder is task
            waiter = self._waits.get(holder)
            return waiter is not None and not waiter.granted.done() and is_stuck(waiter.gate)

        return self.in_flight > 0 and is_stuck(self)

    def _release(self) -> None:
        while self.waiting:
            waiter = heapq.heappop(self.waiting)
            if waiter.grant():
                self._reserved += 1
                return  # the slot passes on without becoming free
        self._free += 1
        if self._idle is not None and not self.in_flight:
            self._idle.set()
            self._idle = None


class _Waiter:
    """A call in the queue, ordered by priority and then by arrival."""

    __slots__ = ("_order", "gate", "granted")

    def __init__(self, gate: Gate, call: Call) -> None:
        self.gate = gate
        self._order = (call.priority, next(_sequence))
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __lt__(self, other: _Waiter) -> bool:
        return self._order < other._order

    @property
    def has_slot(self) -> bool:
        return self.granted.done() and not self.granted.cancelled() and self.granted.exception() is None

    def grant(self) -> bool:
        if self.granted.done():
            return False
        self.granted.set_result(None)
        return True

    def interrupt(self, reason: MicrokernelError) -> None:
        if not self.granted.done():
            self.granted.set_exception(reason)

    def expire(self) -> None:
        gate = self.gate
        self.interrupt(
            DeadlineExceeded(
                f"the deadline passed while the call waited for {gate.target} ({gate.in_flight} running)",
                service=gate.service,
                may_have_run=False,
            )
        )

    def abandon(self) -> None:
        """Leave the queue at once, so that callers who gave up do not fill it."""
        waiting = self.gate.waiting
        if self in waiting:
            waiting.remove(self)
            heapq.heapify(waiting)


async def _retired(*_: Any) -> Any:
    raise Unavailable("the service has stopped", may_have_run=False)


def _copy(error: MicrokernelError, kind: type[E]) -> E:
    """An error of its own for each caller: a shared one would collect everybody's traceback."""
    return kind(
        error.message,
        remedy=error.remedy,
        service=error.service,
        field=error.field,
        retry_after=error.retry_after,
        may_have_run=error.may_have_run,
        causes=error.causes,
    )
