"""Frames from one thread's loop to another's: a queue, and one wake-up for a burst. Hot: once a message."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from microkernel.isolation.frames import Frame, Known

__all__ = ["Mailbox"]

FULL = 4096  # frames that wait: above it producers wait
BREATH = 256  # frames taken before the loop's others get their turn


class Mailbox:
    """One direction. `post` and `room` belong to the sender's loop, `deliver` is called on the receiver's."""

    def __init__(self, receiver: asyncio.AbstractEventLoop, deliver: Callable[[Known], None]) -> None:
        self._sender = asyncio.get_running_loop()
        self._receiver = receiver
        self._deliver = deliver
        self._frames: deque[Frame] = deque()  # its ends are safe to use from two threads
        self._called = False
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False

    def post(self, frame: Frame) -> None:
        """Send `frame`; after `close`, or once the receiver's loop has ended, it goes nowhere."""
        if self._closed:
            return
        self._frames.append(frame)
        # The receiver lowers the flag before it looks at the queue, so a frame that sees it raised is still found.
        if not self._called:
            self._called = True
            self._call()

    @property
    def is_full(self) -> bool:
        """Whether producers wait."""
        return len(self._frames) >= FULL

    async def room(self) -> None:
        """Return once it is not full, or closed."""
        while self.is_full and not self._closed:
            waiter = self._sender.create_future()
            self._waiters.append(waiter)
            await waiter

    def close(self) -> None:
        """Take no more frames; those that wait are dropped. On the sender's loop."""
        self._closed = True
        self._frames.clear()
        self._wake()

    def _call(self) -> None:
        try:
            self._receiver.call_soon_threadsafe(self._take)
        except RuntimeError:  # its loop has closed: nobody is left to hear of it
            self._closed = True
            self._frames.clear()

    def _take(self) -> None:
        self._called = False
        for _ in range(BREATH):
            try:
                frame = self._frames.popleft()
            except IndexError:
                break
            self._deliver(frame)  # type: ignore[arg-type] # every frame is one of those known
        else:
            self._called = True
            self._receiver.call_soon(self._take)
        if self._waiters and not self.is_full:
            try:
                self._sender.call_soon_threadsafe(self._wake)
            except RuntimeError:
                self._closed = True

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
