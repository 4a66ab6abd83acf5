"""One connection of the simulated network: two ends, and what is on its way between them.

An end is an `asyncio.Transport` with the manners of the real one: its protocol is paused when too much waits, told of
the end of the bytes, and of the loss of the link as late as TCP tells.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microkernel.testing.network import Network

__all__ = ["Address", "Direction", "End", "Link"]

Address = tuple[str, Any]

WINDOW = 64 * 1024  # bytes on their way or unread in one direction: the two kernels' socket buffers
HIGH_WATER = 64 * 1024  # bytes beyond those, at which a writer is paused: asyncio's default


class Link:
    """One connection: two ends and what is on its way between them. Faults are made here."""

    def __init__(self, loop: asyncio.AbstractEventLoop, network: Network, number: int, address: Address) -> None:
        self.number = number
        self.network = network
        there, back = Direction(loop, network), Direction(loop, network)
        name = ("10.0.0.1", 40_000 + number)
        self.client = End(loop, self, there, {"peername": address, "sockname": name})
        self.server = End(loop, self, back, {"peername": name, "sockname": address})
        there.to, there.back = self.server, back
        back.to, back.back = self.client, there

    def cut(self) -> None:
        """Break it now: what is on its way is lost, and both ends hear of it."""
        for end in (self.client, self.server):
            end.lose(ConnectionResetError(104, "the simulated link was cut"))

    def cut_silently(self, *, for_server: bool) -> None:
        """Break it for one end only; the other one hears of it when it writes, or never."""
        (self.server if for_server else self.client).lose(ConnectionResetError(104, "the simulated link was cut"))

    def stall(self, *, there: bool = True, back: bool = True) -> None:
        """Let nothing through in these directions until `flow`: a partition."""
        self.client.out.stalled = self.client.out.stalled or there
        self.server.out.stalled = self.server.out.stalled or back

    def flow(self) -> None:
        """End the partition: what was sent meanwhile arrives."""
        for end in (self.client, self.server):
            end.out.flow()

    def ended(self) -> None:
        """Called by an end that is lost: with the second one the link is gone."""
        if self.client.is_lost and self.server.is_lost:
            self.network.links.pop(self.number, None)


class Direction:
    """Bytes from one end to the other: the writer's buffer, what is on its way, what is unread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, network: Network) -> None:
        self.stalled = False
        self.bandwidth = network.bandwidth
        self.unsent = 0
        self.to: End
        self.back: Direction
        self._loop = loop
        self._network = network
        self._buffer: deque[bytes] = deque()
        self._flying: deque[bytes | None] = deque()  # None is the end of the bytes
        self._unread = 0  # bytes that are on their way or wait for a paused reader
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._broken = False  # the writer is gone, and what it had not sent with it
        self._reset_due = False

    def write(self, piece: bytes) -> None:
        self._buffer.append(piece)
        self.unsent += len(piece)
        self._send()

    def finish(self) -> None:
        """No more bytes: the other end sees the end after those that were written."""
        self._flying.append(None)
        self._wait()

    def abandon(self) -> None:
        """Lose what was not delivered."""
        self._broken = True
        self._buffer.clear()
        self._flying.clear()
        self.unsent = 0
        if self._timer is not None:
            self._timer.cancel()

    def reset(self) -> None:
        """Tell the other end, as soon as something gets through, that its partner is gone."""
        self._reset_due = True
        if not self.stalled:
            self._loop.call_later(self._network.delay(), self.to.lose, ConnectionResetError(104, "reset by peer"))

    def flow(self) -> None:
        """End a stall."""
        if self.stalled:
            self.stalled = False
            if self._reset_due:
                self.reset()
            self._wait()

    def deliver(self) -> None:
        """The reader reads again."""
        self._wait()

    def _send(self) -> None:
        while self._buffer and self._unread < WINDOW:
            piece = self._buffer.popleft()
            size = self._network.piece(min(len(piece), WINDOW - self._unread))
            if size < len(piece):
                self._buffer.appendleft(piece[size:])
            self.unsent -= size
            self._unread += size
            self._free_at = max(self._free_at, self._loop.time()) + size / self.bandwidth
            self._flying.append(piece[:size])
        self._wait()

    def _wait(self) -> None:
        if self._timer is None and self._flying and not self._broken and not self.stalled:
            when = max(self._loop.time() + self._network.delay(), self._free_at)
            self._timer = self._loop.call_at(when, self._arrive)

    def _arrive(self) -> None:
        """The next pieces are there, in order, as many as the reader takes."""
        self._timer = None
        if self.to.is_lost:
            self.back.reset()  # nobody is there any more: the writer is told, as TCP does
            return
        while self._flying and not self.stalled and not self.to.is_deaf:
            piece = self._flying.popleft()
            if piece is None:
                self.to.end_of_bytes()
                return
            self._unread -= len(piece)
            self.to.receive(piece)
            if self._buffer:
                self._send()
            self.back.to.room()
            if self._network.piece(2) == 1:
                break  # the rest comes in a moment of its own
        if not self.to.is_deaf or self.to.is_lost:
            self._wait()


class End(asyncio.Transport):
    """One end of a link, as its protocol sees it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, link: Link, out: Direction, extra: dict[str, Any]) -> None:
        super().__init__(extra)
        self.out = out
        self.is_lost = False
        self._loop = loop
        self._link = link
        self._protocol: asyncio.Protocol
        self._reading = True
        self._closing = False
        self._paused = False
        self._high, self._low = HIGH_WATER, HIGH_WATER // 4

    def attach(self, protocol: Any) -> None:
        self._protocol = protocol
        protocol.connection_made(self)

    # What the other end does

    @property
    def is_deaf(self) -> bool:
        return not self._reading or self._closing

    def receive(self, piece: bytes) -> None:
        self._protocol.data_received(piece)

    def end_of_bytes(self) -> None:
        if not self._closing and not self._protocol.eof_received():
            self.close()

    def room(self) -> None:
        """Some of what was written has been taken."""
        if self.is_lost:
            return
        if self._paused and self.out.unsent <= self._low:
            self._paused = False
            self._protocol.resume_writing()
        if self._closing and self.out.unsent == 0:
            self._leave()

    def lose(self, error: Exception | None) -> None:
        """The link is gone for this end."""
        if self.is_lost:
            return
        self.is_lost = self._closing = True
        self.out.abandon()
        self._loop.call_soon(self._protocol.connection_lost, error)
        self._link.ended()

    def _leave(self) -> None:
        """Close in good order: the other end sees the end of the bytes."""
        self.out.finish()
        self.is_lost = True
        self._loop.call_soon(self._protocol.connection_lost, None)
        self._link.ended()

    # What its protocol does

    def write(self, data: Any) -> None:
        if self._closing or not data:
            return
        self.out.write(bytes(data))
        if not self._paused and self.out.unsent > self._high:
            self._paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if self.out.unsent == 0:
                self._leave()

    def abort(self) -> None:
        if not self.is_lost:
            self.out.reset()
            self.lose(None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self.out.back.deliver()

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self.out.unsent

    def can_write_eof(self) -> bool:
        return False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol
