"""The promises of the kernel as checks that can fail: on a node while it runs, and on calls as their callers see them.

Limits are looked at after every round of the loop. A call that is made through `Promises.call` must end by its deadline
with a result or with an error that says what happened; a cancellation may only come from whoever cancelled.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, NoReturn

from microkernel.deadlines import BUCKET
from microkernel.ensemble import Balanced
from microkernel.errors import MicrokernelError
from microkernel.port import MAX_SENDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

    from microkernel.gate import Gate
    from microkernel.kernel import Kernel
    from microkernel.service import Handler
    from microkernel.testing.loop import SimulatedLoop

__all__ = ["PromiseBroken", "Promises"]

SLACK = 0.005  # seconds: the steps of a busy round each take a moment of the virtual clock


class PromiseBroken(AssertionError):
    """One of the five promises did not hold."""


class Promises:
    """Watches one kernel at a time."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.calls = 0
        self._broken: PromiseBroken | None = None
        self._loop = loop
        self._kernel: Kernel | None = None
        loop.watch(self._look)

    def watch(self, kernel: Kernel) -> None:
        """From now on, look at `kernel` after every round of the loop."""
        self._kernel = kernel

    def leave(self) -> None:
        """Look no more."""
        self._kernel = None

    def broken(self, how: str, why: BaseException | None = None) -> NoReturn:
        """Raise `PromiseBroken`, here and at the end of this round: a handler's error may be caught on its way."""
        error = PromiseBroken(how)
        error.__cause__ = why
        self._broken = self._broken or error
        raise error

    async def call(self, what: str, work: Awaitable[Any], *, deadline: float | None = None) -> Any:
        """Await the call `work`; its result, or the error that it ended with. Raises `PromiseBroken`."""
        self.calls += 1
        began = self._loop.time()
        try:
            return await work
        except StopAsyncIteration:
            raise  # the end of a stream
        except MicrokernelError as error:
            if not error.message:
                self.broken(f"{what} ended with {type(error).__name__} and no word why", error)
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self.broken(f"{what} ended with a cancellation that nobody asked for", error)
            raise
        except Exception as error:  # noqa: BLE001 - that there is none but ours is the promise
            self.broken(f"{what} ended with {error!r}, which is no error of the kernel's", error)
        finally:
            late = self._loop.time() - began - (math.inf if deadline is None else deadline)
            if late > BUCKET + SLACK:
                self.broken(f"{what} ended {late:.3f} s after its deadline of {deadline:g} s")

    def check_rest(self) -> None:
        """All calls have ended: no slot may be taken, nobody may wait. Raises `PromiseBroken`."""
        kernel = self._kernel
        assert kernel is not None
        for _, gate in _gates(kernel):
            if gate.in_flight or gate.queued or gate.running:
                self.broken(
                    f"{gate.target} holds {gate.in_flight} slots, {len(gate.running)} runs and {gate.queued} "
                    "waiters after all calls have ended"
                )
        if kernel.router.waits:
            self.broken(f"{len(kernel.router.waits)} tasks are still written down as waiting")

    def _look(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._kernel is None:
            return
        for handler, gate in _gates(self._kernel):
            if gate.free == handler.concurrency and not gate.waiting:
                continue  # at rest, as most of them are, and this is half of what a simulation does
            if not 0 <= gate.in_flight <= handler.concurrency:
                self.broken(f"{gate.target} runs {gate.in_flight} calls of {handler.concurrency}")
            if gate.queued > handler.queue:
                self.broken(f"{gate.target} has {gate.queued} waiters of {handler.queue}")
        if len(self._kernel.router.sends) > MAX_SENDS:
            self.broken(f"{len(self._kernel.router.sends)} one-way messages are on their way")


def _gates(kernel: Kernel) -> Iterator[tuple[Handler, Gate]]:
    """All gates of a node, those of several instances too."""
    for entry in kernel.router.registry:
        for binding in entry.bindings.values():
            gate = binding.gate
            if isinstance(gate, Balanced):
                yield from ((binding.handler, each) for each in gate.gates if each is not None)
            else:
                yield binding.handler, gate
