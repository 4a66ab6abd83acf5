"""One handler at work (hot: once a message): driven by hand, and tracked only from its first suspension on.

What has suspended can be interrupted, by its deadline or by a kill: its task is cancelled, and the cancellation becomes
the named error on its way out, unless somebody else cancelled the task as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any

from microkernel.errors import DeadlineExceeded, Internal, MicrokernelError

if TYPE_CHECKING:
    from microkernel.gate import Gate

__all__ = ["CLOSE_TIMEOUT", "Closing", "Lease", "Run"]

CLOSE_TIMEOUT = 2.0  # seconds for the `finally` blocks of a stream


class Run:
    """A handler's coroutine, awaited in its caller's task; it is in `gate.running` while it is suspended."""

    __slots__ = ("_before", "_bucket", "_cancelled", "_coroutine", "_deadline", "_gate", "cause", "holds_slot", "task")

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
        except asyncio.CancelledError as error:
            raise self._stray() from error  # it never waited, so nobody can have cancelled it
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
        except asyncio.CancelledError as error:
            if self._forget():
                raise  # somebody else cancelled the task, whether or not we did
            if self.cause is not None:
                raise self.cause from None
            raise self._stray() from error
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
        task = self.task = asyncio.current_task()
        # A task that cleans up after its own cancellation may call, too: that one is not meant for this run.
        self._before = 0 if task is None else task.cancelling()
        self._gate.running.add(self)
        if self._deadline is not None:
            self._bucket = self._gate.deadlines.watch(self._deadline, self)

    def _forget(self) -> bool:
        """Stop tracking; whether somebody else has cancelled the task meanwhile."""
        if self.task is None:
            return False
        task, self.task = self.task, None
        self._gate.running.discard(self)
        if self._bucket is not None:
            self._gate.deadlines.forget(self._bucket, self)
        return (task.uncancel() if self._cancelled else task.cancelling()) > self._before

    def _stray(self) -> Internal:
        gate = self._gate
        return Internal(f"{gate.target} raised CancelledError, and nobody cancelled the call", service=gate.service)


class Lease(Run):
    """The whole life of a stream: what a kill finds while the reader is not pulling."""

    __slots__ = ()

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate, None, None)
        self.task = asyncio.current_task()

    def interrupt(self, reason: MicrokernelError) -> None:
        if self.cause is None:
            self.cause = reason


class Closing(Run):
    """The `finally` blocks of a stream that ended early; they have `CLOSE_TIMEOUT` seconds, whatever its deadline."""

    __slots__ = ()

    def __init__(self, gate: Gate, closing: Any) -> None:
        expires = asyncio.get_running_loop().time() + CLOSE_TIMEOUT
        super().__init__(gate, closing, expires, holds_slot=False)

    def expire(self) -> None:
        self.interrupt(
            DeadlineExceeded(
                f"{self._gate.target} did not end within {CLOSE_TIMEOUT:g} s of being closed",
                service=self._gate.service,
                may_have_run=True,
            )
        )
