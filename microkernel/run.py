"""The fast path of a gated call (hot: once a message): a slot is taken, the handler runs, the slot is given back.

The handler runs in its caller's task: no task, no future and no queue, which gives cancellation, context and tracebacks
for nothing. Its coroutine is driven by hand up to its first suspension, so that a call which never suspends is never
tracked. `_run.c` is the same in C for where a compiler was at hand: 0.15 us a call beyond a bare await instead of 0.5.
The classes here are the reference; `MICROKERNEL_PURE=1` chooses them, and the tests of gates run with both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Token
from typing import TYPE_CHECKING, Any

from microkernel.begin import Rest, begin
from microkernel.message import Call, _current
from microkernel.nursery import task_of_loop

if TYPE_CHECKING:
    from microkernel.gate import Gate
    from microkernel.suspended import Suspended

__all__ = ["Admission", "Budget", "Driven", "Method", "Pulls", "leave"]

LEAST_STRIDE, MOST_STRIDE, FIRST_STRIDE = 1, 64, 16  # calls from one look at the clock to the next


class Budget:
    """How long inline calls may keep the loop from others: past `seconds` the next one lets the loop have its turn.

    One for all gates of a loop. The clock is looked at once in so many calls, more often the longer they take.
    """

    __slots__ = ("_armed", "_began", "_countdown", "_loop", "_sampled", "_seconds", "_stride")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._armed = False
        self._began = self._sampled = 0.0
        self._countdown = self._stride = FIRST_STRIDE

    def spent(self) -> bool:
        """Count one call; whether the loop is to have its turn before it."""
        self._countdown -= 1
        if self._countdown > 0:
            return False
        now = time.monotonic()
        if not self._armed:
            self._loop.call_soon(self.turn)
            self._armed = True
            self._began = self._sampled = now
            self._countdown = self._stride
            return False
        each = (now - self._sampled) / self._stride
        fit = int(min(MOST_STRIDE, self._seconds / 8 / each)) if each > 0 else MOST_STRIDE
        self._stride = max(LEAST_STRIDE, fit)
        self._sampled = now
        self._countdown = self._stride
        return now - self._began >= self._seconds

    def turn(self) -> None:
        """The loop has had its turn: count anew."""
        self._armed = False
        self._countdown = self._stride


class Admission:
    """What a gate's fast path looks at.

    `free` are slots that nobody has; `barred` sends calls the slow way and ends there: the gate is closed, somebody
    waits, or somebody wants to hear of the end. A gate has the slow ways: `slow`, `suspended`, `failure`, `release`.
    """

    __slots__ = ("barred", "budget", "calls", "failures", "free", "handler")

    def __init__(self, handler: Callable[..., Any], free: int, budget: Budget) -> None:
        self.handler = handler
        self.free = free
        self.budget = budget
        self.calls = 0
        self.failures = 0
        self.barred = False

    async def call(self: Any, message: tuple[Any, ...], call: Call) -> Any:
        """Run the handler; see `Gate`."""
        if self.budget.spent():
            await _turn()
        if self.barred or self.free <= 0:
            return await self.slow(message, call)
        self.free -= 1
        return await self.admitted(message, call)

    async def admitted(self: Any, message: tuple[Any, ...], call: Call) -> Any:
        """Run the handler in a slot that is the caller's already."""
        self.calls += 1
        token = _current.set(call)
        driven = None
        try:
            driven = Driven(self.handler(*message), lambda: self.suspended(call, True))
            return await driven
        except GeneratorExit:
            raise
        except BaseException as error:
            raised = self.failure(None if driven is None else driven.tracker, error)
            if raised is error:
                raise
            raise raised from raised.__cause__
        finally:
            leave(token)
            if self.barred:
                self.release()
            else:
                self.free += 1


def leave(token: Token[Call | None]) -> None:
    """Leave the call of `token`.

    The context may be another one than it was entered in, if a collector closes it: there is nothing to put back then,
    and what else is to be done at the end must not be missed.
    """
    try:  # noqa: SIM105 - suppress() costs as much as half a call
        _current.reset(token)
    except ValueError:
        pass


