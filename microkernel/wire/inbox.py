"""What has come for a reader and is not read yet, and the readers: of items, of events, and of a service's state."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeAlias

from microkernel.arrivals import Arrivals
from microkernel.errors import MicrokernelError, Overloaded, PreconditionFailed
from microkernel.events import Event
from microkernel.monitors import Down, Up
from microkernel.wire import codec
from microkernel.wire.record import as_record

__all__ = ["Inbox", "Incoming", "Monitor", "Stream", "Subscription"]

MAX_EVENTS = 4096  # that wait for their reader; a stream's items are bounded by its credit


Incoming: TypeAlias = codec.Item | codec.Event | codec.Up | codec.Down


class Inbox:
    """A queue with one reader, and an end that comes after what is in it."""

    __slots__ = ("_ended", "_error", "_left", "_loop", "_senders", "_waiter", "frames", "number")

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop, left: Callable[[str | None], None]) -> None:
        """`left` is called when the reader goes before the end."""
        self.number = number
        self.frames: deque[Incoming] = deque()
        self._senders: list[asyncio.Future[None]] = []
        self._loop = loop
        self._left = left
        self._waiter: asyncio.Future[None] | None = None
        self._error: MicrokernelError | None = None
        self._ended = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._ended

    def put(self, frame: Incoming) -> None:
        """One frame has come."""
        self.frames.append(frame)
        if len(self.frames) > MAX_EVENTS and type(frame) is not codec.Item:
            self.leave("the reader is too slow")
            self._error = Overloaded(f"the reader of events is too slow: {MAX_EVENTS} wait")
        if self._waiter is not None:
            self._rouse()

    def end(self, error: MicrokernelError | None) -> None:
        """Nothing more will come."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._rouse()
            self.rouse_senders()

    async def room(self) -> None:
        """Return when the other end may have given credit for inputs, or at the end."""
        sender: asyncio.Future[None] = self._loop.create_future()
        self._senders.append(sender)
        await sender

    def rouse_senders(self) -> None:
        """There is credit for inputs."""
        senders, self._senders = self._senders, []
        for sender in senders:
            if not sender.done():
                sender.set_result(None)

    async def get(self) -> Incoming | None:
        """The next frame, None at the end. Raises the error that ended it."""
        while not self.frames:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._ended:
                return None
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.frames.popleft()

    def leave(self, why: str | None = None) -> None:
        """The reader is gone."""
        if not self._ended:
            self._ended = True
            self._left(why)
            self._rouse()
            self.rouse_senders()

    def break_off(self, error: MicrokernelError) -> None:
        """End it with `error`, and tell the other end."""
        if not self._ended:
            self.leave(error.message)
            self._error = error

    def leave_from_anywhere(self) -> None:
        """`leave` for a finaliser, which may run in any thread."""
        if not self._ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.leave, "the reader has dropped the stream")

    def _rouse(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Reader:
    """What streams and subscriptions share: opened by the first read, left when dropped."""

    def __init__(self, opening: Callable[[], Awaitable[Inbox]]) -> None:
        self._opening: Callable[[], Awaitable[Inbox]] | None = opening
        self._opens = asyncio.Lock()
        self._inbox: Inbox | None = None

    async def aclose(self) -> None:
        """End it early; the other end is told at once."""
        self._opening = None
        if self._inbox is not None:
            self._inbox.frames.clear()
            self._inbox.leave()

    def __del__(self) -> None:
        if self._inbox is not None:
            self._inbox.leave_from_anywhere()

    async def _open(self) -> Inbox | None:
        if self._inbox is None and self._opening is not None:
            async with self._opens:  # who sends and who reads may both be the first: one opens, the other waits
                await self._open_once()
        return self._inbox

    async def _open_once(self) -> None:
        opening = self._opening
        if self._inbox is not None or opening is None:
            return
        inbox = await opening()
        if self._opening is None:  # it was closed meanwhile
            inbox.leave()
        else:
            self._inbox, self._opening = inbox, None

    async def _next(self) -> Incoming:
        inbox = await self._open()
        if inbox is None:
            raise StopAsyncIteration
        try:
            frame = await inbox.get()
        except asyncio.CancelledError:
            inbox.leave("the reader was cancelled")
            raise
        if frame is None:
            raise StopAsyncIteration
        return frame


class Stream(Arrivals, _Reader):
    """The items of a stream: iterate once; `aclose`, or the end of an `async with`, ends it early.

    Items that have come are handed over by `Arrivals`, until half of the credit is used up.
    """

    def __init__(
        self,
        opening: Callable[[], Awaitable[Inbox]],
        more: Callable[[Inbox, int], None],
        put: Callable[[Inbox, Any], Awaitable[None]],
        finish: Callable[[Inbox], None],
        shape: Callable[[codec.Item], Any],
        credit: int,
    ) -> None:
        Arrivals.__init__(self)
        _Reader.__init__(self, opening)
        self._put = put
        self._finish = finish
        self._more = more
        self.shape = shape
        self._top_up = max(1, credit // 2)  # half of it at once: a message for each item would double the traffic

    async def first(self) -> Any:
        """The next item where there is none yet, or where the other end is to be given credit."""
        if self.items is None:
            inbox = await self._open()
            if inbox is None:
                raise StopAsyncIteration
            self.items, self.plain = inbox.frames, self._top_up
        elif not self.plain and self._inbox is not None:
            self.plain = self._top_up
            if not self._inbox.is_over:
                self._more(self._inbox, self._top_up)
        frame = await self._next()
        self.plain -= 1
        assert self.shape is not None
        return self.shape(frame)

    async def send(self, item: Any) -> None:
        """Give the handler an item, once it takes one; for handlers that take `Inputs`.

        The first one opens the stream. Raises `PreconditionFailed` after `finish` and after the end.
        """
        inbox = await self._open()
        if inbox is None:
            raise PreconditionFailed("the stream is closed")
        await self._put(inbox, item)

    async def finish(self) -> None:
        """Give the handler no more items: its inputs end."""
        inbox = await self._open()
        if inbox is not None:
            self._finish(inbox)

    def break_off(self, error: MicrokernelError) -> None:
        """End it with `error` for its reader; the handler is told to end."""
        if self._inbox is not None:
            self._inbox.break_off(error)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _Listener(_Reader):
    """What subscriptions and monitors share: `async with` returns when they stand."""

    def __init__(
        self, opening: Callable[[], Awaitable[Inbox]], confirm: Callable[[], Awaitable[None]], subject: str
    ) -> None:
        super().__init__(opening)
        self._confirm = confirm
        self.subject = subject

    async def __aenter__(self) -> Self:
        """Raises what the server has against it when something is first asked for."""
        await self._open()
        await self._confirm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Subscription(_Listener):
    """Events as they come; `async with` subscribes and returns when every later event will be seen."""

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        frame = await self._next()
        assert isinstance(frame, codec.Event)
        return Event(frame.subject, as_record(codec.decode_body(frame.body)), frame.offset)


class Monitor(_Listener):
    """`Up` and `Down` of a service as it comes and goes, beginning with how it is."""

    def __aiter__(self) -> Monitor:
        return self

    async def __anext__(self) -> Up | Down:
        frame = await self._next()
        if isinstance(frame, codec.Up):
            return Up(frame.service, frame.incarnation)
        assert isinstance(frame, codec.Down)
        return Down(frame.service, frame.incarnation, frame.reason)
