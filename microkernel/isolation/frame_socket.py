"""Frames to and from a process: MessagePack behind a length, over a pair of Unix sockets. Hot: once a message."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

from microkernel.isolation.frames import Frame, Known
from microkernel.isolation.packing import LONGEST

__all__ = ["FrameSocket"]

HEAD = struct.Struct("<I")
HIGH_WATER = 8 * 2**20  # bytes that wait to be written: above it producers wait
MOST = LONGEST + 65536  # bytes of a frame: its body, and room for names, a context and a trace


class FrameSocket(asyncio.Protocol):
    """Both directions of one end; what is posted in one turn of the loop is written at once."""

    def __init__(self, deliver: Callable[[Known], None]) -> None:
        """`closed` is done when nothing more will come, `why` says then why."""
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._encoder = msgspec.msgpack.Encoder()
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(Known).decode
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._bytes = 0  # of those that wait for the end of this turn
        self._buffer = bytearray()
        self._paused = False
        self._waiters: list[asyncio.Future[None]] = []
        self.why = "the other end has closed the link"
        self.closed: asyncio.Future[None] = self._loop.create_future()

    # Sending

    def post(self, frame: Frame) -> None:
        """Send `frame`; once the link is lost, it goes nowhere."""
        if self.closed.done():
            return
        packed = self._encoder.encode(frame)
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting += (HEAD.pack(len(packed)), packed)
        self._bytes += len(packed)

    @property
    def is_full(self) -> bool:
        """Whether producers wait: the other end does not take what is sent."""
        return self._paused or self._bytes > HIGH_WATER

    async def room(self) -> None:
        """Return once it is not full, or lost."""
        self._flush()
        while self._paused and not self.closed.done():
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def close(self) -> None:
        """Write what waits, and close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._waiting.clear()
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if waiting and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(waiting))

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._transport = transport
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start, end = 0, len(self._buffer)
        try:
            while end - start >= HEAD.size:
                [length] = HEAD.unpack_from(self._buffer, start)
                if length > MOST:
                    raise ValueError(f"a frame of {length} bytes, at most {MOST} are taken")
                if end - start - HEAD.size < length:
                    break
                start += HEAD.size
                frame = self._decode(bytes(memoryview(self._buffer)[start : start + length]))
                start += length
                self._deliver(frame)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.why = f"what came from the other end is not understood: {error}"
            self.abort()
            return
        del self._buffer[:start]

    def eof_received(self) -> None:
        """The transport closes by itself."""

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.why = f"the link broke: {error}"
        self._paused = False
        self._buffer.clear()
        if not self.closed.done():
            self.closed.set_result(None)
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
