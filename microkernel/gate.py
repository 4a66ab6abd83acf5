"""The door of one handler (hot: once a message): admission, priority, deadline, deadlock, kill.

A gate runs its handler in the caller's task; what happens when nothing goes wrong and nobody waits is in `run`. Here is
the rest: the queue, the end, and the errors. A call that suspends can be interrupted, by its deadline or by a kill of
the service; see `suspended`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import msgspec

from microkernel.deadlines import Deadlines
from microkernel.errors import (
    DeadlineExceeded,
    Deadlock,
    Internal,
    MicrokernelError,
    Overloaded,
    Unavailable,
    copy_of,
    from_exception,
)
from microkernel.message import Call, current_call
from microkernel.nursery import task_of_loop
from microkernel.run import Admission, Budget
from microkernel.stream import Lease, Stream
from microkernel.suspended import Suspended

__all__ = ["BUDGET", "Closed", "Gate", "Passage", "Waits"]

BUDGET = 0.002  # seconds of inline calls in a row, then the loop has its turn

Waits = dict["asyncio.Task[Any]", "_Waiter"]
"""Which task waits at which gate, for all gates of a kernel: what a cycle is found in."""


_sequence = itertools.count()


class Closed(Unavailable):
    """The gate closed before the handler began: another incarnation may answer the same call.

    `expires` is when the call ends that has waited here without a deadline of its own.
    """

    expires: float | None = None


class Gate(Admission):
    """Admits at most `concurrency` calls at a time and lets at most `queue` more wait, most urgent first.

    `await gate.call(arguments, call)` returns what the handler returns. It raises the handler's own
    `MicrokernelError`, `Internal` for anything else that it raises, `Overloaded`, `DeadlineExceeded`, `Deadlock`, and
    when the service stops `Closed` before the handler has begun, `Unavailable` later.
    """

    __slots__ = (
        "_concurrency",
        "_idle",
        "_queue",
        "_reserved",
        "_waits",
        "closed",
        "deadlines",
        "loop",
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
        budget: Budget | None = None,
    ) -> None:
        self.loop = deadlines.loop
        super().__init__(handler, concurrency, budget or Budget(self.loop, BUDGET))
        self.target = target
        self.service = target.partition(".")[0]
        self.closed: Closed | None = None
        self._concurrency = concurrency
        self._queue = queue
        self._reserved = 0  # slots granted to waiters that have not woken yet
        self.waiting: list[_Waiter] = []
        self.running: dict[Suspended | Lease, None] = {}  # in order: a kill is the same in every replay
        self.deadlines = deadlines
        self._waits = waits
        self._idle: asyncio.Event | None = None

    @property
    def in_flight(self) -> int:
        """Calls that were admitted and have not ended."""
        return self._concurrency - self.free

    @property
    def queued(self) -> int:
        """Calls that wait to be admitted."""
        return len(self.waiting)

    @property
    def has_room(self) -> bool:
        """Whether one more call would be admitted or could wait."""
        return self.free > 0 or len(self.waiting) < self._queue

    def pick(self, message: tuple[Any, ...], call: Call) -> Gate:  # noqa: ARG002 - as where there are several
        """The gate that this call goes through: this one."""
        return self

    def stream(self, message: tuple[Any, ...], call: Call) -> Stream:
        """The items of a generator handler, run as far as the reader pulls; the slot is held until the stream ends."""

        async def opening() -> tuple[Gate, tuple[Any, ...], Call]:
            await self.admit(call)
            return self, message, call

        return Stream(opening)

    async def slow(self, message: tuple[Any, ...], call: Call) -> Any:
        """A call that finds no free slot, or a closed gate."""
        call = await self.admit(call)
        return await self.admitted(message, call)

    async def admit(self, call: Call) -> Call:
        """Take a slot, if need be after waiting for one; `release` gives it back. The call as it goes on."""
        if self.free > 0 and not self.waiting and self.closed is None:
            self.free -= 1
            return call
        if call.deadline is None and call.limit is not None:  # waiting is part of its time
            call = msgspec.structs.replace(call, deadline=self.loop.time() + call.limit)
        try:
            await self._admit(call)
        except Closed as closed:
            closed.expires = call.deadline
            raise
        return call

    def suspended(self, call: Call, holds_slot: bool) -> Suspended:
        """A handler waits for the first time."""
        deadline = call.deadline
        if deadline is None and call.limit is not None:
            settled = current_call()  # from now on the handler knows when it has to end
            deadline = None if settled is None else settled.deadline
        return Suspended(self, deadline, holds_slot=holds_slot)

    def failure(self, tracker: Suspended | None, error: BaseException) -> BaseException:
        """What the caller gets for `error` that the handler has raised."""
        cancelled_by_others = tracker is not None and tracker.ended()
        if isinstance(error, asyncio.CancelledError):
            if cancelled_by_others:
                return error  # whether or not we did
            self.failures += 1
            if tracker is not None and tracker.cause is not None:
                tracker.cause.__suppress_context__ = True
                return tracker.cause
            stray = Internal(
                f"{self.target} raised CancelledError, and nobody cancelled the call", service=self.service
            )
            stray.__cause__ = error
            return stray
        self.failures += 1
        if isinstance(error, MicrokernelError):
            error.service = error.service or self.service
            if error.may_have_run is False:
                error.may_have_run = True  # it was true of a call that this handler made; this handler has run
            return error
        return from_exception(error, service=self.service) if isinstance(error, (Exception, SystemExit)) else error

    def release(self) -> None:
        """A slot is free: the most urgent waiter gets it."""
        while self.waiting:
            waiter = heapq.heappop(self.waiting)
            if waiter.grant():
                self._reserved += 1
                self.bar()
                return  # the slot passes on without becoming free
        self.free += 1
        if self._idle is not None and not self.in_flight:
            self._idle.set()
            self._idle = None
        self.bar()

    def bar(self) -> None:
        """Whether the fast path must ask: it looks at nothing but this."""
        self.barred = bool(self.waiting) or self.closed is not None or self._idle is not None

    def close(self, reason: MicrokernelError) -> None:
        """Admit nobody any more; those who wait end with `reason` as `Closed`, those who run go on."""
        self.closed = copy_of(reason, Closed)
        waiting, self.waiting = self.waiting, []
        self.bar()
        for waiter in waiting:
            waiter.interrupt(copy_of(reason, Closed))

    def retire(self) -> None:
        """Let go of the service, which has stopped: whoever keeps this gate must not keep a dead incarnation."""
        self.handler = _retired

    def kill(self, reason: MicrokernelError) -> None:
        """End every call that runs with `reason`."""
        for run in tuple(self.running):
            run.interrupt(copy_of(reason, type(reason)))

    async def drained(self) -> None:
        """Return once no admitted call is left."""
        while self.in_flight:
            self._idle = self._idle or asyncio.Event()
            self.bar()
            await self._idle.wait()

    async def _admit(self, call: Call) -> None:
        """Wait for a slot; on return it is ours."""
        if self.closed is not None:
            raise copy_of(self.closed, Closed)
        if len(self.waiting) >= self._queue and not self._displace(call.priority):
            raise Overloaded(
                f"{self.target} has {self.in_flight} calls running and {self.queued} waiting, which is its limit",
                service=self.service,
                retry_after=1.0,
                may_have_run=False,
            )
        task = task_of_loop(self.loop)
        if task is None:
            raise Unavailable(f"{self.target} was called outside of a task", service=self.service)
        if self._never_free(task):
            raise Deadlock(f"{self.target} waits for itself: {' → '.join(call.chain)}", service=self.service)
        waiter = _Waiter(self, call)
        heapq.heappush(self.waiting, waiter)
        self.bar()
        self._waits[task] = waiter
        bucket = None if call.deadline is None else self.deadlines.watch(call.deadline, waiter)
        try:
            await waiter.granted
        except BaseException:
            # Granted and cancelled before it woke: the slot was reserved for it and must not be lost.
            if waiter.has_slot:
                self._reserved -= 1
                self.release()
            else:
                waiter.abandon()
            raise
        else:
            self._reserved -= 1
        finally:
            self._waits.pop(task, None)
            if bucket is not None:
                self.deadlines.forget(bucket, waiter)

    def _displace(self, priority: int) -> bool:
        """Whether a waiter that is less urgent than `priority` gave up its place: the last of the least urgent ones."""
        last = max(self.waiting, default=None)
        if last is None or last.priority <= priority:
            return False
        last.abandon()
        why = f"{self.target} has {self.queued + 1} calls waiting, which is its limit, and a more urgent one came"
        last.interrupt(Overloaded(why, service=self.service, retry_after=1.0, may_have_run=False))
        return True

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


class Passage(Gate):
    """A gate whose handler passes calls on: that it has run says nothing, the next gate knows what may have."""

    __slots__ = ()

    def failure(self, tracker: Suspended | None, error: BaseException) -> BaseException:
        may_have_run = error.may_have_run if isinstance(error, MicrokernelError) else None
        raised = super().failure(tracker, error)
        if raised is error and isinstance(raised, MicrokernelError):
            raised.may_have_run = may_have_run
        return raised


class _Waiter:
    """A call in the queue, ordered by priority and then by arrival."""

    __slots__ = ("_order", "gate", "granted")

    def __init__(self, gate: Gate, call: Call) -> None:
        self.gate = gate
        self._order = (call.priority, next(_sequence))
        self.granted: asyncio.Future[None] = gate.loop.create_future()

    def __lt__(self, other: _Waiter) -> bool:
        return self._order < other._order

    @property
    def priority(self) -> int:
        return self._order[0]

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
            self.gate.bar()


async def _retired(*_: Any) -> Any:
    raise Unavailable("the service has stopped", may_have_run=False)