class Driven:
    """A coroutine driven by hand; `track` is called when it first suspends, and hears of its end."""

    __slots__ = ("_coroutine", "_track", "tracker")

    def __init__(self, coroutine: Any, track: Callable[[], Suspended]) -> None:
        self._coroutine: Coroutine[Any, Any, Any] = coroutine
        self._track = track
        self.tracker: Suspended | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        begun = begin(self._coroutine)
        if type(begun) is not Rest:
            return begun
        self.tracker = self._track()
        try:
            result = yield from begun.__await__()
        except GeneratorExit:
            self.tracker.ended()
            raise
        self.tracker.ended()
        return result


class Pulls:
    """An open stream: `next` is its generator's `__anext__` while items can be pulled without a further look.

    A stream has the slow ways: `first`, which is pulled when `next` is None, and `over`.
    """

    __slots__ = ("call", "gate", "loop", "next", "task")

    def __init__(self) -> None:
        self.next: Callable[[], Awaitable[Any]] | None = None
        self.call: Call | None = None
        self.gate: Gate | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[Any] | None = None

    def __aiter__(self: Any) -> Any:
        return self

    def __anext__(self: Any) -> Awaitable[Any]:
        if self.next is None:
            first: Awaitable[Any] = self.first()
            return first
        pulled: Awaitable[Any] = self._pull(self.next)
        return pulled

    async def _pull(self: Any, pull: Callable[[], Awaitable[Any]]) -> Any:
        self.task = task_of_loop(self.loop)  # a stream may be handed from one reader to the next
        token = _current.set(self.call)
        driven = None
        try:
            driven = Driven(pull(), lambda: self.gate.suspended(self.call, False))
            return await driven
        except GeneratorExit:
            raise
        except BaseException as error:
            raised = self.over(None if driven is None else driven.tracker, error)
            if raised is error:
                raise
            raise raised from raised.__cause__
        finally:
            leave(token)


class Method:
    """The right to call one handler, bound once: `await method(message)`.

    `slow(message)` binds, converts and waits; `child(parent)` makes the call of somebody who answers one, or None if it
    is to go the slow way; `root`, the call of all others, is made once.
    """

    __slots__ = ("_child", "_kind", "_root", "gate", "slow")

    def __init__(self, slow: Callable[[Any], Coroutine[Any, Any, Any]], child: Callable[[Call], Call | None]) -> None:
        self.slow = slow
        self._child = child
        self.gate: Any = None
        self._kind: Any = None
        self._root: Any = None

    def bind(self, gate: Any, kind: Any, root: Call) -> None:
        """From now on calls go to `gate`, whose messages are of type `kind` (None: it takes none)."""
        self.gate, self._kind, self._root = gate, kind, root

    def __call__(self, message: Any = None, /) -> Coroutine[Any, Any, Any]:
        gate = self.gate
        plain = self._kind is None if message is None else type(message) is self._kind
        if gate is None or not plain:
            return self.slow(message)
        parent = _current.get()
        call = self._root if parent is None else self._child(parent)
        return self.slow(message) if call is None else self._fast(gate, message, call)

    async def _fast(self, gate: Any, message: Any, call: Call) -> Any:
        if gate.budget.spent():
            await _turn()
        if gate.barred or gate.free <= 0:
            return await self.slow(message)
        gate.free -= 1
        return await gate.admitted(() if message is None else (message,), call)


@types.coroutine
def _turn() -> Generator[None, None, None]:
    """Let the loop have its turn; what `sleep(0)` does."""
    yield


if not TYPE_CHECKING and os.environ.get("MICROKERNEL_PURE", "0") in {"", "0"}:
    with contextlib.suppress(ImportError):  # built where there was no compiler: the classes above do the same, slower
        from microkernel._run import Admission, Budget, Method, Pulls
