"""Writes what a session has ready, at the end of the turn of the loop in which it was put. Hot: once a frame.

What is put during one turn goes out as one frame, or as several where it is much. There is no task for it: a frame is
written as the turn ends, and only one that has to wait for the other end to read is finished in a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import WSMsgType

from microkernel.begin import Rest, begin
from microkernel.wire.outbox import Outbox, Parts

__all__ = ["Writer"]

TEXT = WSMsgType.TEXT
# Messages that do not wait for more of this turn: the other end begins with them while this one goes on. Later batches
# of a turn are larger, since by then the other end is busy.
BATCH, LARGEST_BATCH = 32, 256


class Writer:
    """The way out of one link. `send_text(frame, TEXT)` writes a text frame, `send_parts` a binary one.

    `turn()` is called once in each turn in which something was put, `written()` after each frame, `failed` once.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        send_text: Callable[[bytes, WSMsgType], Coroutine[Any, Any, None]],
        send_parts: Callable[[Parts], Coroutine[Any, Any, None]],
        turn: Callable[[], None],
        written: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._outbox = outbox
        self._queue = outbox.queue
        self._send_text = send_text
        self._send_parts = send_parts
        self._turn = turn
        self._written = written
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._batch = BATCH
        self._is_due = False
        self._waits: asyncio.Task[None] | None = None  # finishes a frame that the other end does not take yet
        self._closed = False

    def touch(self) -> None:
        """Something may have been put."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._turn_ends)
        elif len(self._queue) >= self._batch:
            self.flush_if_much()

    def flush_if_much(self) -> None:
        """Write what is ready if it is a batch; otherwise whoever asks flushes when nothing more comes."""
        if len(self._queue) >= self._batch and self._waits is None:
            self._batch = min(2 * self._batch, LARGEST_BATCH)
            self._write()

    def flush(self) -> None:
        """Write all that is ready now, as far as the other end takes it: nothing more comes in this turn."""
        self._batch = BATCH
        self._write()

    def _write(self) -> None:
        if self._closed:
            return
        self._turn()
        if self._waits is not None:
            return
        outbox = self._outbox
        try:
            while (frame := outbox.take()) is not None:
                rest = begin(self._send_text(frame, TEXT) if isinstance(frame, bytes) else self._send_parts(frame))
                if rest is not None:
                    self._waits = self._loop.create_task(self._finish(rest), name="wire writer")
                    self._waits.add_done_callback(self._finished)
                    return
                outbox.written()
                self._written()
        except Exception as error:  # noqa: BLE001 - judged by whoever runs the link
            self._fail(error)

    async def drained(self) -> None:
        """Return when all that was put has been written, or nothing can be any more."""
        while not self._closed:
            if self._waits is not None:
                await asyncio.wait([self._waits])
            elif self._outbox.pending_messages:
                self.flush()
                await asyncio.sleep(0)
            else:
                return

    async def close(self) -> None:
        """Write nothing more; returns when nothing is left running."""
        self._closed = True
        if self._waits is not None:
            self._waits.cancel()
            await asyncio.wait([self._waits])

    def _turn_ends(self) -> None:
        self._is_due = False
        self.flush()

    async def _finish(self, rest: Rest[None]) -> None:
        await rest
        self._outbox.written()
        self._written()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._waits = None
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception):
            self._fail(error)
        else:
            self.flush()

    def _fail(self, error: Exception) -> None:
        if not self._closed:
            self._closed = True
            self._failed(error)
