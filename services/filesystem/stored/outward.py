"""A large content on its way out: threads read and compare ahead of who takes the pieces (hot: once a MiB).

As on the way in, neither side wakes the other for each piece: threads stop when enough lies there, and begin again when
half of that was taken. One thread copies as fast as `cat` does and has to compare besides, so there are two.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Executor, Future

from services.filesystem.stored.contents import ContentReader
from services.filesystem.threads import ended, wake

__all__ = ["Outward"]

STEP = 1 << 20  # bytes of a piece
AHEAD = 16  # pieces that are read, or being read, and not taken
BATCH = 4  # pieces for which who waits is woken, unless fewer are left
THREADS = 2  # that read one content


class _Piece:
    """A place in the row: bytes from `start` to `stop`, or what came of reading them, once that is known."""

    __slots__ = ("found", "start", "stop")

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.found: bytes | BaseException | None = None


class Outward:
    """The bytes of a content from `start` to `stop`, in pieces that end where steps of the content do."""

    def __init__(self, reader: ContentReader, start: int, stop: int, threads: Executor) -> None:
        self._reader = reader
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # of all below; nobody waits while holding it
        self._place, self._stop = start, stop
        self._row: deque[_Piece] = deque()
        self._ready = 0  # pieces of the row that are read, up to the first one that is not
        self._turns: list[Future[None]] = []
        self._reading = 0  # threads that will claim another piece, unless there is none
        self._more: asyncio.Future[None] | None = None  # the loop waits for the first piece of the row

    async def next(self) -> bytes:
        """The next piece; nothing at the end. Raises `DataLoss`."""
        while (more := self._wait_for_more()) is not None:
            await more
        with self._lock:
            if not self._row:
                return b""
            self._ready -= 1
            found = self._row.popleft().found
        if isinstance(found, BaseException):
            raise found
        assert found is not None
        return found

    async def close(self) -> None:
        """Nothing more is taken."""
        with self._lock:
            self._stop = self._place
        for turn in self._turns:
            await ended(turn)
        self._reader.close()

    def _wait_for_more(self) -> asyncio.Future[None] | None:
        """What is to be waited for until a piece is there or all are taken; None where that is so."""
        with self._lock:
            self._read_on()
            if self._ready or (not self._row and self._place >= self._stop):
                return None
            self._more = self._loop.create_future()
            return self._more

    def _read_on(self) -> None:
        """Have threads read, where they stopped because enough lay there."""
        if self._place >= self._stop or len(self._row) > AHEAD // 2:
            return
        self._turns = [turn for turn in self._turns if not turn.done()]
        while self._reading < min(THREADS, -(-(self._stop - self._place) // STEP)):
            self._reading += 1
            self._turns.append(self._threads.submit(self._read_ahead))

    def _read_ahead(self) -> None:
        """One turn of a thread."""
        while (piece := self._claim()) is not None:
            found: bytes | BaseException
            try:
                found = self._reader.read(piece.start, piece.stop)
            except BaseException as error:  # noqa: BLE001 - the loop, which waits for it, raises it
                found = error
            with self._lock:
                piece.found = found
                if isinstance(found, BaseException):
                    self._stop = self._place
                while self._ready < len(self._row) and self._row[self._ready].found is not None:
                    self._ready += 1
                last = self._place >= self._stop and self._ready == len(self._row)
                if self._more is not None and (self._ready >= BATCH or last):
                    self._loop.call_soon_threadsafe(wake, self._more)
                    self._more = None

    def _claim(self) -> _Piece | None:
        """The next piece to read, if there is one."""
        with self._lock:
            if self._place >= self._stop or len(self._row) >= AHEAD:
                self._reading -= 1
                return None
            piece = _Piece(self._place, min(self._stop, self._place - self._place % STEP + STEP))
            self._place = piece.stop
            self._row.append(piece)
            return piece
