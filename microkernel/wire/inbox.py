"""What has come for a reader and is not read yet, and the two readers: of a stream's items and of events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import msgspec

from microkernel.errors import MicrokernelError, Overloaded
from microkernel.events import Event
from microkernel.wire import codec
from microkernel.wire.record import as_record

__all__ = ["Inbox", "Stream", "Subscription"]

MAX_EVENTS = 4096  # that wait for their reader; a stream's items are bounded by its credit


class Inbox:
    """A queue with one reader, and an end that comes after what is in it."""

    __slots__ = ("_ended", "_error", "_left", "_loop", "_waiter", "frames", "number")

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop, left: Callable[[str | None], None]) -> None:
        """`left` is called when the reader goes before the end."""
        self.number = number
        self.frames: deque[codec.Item | codec.Event] = deque()
        self._loop = loop
        self._left = left
        self._waiter: asyncio.Future[None] | None = None
        self._error: MicrokernelError | None = None
        self._ended = False

    def put(self, frame: codec.Item | codec.Event) -> None:
        """One frame has come."""
        self.frames.append(frame)
        if isinstance(frame, codec.Event) and len(self.frames) > MAX_EVENTS:
            self.leave("the reader is too slow")
            self._error = Overloaded(f"the reader of events is too slow: {MAX_EVENTS} wait")
        self._rouse()

    def end(self, error: MicrokernelError | None) -> None:
        """Nothing more will come."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._rouse()

    async def get(self) -> codec.Item | codec.Event | None:
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
            opening, self._opening = self._opening, None
            self._inbox = await opening()
        return self._inbox

    async def _next(self) -> codec.Item | codec.Event:
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


class Stream(_Reader):
    """The items of a stream: iterate once; `aclose`, or the end of an `async with`, ends it early."""

    def __init__(
        self,
        opening: Callable[[], Awaitable[Inbox]],
        more: Callable[[Inbox, int], None],
        shape: Callable[[msgspec.Raw], Any],
        credit: int,
    ) -> None:
        super().__init__(opening)
        self._more = more
        self._shape = shape
        self._top_up = max(1, credit // 2)  # half of it at once: a message for each item would double the traffic
        self._taken = 0

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        frame = await self._next()
        self._taken += 1
        if self._taken >= self._top_up and self._inbox is not None:
            self._more(self._inbox, self._taken)
            self._taken = 0
        return self._shape(frame.body)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Subscription(_Reader):
    """Events as they come; `async with` subscribes and returns when every later event will be seen."""

    def __init__(
        self, opening: Callable[[], Awaitable[Inbox]], confirm: Callable[[], Awaitable[None]], subject: str
    ) -> None:
        super().__init__(opening)
        self._confirm = confirm
        self.subject = subject

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        frame = await self._next()
        assert isinstance(frame, codec.Event)
        return Event(frame.subject, as_record(codec.decode_body(frame.body)), frame.offset)

    async def __aenter__(self) -> Subscription:
        """Raises what the server has against it when events are first asked for."""
        await self._open()
        await self._confirm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
