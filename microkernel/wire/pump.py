"""Moves frames between a session and its websocket: one reader, one writer, one timer. Hot: once a frame."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

import aiohttp
from aiohttp import web

from microkernel.wire.codec import LOST, CloseCode, reason_text
from microkernel.wire.crew import Read
from microkernel.wire.outbox import Parts
from microkernel.wire.session import Action, Close, Session
from microkernel.wire.writer import Writer

__all__ = ["Handlers", "Pump", "SendParts"]

Handlers: TypeAlias = Mapping[type, Callable[[Any], None]]
"""Who carries out what a session has answered, but `Close`, by the type of the action."""

SendParts: TypeAlias = Callable[[Iterable[bytes | memoryview]], Awaitable[None]]

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
        handlers: Handlers,
        abort: Callable[[], None],
        *,
        reads_below: float | None = None,
    ) -> None:
        """`handlers` are for the actions, by their type, and may be replaced; `abort` breaks the connection off.

        With `reads_below`, nothing is read while more than that share of the buffer waits to go out. One end of a
        link at most may have it: two would wait for each other.
        """
        self._socket = socket
        self._session = session
        self.handlers = handlers
        self.send_binary: SendParts = self._send_joined  # there may be a quicker way
        self._abort = abort
        self._reads_below = reads_below
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(
            session.outbox,
            send_text=socket.send_frame,
            send_parts=self._send_parts,
            turn=self._look,
            written=self._changed,
            failed=self._write_failed,
        )
        # The session has changed: send what is ready as this turn of the loop ends, or now, or now if it is much.
        self.touch, self.flush, self.flush_if_much = self._writer.touch, self._writer.flush, self._writer.flush_if_much
        self._failure: Exception | None = None
        self.serve: Callable[[Read], Awaitable[None]] | None = None  # from when on others carry out what is read
        self._was_open = False
        self._how = Close(LOST, "the link broke")
        self._frames = 0
        self._closing: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = 0.0  # when the timer is due
        self._change_waits: asyncio.Future[None] | None = None  # the reader does
        self._producers: deque[asyncio.Future[None]] = deque()  # who waits for room

    async def run(self) -> Close:
        """Pump until the link has ended; says how. Nothing is left running, even when this is cancelled."""
        reader = self._loop.create_task(self._read(), name="wire reader")
        self.touch()
        try:
            await asyncio.wait((reader, self._closing), return_when=asyncio.FIRST_COMPLETED)
            closed = self._session.closed
            if closed is not None:
                await self._say_farewell(closed, reader)
                return closed
            return self._lost(reader)
        finally:
            # The server cancels its handler once the connection is gone, often before the close frame was looked at.
            self._session.lost("the link was given up", int(self._socket.close_code or LOST))
            self._stop_timer()
            self._closing.cancel()
            self._changed()
            await self._writer.close()
            await _end(reader)

    def _look(self) -> None:
        """A turn is over in which the session has changed: wake it at the time when it wants to, or end it."""
        session = self._session
        if session.closed is None:
            if self._timer is not None and session.is_open is self._was_open and session.outbox.busy_since is None:
                return  # what is due comes later with time, but for these
            self._was_open = session.is_open
            due = session.due()
            if self._timer is None or due < self._looks_at:
                self._stop_timer()
                # Not the handle's `when()`: uvloop's has none for a moment that has passed.
                self._looks_at, self._timer = due, self._loop.call_at(due, self._tick)
        elif not self._closing.done():
            self._closing.set_result(None)

    def close(self, code: int, reason: str) -> None:
        """End the link from this end; `run` returns soon after."""
        self._session.close(code, reason)
        self.touch()

    async def room(self, share: float) -> None:
        """Wait until at most `share` of the buffer waits to go out, and to be acknowledged; then put at once.

        First come first served: each lets the next one look, after it has put.
        """
        session, is_first = self._session, False
        while session.fill > share and session.closed is None:
            waiter: asyncio.Future[None] = self._loop.create_future()
            if is_first:
                self._producers.appendleft(waiter)
            else:
                self._producers.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._let_look()
                raise
            is_first = True
        self._let_look()

    async def _read(self) -> Close:
        while await self._read_frame():
            if self.serve is not None:
                await self.serve(self._read_frame)
                break
        return self._how

    async def _read_frame(self) -> bool:
        """Receive one frame and have it carried out; False at the end."""
        session = self._session
        while not (session.takes_frames and (session.outbox.slack or session.outbox.has_room)) and self._must_wait():
            await self._change()
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            self.perform(session.received(message.data))
        elif message.type is aiohttp.WSMsgType.BINARY:
            self.perform(session.received_binary(message.data))
        elif message.type in _END:
            self._how = self._how_it_ended(message)
            return False
        self._frames += 1
        if self._frames % BREATH == 0:
            await asyncio.sleep(0)
        return True

    def _must_wait(self) -> bool:
        """Whether nothing is to be read now. What is not acknowledged is no reason: the `ack` would never be read."""
        session = self._session
        if session.closed is not None:
            return False
        return not session.takes_frames or (
            self._reads_below is not None and session.outbox.backlog > self._reads_below
        )

    async def _change(self) -> None:
        """Wait, before the next frame is read, until something was written, received or closed."""
        self._change_waits = self._loop.create_future()
        await self._change_waits

    async def _send_parts(self, parts: Parts) -> None:
        await self.send_binary(parts)
        # A socket that takes all at once would let this go on alone, and others have something to say.
        await asyncio.sleep(0)

    def _write_failed(self, error: Exception) -> None:
        self._failure = error
        if not self._closing.done():
            self._closing.set_result(None)

    async def _send_joined(self, parts: Iterable[bytes | memoryview]) -> None:
        await self._socket.send_frame(b"".join(parts), aiohttp.WSMsgType.BINARY)

    def perform(self, actions: list[Action]) -> None:
        """Carry out what the session has answered."""
        handlers = self.handlers
        for action in actions:
            kind = type(action)
            if kind is not Close:
                handlers[kind](action)
        self._changed()  # an `ack` makes room too
        session = self._session
        if session.outbox or session.closed is not None or session.is_open is not self._was_open:
            self.touch()

    def _tick(self) -> None:
        self._timer = None
        self.perform(self._session.tick())
        self.touch()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _changed(self) -> None:
        """Something was written, received or closed: the reader may go on, and who has something to put."""
        if self._change_waits is not None and not self._change_waits.done():
            self._change_waits.set_result(None)
        if self._producers:
            self._let_look()

    def _let_look(self) -> None:
        """Have the first of those who wait for room see whether there is any; all of them once it is over."""
        while self._producers:
            waiter = self._producers.popleft()
            if not waiter.done():
                waiter.set_result(None)
                if self._session.closed is None:
                    return

    async def _say_farewell(self, closed: Close, reader: asyncio.Task[Close]) -> None:
        """Send what is ready and the close frame, as far as the other end takes them."""
        await _end(reader)
        try:
            if closed.code not in _DEAF:
                async with asyncio.timeout(FAREWELL):
                    await self._writer.drained()
            await self._writer.close()
            async with asyncio.timeout(2 * FAREWELL):
                await self._close_socket(closed.code, reason_text(closed.reason))
        except (TimeoutError, ConnectionError):
            self._abort()
        else:
            if self._socket.close_code == LOST:  # our close was not answered: what is buffered is not wanted
                self._abort()

    async def _close_socket(self, code: int, reason: bytes) -> None:
        if isinstance(self._socket, web.WebSocketResponse):
            # A reader that takes nothing would let us wait here, and the wait of the writer we ended is cancelled.
            await self._socket.close(code=code, message=reason, drain=False)
        else:
            await self._socket.close(code=code, message=reason)

    def _lost(self, reader: asyncio.Task[Close]) -> Close:
        how = self._how
        done = reader.done() and not reader.cancelled()
        for error in (self._failure, reader.exception() if done else None):
            if error is not None and not isinstance(error, ConnectionError):
                raise error
        if done and reader.exception() is None:
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
