"""A stream as its reader holds it (hot: once an item): opened by the first read, run only as far as it is read.

The plain pull is in `run`. Here are the opening, the end, and an interrupt between two pulls: the reader is told at its
next one. A stream that is dropped gives its slot back; its generator is then closed by the loop, as any other.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from microkernel.errors import DeadlineExceeded, Invalid, MicrokernelError
from microkernel.inputs import Inputs
from microkernel.message import Call, _current
from microkernel.nursery import task_of_loop
from microkernel.run import Driven, Pulls, leave
from microkernel.spans import code_of
from microkernel.suspended import Closing

if TYPE_CHECKING:
    from microkernel.gate import Gate
    from microkernel.suspended import Suspended

__all__ = ["Lease", "Opening", "Stream"]

Opening = Callable[[], Awaitable["tuple[Gate, tuple[Any, ...], Call]"]]
"""Admits the stream: the gate in which it has a slot, the handler's arguments, and the call."""


class Stream(Pulls):
    """The items of a stream: iterate once, `aclose` (or `async with`) to end it early.

    The handler runs in the reader's task, only as far as it is read: a slow reader slows it down by itself.
    """

    __slots__ = ("__weakref__", "_bucket", "_generator", "_lease", "_opening", "cause", "inputs", "on_end")

    def __init__(self, opening: Opening, inputs: Inputs[Any] | None = None) -> None:
        super().__init__()
        self.inputs = inputs
        self.cause: MicrokernelError | None = None
        self.on_end: Callable[[str], None] | None = None  # called with the code that the stream ended with
        self._opening: Opening | None = opening
        self._generator: AsyncGenerator[Any, None] | None = None
        self._bucket: int | None = None
        self._lease: Lease | None = None

    async def first(self) -> Any:
        """The item of a pull that is not a plain one: the first, or one after the end."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            self._begin(*await opening())
            return await self.__anext__()
        cause, self.cause = self.cause, None
        if cause is None:
            raise StopAsyncIteration
        await self._shut(cause)
        raise cause

    def over(self, tracker: Suspended | None, error: BaseException) -> BaseException:
        """The generator has ended with `error`; what the reader gets."""
        gate = self.gate
        assert gate is not None
        if isinstance(error, StopAsyncIteration):
            if tracker is not None:
                tracker.ended()
            self._end()
            return error
        raised = gate.failure(tracker, error)
        self._end(raised)
        return raised

    async def send(self, item: Any) -> None:
        """Give the handler an item, once it has read most of those before; for handlers that take `Inputs`.

        It reads as far as it is read itself: send in one task and read in another. Raises `Invalid` where it takes
        none, or not this, and `PreconditionFailed` after `finish` and after the end.
        """
        if self.inputs is None:
            raise Invalid("this stream takes no items from its reader")
        await self.inputs.put(item)

    async def finish(self) -> None:
        """Give the handler no more items: its inputs end."""
        if self.inputs is not None:
            self.inputs.finish()

    async def aclose(self) -> None:
        """End the stream; the handler's `finally` blocks have run when this returns, or had 2 s to."""
        self._opening = None
        if self.inputs is not None:
            self.inputs.close()
        if self._generator is not None:
            await self._shut()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._generator is not None and self.loop is not None and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._end)  # a collector may run in any thread

    def interrupt(self, reason: MicrokernelError) -> None:
        """End the stream with `reason` at the reader's next pull; the first reason stays."""
        if self.cause is None:
            self.cause = reason
            self.next = None

    def _begin(self, gate: Gate, message: tuple[Any, ...], call: Call) -> None:
        gate.calls += 1
        self.gate, self.call, self.loop = gate, call, gate.loop
        self.task = task_of_loop(gate.loop)
        try:
            generator = gate.handler(*message)
        except BaseException:
            gate.release()
            raise
        self._generator = generator
        self.next = generator.__anext__
        self._lease = lease = Lease(self, gate)
        gate.running[lease] = None
        if call.deadline is not None:
            self._bucket = gate.deadlines.watch(call.deadline, lease)

    async def _shut(self, cause: BaseException | None = None) -> None:
        """Close the generator in the name of its call, and give the slot back."""
        generator, gate = self._generator, self.gate
        if generator is None or gate is None:
            return
        self.next = None
        self.task = task_of_loop(gate.loop)
        token = _current.set(self.call)
        driven = Driven(generator.aclose(), lambda: Closing(gate))
        try:
            await driven
        except BaseException as error:
            raised = gate.failure(driven.tracker, error)
            if raised is error:
                raise
            raise raised from raised.__cause__
        finally:
            leave(token)
            self._end(cause)

    def _end(self, cause: BaseException | None = None) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(code_of(cause))
        lease, self._lease = self._lease, None
        if lease is None or self.gate is None:
            return
        self._generator = self.next = self.cause = None
        if self.inputs is not None:
            self.inputs.close()
        self.gate.running.pop(lease, None)
        if self._bucket is not None:
            self.gate.deadlines.forget(self._bucket, lease)
        self.gate.release()


class Lease:
    """The slot of an open stream, as its gate knows it: reached by a kill and the deadline between two pulls.

    It does not keep the stream: one that its reader has dropped is to end.
    """

    __slots__ = ("_gate", "_stream")

    holds_slot = True

    def __init__(self, stream: Stream, gate: Gate) -> None:
        self._stream = weakref.ref(stream)
        self._gate = gate

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """Who has read last."""
        stream = self._stream()
        return None if stream is None else stream.task

    def interrupt(self, reason: MicrokernelError) -> None:
        """See `Stream.interrupt`."""
        if (stream := self._stream()) is not None:
            stream.interrupt(reason)

    def expire(self) -> None:
        """The deadline has passed."""
        gate = self._gate
        why = f"{gate.target} did not finish by the deadline"
        self.interrupt(DeadlineExceeded(why, service=gate.service, may_have_run=True))
