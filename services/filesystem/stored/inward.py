"""A large content on its way in: the loop lays pieces down, a thread hashes and writes them (hot: once a MiB).

The thread goes on for as long as pieces lie there, and the loop until as many lie there as may: neither wakes the other
for each piece, which costs more than to hash it where threads sleep on processors of a virtual machine.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from typing import Any

from services.filesystem.stored.contents import Content, ContentWriter
from services.filesystem.threads import ended, wake

__all__ = ["Inward"]

AHEAD = 8 << 20  # bytes that lie there at most; the loop then waits until half of them are written
TURN = 64 << 20  # bytes after which a thread looks for another content that waits
SYNC = 32 << 20  # bytes after which the disk is told to begin: a whole GiB at the end would take it a second


class Inward:
    """What a thread does goes on when nobody waits for it any more: it is held on to, until it has ended."""

    def __init__(self, writer: ContentWriter, threads: Executor) -> None:
        self._writer = writer
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # of all below; nobody waits while holding it
        self._lying: deque[Sequence[bytes]] = deque()
        self._held = 0  # bytes that are not written yet
        self._turn: Future[None] | None = None  # None: no thread is at it
        self._room: asyncio.Future[None] | None = None  # the loop waits for it
        self._error: BaseException | None = None  # of the thread; the loop raises it
        self._unsynced = 0
        self._syncing: Future[None] | None = None
        self._finishing: Future[Content] | None = None

    async def write(self, pieces: Sequence[bytes]) -> None:
        """Lay pieces down; waits for room. Raises what came of those before."""
        size = sum(map(len, pieces))
        with self._lock:
            if self._error is None:
                self._lying.append(pieces)
                self._held += size
                if self._turn is None:
                    self._turn = self._threads.submit(self._write_lying)
                if self._held > AHEAD:
                    self._room = self._loop.create_future()
            room = self._room
        if room is not None:
            await room
        if self._error is not None:
            raise self._error

    async def finish(self) -> Content:
        """It is whole."""
        await self._quiet()
        if self._error is not None:
            raise self._error
        if self._syncing is not None:
            self._syncing.result()  # a disk tells of an error once
        self._finishing = self._threads.submit(self._writer.finish)
        await ended(self._finishing)
        return self._finishing.result()

    async def abandon(self) -> None:
        """It is not wanted any more."""
        with self._lock:
            self._lying.clear()
        await self._quiet()
        abandoning = self._threads.submit(self._writer.abandon)
        await ended(abandoning)
        abandoning.result()

    async def _quiet(self) -> None:
        """Wait until no thread is at it."""
        while running := [future for future in self._futures() if future is not None and not future.done()]:
            await ended(running[0])

    def _futures(self) -> tuple[Future[Any] | None, ...]:
        return self._turn, self._syncing, self._finishing

    def _write_lying(self) -> None:
        """One turn of a thread."""
        written = 0
        try:
            while True:
                with self._lock:
                    if not self._lying or written >= TURN:
                        self._turn = self._threads.submit(self._write_lying) if self._lying else None
                        return
                    pieces = self._lying.popleft()
                self._writer.write(pieces)
                size = sum(map(len, pieces))
                written += size
                self._begin_sync(size)
                with self._lock:
                    self._held -= size
                    self._give_room(self._held <= AHEAD // 2)
        except BaseException as error:  # noqa: BLE001 - the loop, which waits for it, raises it
            with self._lock:
                self._error, self._turn = error, None
                self._lying.clear()
                self._give_room(True)

    def _begin_sync(self, size: int) -> None:
        """Have another thread see to it that the disk has begun, when it has seen to what was there before."""
        self._unsynced += size
        if self._unsynced >= SYNC and (self._syncing is None or self._syncing.done()):
            if self._syncing is not None:
                self._syncing.result()
            self._unsynced = 0
            self._syncing = self._threads.submit(self._writer.sync)

    def _give_room(self, enough: bool) -> None:
        if self._room is not None and enough:
            self._loop.call_soon_threadsafe(wake, self._room)
            self._room = None
