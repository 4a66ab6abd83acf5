"""Moves frames between a session and its websocket: one reader, one writer, one timer. Hot: once a frame.

All that is put into the outbox during one turn of the loop goes out as one frame, because the writer wakes
after whoever put it there has run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
from aiohttp import web

from microkernel.wire.codec import LOST, CloseCode, reason_text
from microkernel.wire.session import Action, Close, Session

__all__ = ["Pump"]

FAREWELL = 1.0  # seconds that the last messages and the close frame may take
BREATH = 64  # frames read before others get their turn: a full socket buffer would keep the loop to itself

_DEAF = (CloseCode.SLOW_READER, CloseCode.NO_ANSWER)  # who is closed for this does not take what waits
_END = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


class Pump:
    """Runs one end of a link until either end closes it."""

    def __init__(
        self,
        socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
        session: Session,
        carry_out: Callable[[Action], None],
        abort: Callable[[], None],
        *,
        reads_below: float | None = None,
    ) -> None:
        """`carry_out` gets every action but `Close`; `abort` breaks the connection without farewell.

        With `reads_below`, nothing is read while more than that share of the buffer waits to go out. One end of a
        link at most may have it: two would wait for each other.
        """
        self._socket = socket
        self._session = session
        self._carry_out = carry_out
        self._abort = abort
        self._reads_below = reads_below
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._closing: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []

    async def run(self) -> Close:
        """Pump until the link has ended; says how. Nothing is left running, even when this is cancelled."""
        reader = self._loop.create_task(self._read(), name="wire reader")
        writer = self._loop.create_task(self._write(), name="wire writer")
        self.touch()
        try:
            await asyncio.wait((reader, writer, self._closing), return_when=asyncio.FIRST_COMPLETED)
            closed = self._session.closed
            if closed is not None:
                await self._say_farewell(closed, reader, writer)
                return closed
            return self._lost(reader, writer)
        finally:
            self._session.lost("the link was given up")
            self._stop_timer()
            self._closing.cancel()
            self._wake_waiters()
            await _end(reader, writer)

    def touch(self) -> None:
        """The session has changed: send what is ready, and look at the time when it wants to."""
        if len(self._session.outbox):
            self._ready.set()
        if self._session.closed is None:
            due = self._session.due()
            if self._timer is None or due < self._timer.when():
                self._stop_timer()
                self._timer = self._loop.call_at(due, self._tick)
        elif not self._closing.done():
            self._closing.set_result(None)

    def close(self, code: int, reason: str) -> None:
        """End the link from this end; `run` returns soon after."""
        self._session.close(code, reason)
        self.touch()

    async def room(self, share: float) -> None:
        """Wait until at most `share` of the buffer waits to go out; then put at once, without an await."""
        while self._session.outbox.fill > share and self._session.closed is None:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    async def _read(self) -> Close:
        frames = 0
        while True:
            if self._reads_below is not None:
                await self.room(self._reads_below)
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                self._perform(self._session.received(message.data))
            elif message.type is aiohttp.WSMsgType.BINARY:
                self._perform(self._session.received_binary())
            elif message.type in _END:
                return self._how_it_ended(message)
            frames += 1
            if frames % BREATH == 0:
                await asyncio.sleep(0)

    async def _write(self) -> None:
        outbox = self._session.outbox
        while True:
            while (frame := outbox.take()) is not None:
                await self._socket.send_frame(frame, aiohttp.WSMsgType.TEXT)
                outbox.written(self._loop.time())
                self._wake_waiters()
            self._ready.clear()
            await self._ready.wait()

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if not isinstance(action, Close):
                self._carry_out(action)
        self.touch()

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._session.tick())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _say_farewell(self, closed: Close, reader: asyncio.Task[Close], writer: asyncio.Task[None]) -> None:
        """Send what is ready and the close frame, as far as the other end takes them."""
        await _end(reader)
        try:
            if closed.code not in _DEAF:
                async with asyncio.timeout(FAREWELL):
                    await self._flush(writer)
            await _end(writer)
            async with asyncio.timeout(2 * FAREWELL):
                await self._close_socket(closed.code, reason_text(closed.reason))
        except (TimeoutError, ConnectionError):
            self._abort()
        else:
            if self._socket.close_code == LOST:  # our close was not answered: what is buffered is not wanted
                self._abort()

    async def _flush(self, writer: asyncio.Task[None]) -> None:
        while self._session.outbox.pending_messages and not writer.done():
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.append(waiter)
            await asyncio.wait((waiter, writer), return_when=asyncio.FIRST_COMPLETED)

    async def _close_socket(self, code: int, reason: bytes) -> None:
        if isinstance(self._socket, web.WebSocketResponse):
            # A reader that takes nothing would let us wait here, and the wait of the writer we ended is cancelled.
            await self._socket.close(code=code, message=reason, drain=False)
        else:
            await self._socket.close(code=code, message=reason)

    def _lost(self, reader: asyncio.Task[Close], writer: asyncio.Task[None]) -> Close:
        how = Close(LOST, "the link broke")
        for task in (reader, writer):
            error = task.exception() if task.done() and not task.cancelled() else None
            if error is not None and not isinstance(error, ConnectionError):
                raise error
        if reader.done() and not reader.cancelled() and reader.exception() is None:
            how = reader.result()
        self._session.lost(how.reason, how.code)
        return how

    def _how_it_ended(self, message: aiohttp.WSMessage) -> Close:
        code = self._socket.close_code
        if message.type is aiohttp.WSMsgType.CLOSE:
            return Close(int(message.data or LOST), message.extra or "")
        if message.type is aiohttp.WSMsgType.ERROR:
            return Close(int(code or LOST), f"the link broke: {message.data}")
        return Close(int(code or LOST), "the link broke")


async def _end(*tasks: asyncio.Task[object]) -> None:
    """Cancel and await; a broken connection is what these tasks end with, and `run` has judged it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
