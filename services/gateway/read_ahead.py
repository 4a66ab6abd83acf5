"""Reads a stream a little ahead of a socket (hot: once a piece), so that what is ready goes out in one write.

The stream is read in a task of its own, at most `limit` items ahead: while the reader of the socket is slow, the
stream's handler stands still. Leaving the `async with` ends both, and the handler's `finally` has run by then.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from microkernel.errors import MicrokernelError, from_exception
from microkernel.port import Stream

__all__ = ["ReadAhead"]


class ReadAhead:
    """The items of `stream`, in bursts."""

    def __init__(self, stream: Stream, *, limit: int = 64) -> None:
        self._stream = stream
        self._limit = limit
        self._ready: list[Any] = []
        self._ended = False
        self._error: MicrokernelError | None = None
        self._items = asyncio.Event()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ReadAhead:
        self._task = asyncio.create_task(self._read(), name="gateway read ahead")
        # Not a `finally` in the task: one that is cancelled before its first step runs none.
        self._task.add_done_callback(self._end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        # Waits for the handler's `finally` blocks, even while this task is being cancelled.
        await asyncio.gather(self._task, return_exceptions=True)

    async def take(self, wait: float | None = None) -> list[Any] | None:
        """All that is ready, at least one item; `[]` after `wait` seconds without any, None at the end.

        Raises the stream's error once everything before it was taken.
        """
        if not self._ready and not self._ended:
            self._items.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._items.wait()
            except TimeoutError:
                return []
        if self._ready:
            ready, self._ready = self._ready, []
            self._room.set()
            return ready
        if self._error is not None:
            raise self._error
        return None

    def interrupt(self, error: MicrokernelError) -> None:
        """End the stream; `take` raises `error`. Nothing happens if it has ended."""
        if self._task is not None and not self._ended and self._error is None:
            self._error = error
            self._task.cancel()

    async def _read(self) -> None:
        try:
            async with self._stream as items:
                async for item in items:
                    self._ready.append(item)
                    self._items.set()
                    while len(self._ready) >= self._limit:
                        self._room.clear()
                        await self._room.wait()
        except Exception as error:  # noqa: BLE001 - handed to whoever takes
            self._error = self._error or from_exception(error)

    def _end(self, _: asyncio.Task[None]) -> None:
        self._ended = True
        self._items.set()
