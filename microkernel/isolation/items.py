"""The reader's end of a stream over a link, and the credit that bounds the other end (hot: once an item)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from microkernel.errors import CallCancelled, MicrokernelError, PreconditionFailed
from microkernel.isolation import frames
from microkernel.suspended import CLOSE_TIMEOUT

__all__ = ["Credit", "Items"]


class Items:
    """The reader's end of a stream: `Item` frames in order, then its end. For one reader."""

    __slots__ = ("_credit", "_ended", "_error", "_frames", "_number", "_open", "_post", "_taken", "_wake", "room")

    def __init__(self, number: int, credit: int, post: Callable[[frames.Frame], None], open_: dict[int, Items]) -> None:
        """`post` sends a frame; `open_` are the streams that are open, by number."""
        self._number = number
        self._post = post
        self._open = open_
        self.room = Credit(0)  # for inputs
        self._credit = credit
        self._taken = 0
        self._frames: deque[frames.Item] = deque()
        self._error: MicrokernelError | None = None
        self._ended = False
        self._wake: asyncio.Future[None] | None = None

    def __aiter__(self) -> Items:
        return self

    async def __anext__(self) -> frames.Item:
        while not self._frames:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._ended:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        self._taken += 1
        if self._taken >= max(1, self._credit // 2) and not self._ended:
            # half of it at once: a frame for each item would double the traffic
            self._post(frames.Credit(self._number, self._taken))
            self._taken = 0
        return self._frames.popleft()

    async def __aenter__(self) -> Items:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def send(self, body: Any) -> None:
        """Send an input once there is room for it. Raises `PreconditionFailed` after the stream's end."""
        await self.room.take()
        if self._ended:
            self.room.add(1)  # for the next one who asks
            raise PreconditionFailed("the stream takes no more items", may_have_run=False)
        self._post(frames.Input(self._number, body))

    def finish(self) -> None:
        """Send no more inputs."""
        if not self._ended:
            self._post(frames.Finish(self._number))

    async def aclose(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """End it early; returns when it has ended at the other end too, after `timeout` seconds at the latest.

        Raises what its `finally` blocks have raised.
        """
        if self._ended:
            return
        self.cancel()
        try:
            async with asyncio.timeout(timeout):
                while not self._ended:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
        except TimeoutError:
            pass  # it is left to itself there: nobody reads what it still has
        finally:
            self._wake = None
            self._open.pop(self._number, None)
        error, self._error = self._error, None
        if error is not None and not isinstance(error, CallCancelled):
            raise error

    @property
    def ended(self) -> bool:
        """Whether no more items will come."""
        return self._ended

    def abandon(self) -> None:
        """End it early without waiting; a reader that waits sees the end."""
        self.cancel()
        self.end(None)

    def cancel(self) -> None:
        """Tell the other end that nobody reads any more."""
        self._frames.clear()
        if not self._ended:
            self._post(frames.Cancel(self._number))

    def put(self, frame: frames.Item) -> None:
        """An item has come."""
        self._frames.append(frame)
        self._rouse()

    def end(self, error: MicrokernelError | None) -> None:
        """No more will come."""
        self._ended = True
        self._error = error
        self.room.add(1)  # who waits to send is told
        self._open.pop(self._number, None)
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Credit:
    """How many items the other end can still take."""

    __slots__ = ("_left", "_waiting")

    def __init__(self, left: int) -> None:
        self._left = left
        self._waiting: deque[asyncio.Future[None]] = deque()

    def add(self, count: int) -> None:
        self._left += count
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def take(self) -> None:
        while self._left < 1:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            finally:
                self._waiting.remove(waiter)
        self._left -= 1
