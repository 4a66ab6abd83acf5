"""One end of the link between the kernel and a service away from its loop (hot: once a message).

Both ends call, answer, stream with credit and cancel, whatever the frames travel on. Who is cancelled tells the other
end and waits for its answer for a moment, so that a handler's `finally` blocks have run as they have in the caller's
own task. When the link is lost, everything that is open on it ends at once with the reason.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, ClassVar, Protocol

from microkernel.errors import CallCancelled, MicrokernelError, from_exception
from microkernel.isolation import frames
from microkernel.isolation.frames import Ask, Context, Frame, Options
from microkernel.isolation.items import Credit, Items
from microkernel.isolation.packing import Packing

__all__ = ["Items", "Link", "Serves", "Transport"]

GRACE = 0.5  # seconds that a cancelled call waits for its handler's end; a stream that is closed has CLOSE_TIMEOUT
END_TIMEOUT = 2.0  # seconds for the tasks of a link to end


class Transport(Protocol):
    """What frames travel on, in order."""

    def post(self, frame: Frame) -> None:
        """Send `frame` with whatever else this turn of the loop sends; after a loss it goes nowhere."""

    @property
    def is_full(self) -> bool:
        """Whether so much waits to go out that producers wait."""

    async def room(self) -> None:
        """Return once it is not full, or lost."""


class Serves(Protocol):
    """What this end answers."""

    async def call(self, frame: Ask) -> tuple[Any, Any]:
        """The packed result of a request and the name of its type."""

    def stream(self, frame: frames.Open) -> AsyncGenerator[tuple[Any, Any], None]:
        """The packed items of a stream. What this does itself, before the first item, is done in order of arrival."""

    def tell(self, frame: frames.Send | frames.Publish) -> None:
        """Take a one-way message; never raises."""

    def input(self, frame: frames.Input | frames.Finish) -> None:
        """The reader of a stream sends an item into it, or has finished."""

    def stream_ended(self, number: int) -> None:
        """The stream of that number has ended, whether or not it has begun."""


class Link:
    """One end."""

    def __init__(self, packing: Packing, serves: Serves, peer: str) -> None:
        """`peer` names the other end in errors. Nothing may be sent before `transport` is set."""
        self.packing = packing
        self.transport: Transport
        self._serves = serves
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[frames.Result]] = {}
        self._items: dict[int, Items] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._credit: dict[int, Credit] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: MicrokernelError | None = None

    @property
    def serving(self) -> int:
        """Requests and streams of the other end that have not ended here."""
        return len(self._serving)

    async def call(self, to: str, body: Any, context: Context | None = None, options: Options | None = None) -> Any:
        """The `Result` of a request. Raises what it has ended with there, and why the link is lost."""
        self._raise_if_lost()
        number = next(self._ids)
        answer = self._answers[number] = self._loop.create_future()
        self.transport.post(Ask(number, to, body, context, options))
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.cancelled() and self._lost is None:
                answer = self._answers[number] = self._loop.create_future()  # the first was cancelled with its waiter
                self.transport.post(frames.Cancel(number))
                await _ended(answer, GRACE)
            raise
        finally:
            self._answers.pop(number, None)

    def open(
        self, to: str, body: Any, credit: int, context: Context | None = None, options: Options | None = None
    ) -> Items:
        """Ask for a stream now; it runs at most `credit` items ahead of its reader."""
        self._raise_if_lost()
        number = next(self._ids)
        items = self._items[number] = Items(number, credit, self.post, self._items)
        self.transport.post(frames.Open(number, to, body, credit, context, options))
        return items

    def drop(self, items: Items) -> None:
        """Nobody holds `items` any more: end it, from whatever thread the collector runs in."""
        if not items.ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(items.abandon)

    def post(self, frame: Frame) -> None:
        """Send a one-way frame."""
        if self._lost is None:
            self.transport.post(frame)

    def received(self, frame: frames.Known) -> None:
        """A frame has come."""
        if self._lost is None:
            self._RECEIVERS[type(frame)](self, frame)

    def lost(self, reason: MicrokernelError) -> None:
        """Nothing crosses any more: what is open ends with `reason`, what runs for the other end is cancelled."""
        if self._lost is not None:
            return
        self._lost = reason
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(_copy(reason))
        for items in tuple(self._items.values()):
            items.end(_copy(reason))
        for task in self._tasks:
            task.cancel()

    async def close(self, reason: MicrokernelError) -> None:
        """`lost`, and wait for what ran for the other end."""
        self.lost(reason)
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=END_TIMEOUT)

    # What the other end has asked for

    def _ask(self, frame: Ask) -> None:
        self._start(frame.id, frame.to, self._answer(frame))

    def _open(self, frame: frames.Open) -> None:
        try:
            # Called here and not in the task: a subscription stands before whatever comes next is looked at.
            items = self._serves.stream(frame)
        except Exception as error:  # noqa: BLE001 - it is for who has asked
            self._fail(frame.id, from_exception(error))
            return
        self._credit[frame.id] = Credit(frame.credit)
        task = self._start(frame.id, frame.to, self._feed(frame, items))
        task.add_done_callback(lambda _: self._serves.stream_ended(frame.id))

    def _more_credit(self, frame: frames.Credit) -> None:
        if (credit := self._credit.get(frame.id)) is not None:
            credit.add(frame.n)

    def _cancel(self, frame: frames.Cancel) -> None:
        if (task := self._serving.get(frame.id)) is not None:
            task.cancel()

    def _input(self, frame: frames.Input | frames.Finish) -> None:
        if frame.id in self._serving:
            self._serves.input(frame)

    def _tell(self, frame: frames.Send | frames.Publish) -> None:
        self._serves.tell(frame)

    def _start(self, number: int, to: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # A context of its own: that of whoever made the link has nothing to do with this call.
        task = self._loop.create_task(work, name=f"{self._peer}:{to}", context=contextvars.Context())
        self._serving[number] = task
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            del self._serving[number]
            self._credit.pop(number, None)
            work.close()  # one that was cancelled before its first step has never been awaited
            if task.cancelled():
                self._fail(number, CallCancelled(f"the call to {to} was cancelled"))
            elif (error := task.exception()) is not None:
                self._fail(number, from_exception(error))

        task.add_done_callback(ended)
        return task

    async def _answer(self, frame: Ask) -> None:
        body, kind = await self._serves.call(frame)
        if self.transport.is_full:
            await self.transport.room()
        self.post(frames.Result(frame.id, body, kind))

    async def _feed(self, frame: frames.Open, items: AsyncGenerator[tuple[Any, Any], None]) -> None:
        credit = self._credit[frame.id]
        async with aclosing(items):
            while True:
                await credit.take()
                if self.transport.is_full:
                    await self.transport.room()
                try:
                    body, kind = await anext(items)
                except StopAsyncIteration:
                    break
                self.post(frames.Item(frame.id, body, kind))
        self.post(frames.End(frame.id))

    def _fail(self, number: int, error: MicrokernelError) -> None:
        self.post(frames.Error(number, self.packing.pack_error(error)))

    # How what this end has asked for goes on

    def _result(self, frame: frames.Result) -> None:
        answer = self._answers.get(frame.id)
        if answer is not None and not answer.done():
            answer.set_result(frame)

    def _error(self, frame: frames.Error) -> None:
        if (items := self._items.get(frame.id)) is not None:
            items.end(self.packing.unpack_error(frame.error))
            return
        answer = self._answers.get(frame.id)
        if answer is not None and not answer.done():
            answer.set_exception(self.packing.unpack_error(frame.error))

    def _item(self, frame: frames.Item) -> None:
        if (items := self._items.get(frame.id)) is not None:
            items.put(frame)

    def _room(self, frame: frames.Room) -> None:
        if (items := self._items.get(frame.id)) is not None:
            items.room.add(frame.n)

    def _end(self, frame: frames.End) -> None:
        if (items := self._items.get(frame.id)) is not None:
            items.end(None)

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise _copy(self._lost, may_have_run=False)

    _RECEIVERS: ClassVar[dict[type, Callable[[Link, Any], None]]] = {
        frames.Ask: _ask,
        frames.Open: _open,
        frames.Result: _result,
        frames.Item: _item,
        frames.End: _end,
        frames.Error: _error,
        frames.Credit: _more_credit,
        frames.Cancel: _cancel,
        frames.Input: _input,
        frames.Finish: _input,
        frames.Room: _room,
        frames.Send: _tell,
        frames.Publish: _tell,
    }


async def _ended(answer: asyncio.Future[frames.Result], seconds: float) -> None:
    """Wait for `answer` and look at none of it."""
    await asyncio.wait([answer], timeout=seconds)
    if answer.done() and not answer.cancelled():
        answer.exception()


def _copy(error: MicrokernelError, *, may_have_run: bool | None = None) -> MicrokernelError:
    """An error of its own for each who waits."""
    return type(error)(
        error.message,
        remedy=error.remedy,
        service=error.service,
        field=error.field,
        retry_after=error.retry_after,
        may_have_run=error.may_have_run if may_have_run is None else may_have_run,
        causes=error.causes,
    )
