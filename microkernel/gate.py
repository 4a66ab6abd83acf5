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
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

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

__all__ = ["Gate", "Waits"]

Waits = dict["asyncio.Task[Any]", "Gate"]
"""Which task waits at which gate, for all gates of a kernel: what a cycle is found in."""

_sequence = itertools.count()


class Gate:
    """Admits at most `concurrency` calls at a time and lets at most `queue` more wait, most urgent first."""

    __slots__ = (
        "_concurrency",
        "_free",
        "_handler",
        "_idle",
        "_queue",
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
        self.closed: MicrokernelError | None = None
        self.calls = 0
        self.failures = 0
        self._handler = handler
        self._concurrency = concurrency
        self._queue = queue
        self._free = concurrency
        self.waiting: list[_Waiter] = []
        self.running: set[_Run] = set()
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
        `DeadlineExceeded`, `Deadlock`, and `Unavailable` when the service stops meanwhile.
        """
        if self._free and not self.waiting and self.closed is None:
            self._free -= 1
        else:
            await self._admit(call)
        self.calls += 1
        token = _current.set(call)
        try:
            return await _Run(self, self._handler(*message), call.deadline)
        except MicrokernelError as error:
            self.failures += 1
            error.service = error.service or self.service
            raise
        except Exception as error:
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
        items: AsyncIterator[Any] = self._handler(*message)
        lease = _Lease(self)
        self.running.add(lease)
        bucket = None if call.deadline is None else self.deadlines.watch(call.deadline, lease)
        try:
            while True:
                if lease.cause is not None:
                    raise lease.cause  # it ended between two pulls
                token = _current.set(call)
                try:
                    item = await _Run(self, items.__anext__(), call.deadline, holds_slot=False)
                finally:
                    _current.reset(token)
                yield item
        except StopAsyncIteration:
            return
        except MicrokernelError as error:
            self.failures += 1
            error.service = error.service or self.service
            raise
        except Exception as error:
            self.failures += 1
            raise from_exception(error, service=self.service) from error
        finally:
            self.running.discard(lease)
            if bucket is not None:
                self.deadlines.forget(bucket, lease)
            try:
                await _close(items)
            finally:
                self._release()

    def close(self, reason: MicrokernelError) -> None:
        """Admit nobody any more; those who wait end with `reason`, those who run go on."""
        self.closed = reason
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            waiter.interrupt(_copy(reason))

    def kill(self, reason: MicrokernelError) -> None:
        """End every call that runs with `reason`."""
        for run in tuple(self.running):
            run.interrupt(_copy(reason))

    async def drained(self) -> None:
        """Return once no admitted call is left."""
        while self.in_flight:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()

    async def _admit(self, call: Call) -> None:
        """Wait for a slot; on return it is ours."""
        if self.closed is not None:
            raise _copy(self.closed)
        if len(self.waiting) >= self._queue:
            raise Overloaded(
                f"{self.target} has {self.in_flight} calls running and {self.queued} waiting, which is its limit",
                service=self.service,
                retry_after=1.0,
            )
        task = asyncio.current_task()
        if task is None:
            raise Unavailable(f"{self.target} was called outside of a task", service=self.service)
        if self._never_free(task, call.chain):
            path = " → ".join((*call.chain, self.target))
            raise Deadlock(f"{self.target} waits for itself: {path}", service=self.service)
        waiter = _Waiter(self, call)
        heapq.heappush(self.waiting, waiter)
        self._waits[task] = self
        bucket = None if call.deadline is None else self.deadlines.watch(call.deadline, waiter)
        try:
            await waiter.granted
        except BaseException:
            # Granted and cancelled before it woke: the slot was reserved for it and must not be lost.
            if waiter.has_slot:
                self._release()
            else:
                waiter.abandon()
            raise
        finally:
            self._waits.pop(task, None)
            if bucket is not None:
                self.deadlines.forget(bucket, waiter)

    def _never_free(self, task: asyncio.Task[Any], chain: tuple[str, ...]) -> bool:
        """Whether each slot here is held by a task that waits, through others, for this one."""
        visited: set[Gate] = set()

        def is_stuck(gate: Gate) -> bool:
            if gate in visited:
                return True  # a cycle; any way out of it has returned False already
            visited.add(gate)
            holders = [run.task for run in gate.running if run.holds_slot]
            # What this very task holds is not tracked until it suspends: the chain of its call knows.
            untracked = max(0, chain.count(gate.target) - holders.count(task))
            if len(holders) + untracked < gate.in_flight:
                return False
            return all(
                holder is task or (holder in self._waits and is_stuck(self._waits[holder])) for holder in holders
            )

        return self.in_flight > 0 and is_stuck(self)

    def _release(self) -> None:
        while self.waiting:
            waiter = heapq.heappop(self.waiting)
            if waiter.grant():
                return  # the slot passes on without becoming free
        self._free += 1
        if self._idle is not None and not self.in_flight:
            self._idle.set()
            self._idle = None


class _Waiter:
    """A call in the queue, ordered by priority and then by arrival."""

    __slots__ = ("_gate", "_order", "granted")

    def __init__(self, gate: Gate, call: Call) -> None:
        self._gate = gate
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
        gate = self._gate
        self.interrupt(
            DeadlineExceeded(
                f"the deadline passed while the call waited for {gate.target} ({gate.in_flight} running)",
                service=gate.service,
                may_have_run=False,
            )
        )

    def abandon(self) -> None:
        """Leave the queue at once, so that callers who gave up do not fill it."""
        waiting = self._gate.waiting
        if self in waiting:
            waiting.remove(self)
            heapq.heapify(waiting)


class _Run:
    """One handler call, driven by hand up to its first suspension and tracked only from there on."""

    __slots__ = ("_bucket", "_cancelled", "_coroutine", "_deadline", "_gate", "cause", "holds_slot", "task")

    def __init__(self, gate: Gate, coroutine: Any, deadline: float | None, *, holds_slot: bool = True) -> None:
        self._gate = gate
        self._cancelled = False
        self.holds_slot = holds_slot
        self._coroutine: Coroutine[Any, Any, Any] = coroutine
        self._deadline = deadline
        self._bucket: int | None = None
        self.cause: MicrokernelError | None = None
        self.task: asyncio.Task[Any] | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine = self._coroutine
        try:
            pending = coroutine.send(None)
        except StopIteration as done:
            return done.value
        self._track()
        try:
            while True:
                try:
                    value = yield pending
                except BaseException as error:  # noqa: BLE001 - the coroutine protocol: what is thrown goes in
                    pending = coroutine.throw(error)
                else:
                    pending = coroutine.send(value)
        except StopIteration as done:
            return done.value
        except asyncio.CancelledError:
            # Interrupted by us, and by nobody else as well: the caller's task goes on with the named error.
            if self.cause is not None and self._forget() == 0:
                raise self.cause from None
            raise
        finally:
            self._forget()

    def interrupt(self, reason: MicrokernelError) -> None:
        """End the handler at its next step with `reason`; the first reason stays."""
        if self.cause is not None or self.task is None:
            return
        self.cause = reason
        if self.task is asyncio.current_task():
            # A handler that ends its own service: let it reach its next await first.
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            self._cancel()

    def expire(self) -> None:
        self.interrupt(
            DeadlineExceeded(
                f"{self._gate.target} did not finish by the deadline",
                service=self._gate.service,
                may_have_run=True,
            )
        )

    def _cancel(self) -> None:
        if self.task is not None:
            self._cancelled = True
            self.task.cancel()

    def _track(self) -> None:
        self.task = asyncio.current_task()
        self._gate.running.add(self)
        if self._deadline is not None:
            self._bucket = self._gate.deadlines.watch(self._deadline, self)

    def _forget(self) -> int:
        """Stop tracking; returns how many cancellations of the task are not ours."""
        if self.task is None:
            return 0
        task, self.task = self.task, None
        self._gate.running.discard(self)
        if self._bucket is not None:
            self._gate.deadlines.forget(self._bucket, self)
        return task.uncancel() if self._cancelled else task.cancelling()


class _Lease(_Run):
    """The whole life of a stream: what a kill finds while the reader is not pulling."""

    __slots__ = ()

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate, None, None)
        self.task = asyncio.current_task()

    def interrupt(self, reason: MicrokernelError) -> None:
        if self.cause is None:
            self.cause = reason


async def _close(items: AsyncIterator[Any]) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(items, "aclose", None)
    if close is not None:
        await close()


def _copy(error: MicrokernelError) -> MicrokernelError:
    """An error of its own for each caller: a shared one would collect everybody's traceback."""
    return type(error)(
        error.message,
        remedy=error.remedy,
        service=error.service,
        field=error.field,
        retry_after=error.retry_after,
        may_have_run=error.may_have_run,
        causes=error.causes,
    )
