"""Tasks that take turns for one client: one reads, the others carry out what was read. Hot: once a message.

Leader and followers (Schmidt and others, "Leader/Followers", PLoP 2000). The task that has read a frame carries out its
work itself, without a hop of the loop and without a task for each piece; most work never waits. When a piece does, the
loop finds the rest in the next turn and gives it to another task. An idle client has one task, a busy one as many as
pieces of work wait.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, Generic, TypeAlias, TypeVar

from microkernel.nursery import contained, task_of_loop

__all__ = ["Crew", "Do", "Read"]

Read = Callable[[], Coroutine[Any, Any, bool]]
"""Waits for the next frame, puts its work, and says whether there is more to come."""

SPARE = 4  # tasks that wait for work; more than that end

W = TypeVar("W")

Do: TypeAlias = Callable[[int, W], "Awaitable[None] | None"]
"""Carries out a piece of work with its number; what is left to be awaited, None where nothing is. Neither raises."""


class Crew(Generic[W]):
    """Carries out work in the order in which it was put, one piece beside the others where they wait."""

    def __init__(
        self,
        cancelled: Callable[[int, W], None],
        *,
        name: str,
        rests: Callable[[], None] = lambda: None,
        waits: Callable[[], None] = lambda: None,
    ) -> None:
        """`cancelled` is told of work that `cancel` has ended.

        `rests` is called when all work is done that does not wait, before the next frame is waited for; `waits` before
        a piece of work is.
        """
        self._tell_cancelled = cancelled
        self._rests = rests
        self._waits = waits
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # of every task: work that was begun must not lend them its own
        self._waiting: deque[tuple[int, W, Do[W]]] = deque()
        self._running: dict[int, asyncio.Task[None]] = {}
        self._resting: dict[int, W] = {}  # of what runs, that which waits for something
        self._cancelled: set[int] = set()
        self._members: dict[asyncio.Task[None], None] = {}
        self._idle: list[asyncio.Future[None]] = []
        self._read: Read | None = None
        self._reader: asyncio.Task[None] | None = None
        self._end: asyncio.Future[None] | None = None  # of the frames
        self._looks = False  # a look at what is left over is scheduled
        self._emptied: asyncio.Future[None] | None = None  # somebody waits for all work to have ended
        self._pause: Awaitable[None] | None = None  # to be waited for
        self._is_paused = False
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def put(self, number: int, work: W, do: Do[W]) -> None:
        """Have `do` carry out `work` after what was put before; `number` is that of no other work here."""
        self._waiting.append((number, work, do))
        # Who has read it carries it out; it may also come from elsewhere, while the reader waits.
        if not self._looks and (self._reader is None or task_of_loop(self._loop) is not self._reader):
            self._looks = True
            self._loop.call_soon(self._look, context=self._context)

    def cancel(self, number: int) -> None:
        """End work: it is not begun any more, or gets a `CancelledError`. What has ended stays so."""
        task = self._running.get(number)
        if task is not None:
            if number not in self._cancelled:
                self._cancelled.add(number)
                task.cancel()
            return
        for piece in self._waiting:
            if piece[0] == number:
                self._waiting.remove(piece)
                self._tell_cancelled(number, piece[1])
                return

    def unfinished(self) -> list[tuple[int, W]]:
        """The work that has not ended, with its numbers: what waits for something, and what has not begun."""
        return [*self._resting.items(), *((number, work) for number, work, _ in self._waiting)]

    def pause(self, until: Awaitable[None]) -> None:
        """Carry out no more before `until`; for work that is being carried out."""
        self._pause = until

    async def serve(self, read: Read) -> None:
        """Read until `read` has seen the end, and carry out what it puts. Raises what `read` raised.

        Work goes on after that, until `close`. Whoever serves next takes over.
        """
        self._stop_reading()
        end = self._end = self._loop.create_future()
        self._read = read
        self._look()
        try:
            await end
        finally:
            if self._end is end:
                self._stop_reading()

    async def close(self, *, spare: Collection[int] = ()) -> None:
        """End all work, and return when it has ended; what has the numbers in `spare` is carried out before."""
        for piece in [piece for piece in self._waiting if piece[0] not in spare]:
            self._waiting.remove(piece)
            self._tell_cancelled(piece[0], piece[1])
        for number in [number for number in self._running if number not in spare]:
            self.cancel(number)
        while len(self):
            self._emptied = self._loop.create_future()
            await self._emptied
        self._closed = True
        while self._members:
            for task in self._members:
                task.cancel()
            await asyncio.wait(self._members)

    def _stop_reading(self) -> None:
        end, self._end, self._read = self._end, None, None
        if end is not None and not end.done():
            end.set_result(None)
        if self._reader is not None:
            self._reader.cancel()  # it has nothing in hand but the wait for a frame

    def _look(self) -> None:
        """A turn of the loop later: if there is work left, or nobody reads, whoever had it in hand waits."""
        self._looks = False
        if self._closed or self._is_paused or not (self._waiting or (self._read is not None and self._reader is None)):
            return
        while self._idle:
            idle = self._idle.pop()
            if not idle.done():
                idle.set_result(None)
                return
        task = self._loop.create_task(contained(self._take_turns()), name=self._name)
        self._members[task] = None
        task.add_done_callback(self._left)

    def _left(self, task: asyncio.Task[None]) -> None:
        del self._members[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._ended(error)

    async def _take_turns(self) -> None:
        """The life of one task."""
        task = asyncio.current_task()
        assert task is not None
        waiting, running = self._waiting, self._running
        while True:
            if waiting and not self._is_paused:
                number, work, do = waiting.popleft()
                running[number] = task
                try:
                    rest = do(number, work)
                    if rest is not None:
                        await self._finish(number, work, rest, task)
                finally:
                    del running[number]
                    if self._emptied is not None and not len(self) and not self._emptied.done():
                        self._emptied.set_result(None)
                if self._pause is not None:
                    await self._wait_for_pause()
            elif self._read is not None and self._reader is None and not self._is_paused:
                self._rests()
                await self._read_next(self._read, task)
            elif len(self._idle) < SPARE:
                idle = self._loop.create_future()
                self._idle.append(idle)
                await idle
            else:
                return

    async def _wait_for_pause(self) -> None:
        assert self._pause is not None
        pause, self._pause = self._pause, None
        self._is_paused = True
        self._waits()
        try:
            await pause
        finally:
            self._is_paused = False

    async def _read_next(self, read: Read, task: asyncio.Task[None]) -> None:
        self._reader = task
        try:
            more = await read()
        except asyncio.CancelledError:
            if self._closed or self._read is read or task.uncancel() > 0:
                raise
        except Exception as error:  # noqa: BLE001 - raised where it is served
            self._ended(error)
        else:
            if not more:
                self._ended(None)
        finally:
            self._reader = None

    def _ended(self, error: BaseException | None) -> None:
        """There are no more frames."""
        self._read = None
        if self._end is not None and not self._end.done():
            if error is None:
                self._end.set_result(None)
            else:
                self._end.set_exception(error)

    async def _finish(self, number: int, work: W, rest: Awaitable[None], task: asyncio.Task[None]) -> None:
        if not self._looks:
            self._looks = True
            self._loop.call_soon(self._look, context=self._context)
        self._waits()
        self._resting[number] = work
        try:
            await rest
        except asyncio.CancelledError:
            # Ours and nobody else's: the task goes on with other work.
            if self._closed or number not in self._cancelled or task.uncancel() > 0:
                raise
            self._tell_cancelled(number, work)
        finally:
            del self._resting[number]
            self._cancelled.discard(number)
