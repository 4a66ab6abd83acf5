"""What is known of a call from its first suspension on, so that it can be interrupted (hot: once a call that waits).

An interrupt, by the deadline or by a kill, cancels the task; the gate turns the cancellation into the named error on
its way out, unless somebody else cancelled the task as well.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from microkernel.errors import DeadlineExceeded, MicrokernelError
from microkernel.nursery import task_of_loop

if TYPE_CHECKING:
    from microkernel.gate import Gate

__all__ = ["CLOSE_TIMEOUT", "Closing", "Suspended"]

CLOSE_TIMEOUT = 2.0  # seconds for the `finally` blocks of a stream


class Suspended:
    """A handler that waits, in its caller's task; it is in `gate.running` until it has ended."""

    __slots__ = ("_before", "_bucket", "_cancelled", "_gate", "cause", "holds_slot", "task")

    def __init__(self, gate: Gate, deadline: float | None, *, holds_slot: bool) -> None:
        self._gate = gate
        self._cancelled = False
        self.cause: MicrokernelError | None = None
        self.holds_slot = holds_slot
        self.task: asyncio.Task[Any] | None = task_of_loop(gate.loop)
        # A task that cleans up after its own cancellation may call, too: that one is not meant for this call.
        self._before = 0 if self.task is None else self.task.cancelling()
        self._bucket = None if deadline is None else gate.deadlines.watch(deadline, self)
        gate.running[self] = None

    def interrupt(self, reason: MicrokernelError) -> None:
        """End the handler at its next step with `reason`; the first reason stays."""
        if self.cause is not None or self.task is None:
            return
        self.cause = reason
        if self.task is task_of_loop(self._gate.loop):
            # A handler that ends its own service: let it reach its next await first.
            self._gate.loop.call_soon(self._cancel)
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

    def ended(self) -> bool:
        """Stop tracking; whether somebody else has cancelled the task meanwhile."""
        self._gate.running.pop(self, None)
        if self._bucket is not None:
            self._gate.deadlines.forget(self._bucket, self)
        task, self.task = self.task, None
        if task is None:
            return False
        return (task.uncancel() if self._cancelled else task.cancelling()) > self._before

    def _cancel(self) -> None:
        if self.task is not None:
            self._cancelled = True
            self.task.cancel()


class Closing(Suspended):
    """The `finally` blocks of a stream that ended early; they have `CLOSE_TIMEOUT` seconds, whatever its deadline."""

    __slots__ = ()

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate, gate.loop.time() + CLOSE_TIMEOUT, holds_slot=False)

    def expire(self) -> None:
        self.interrupt(
            DeadlineExceeded(
                f"{self._gate.target} did not end within {CLOSE_TIMEOUT:g} s of being closed",
                service=self._gate.service,
                may_have_run=True,
            )
        )
