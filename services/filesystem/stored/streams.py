"""Contents on their way in and out: the loop hands pieces over, threads hash, write and read them (hot: once a MiB)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from microkernel.errors import DataLoss
from services.filesystem.paths import TreePath
from services.filesystem.stored.contents import Content, ContentStore, ContentWriter, damaged, digest_of

__all__ = ["INLINE", "STEP", "Streams"]

T = TypeVar("T")

INLINE = 64 << 10  # bytes up to which a content is kept in its row
STEP = 1 << 20  # bytes that cross to a thread at once
AHEAD = 2  # steps that are read before they are asked for
SYNC = 32 << 20  # bytes after which the disk is told to begin: a whole GiB at the end would take it a second
THREADS = 4


class Streams:
    """What moves the contents of one volume."""

    def __init__(self, store: ContentStore, name: str) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=name)

    async def close(self) -> None:
        """End the threads."""
        await asyncio.to_thread(self._threads.shutdown)

    async def take_in(self, pieces: AsyncIterator[bytes], check: Callable[[int], None]) -> Content:
        """The content that pieces make up, on the disk if it is a large one. `check` is told of its size as it grows,
        and raises where it is too large.
        """
        waiting: list[bytes] = []
        size = held = 0
        inward: _Inward | None = None
        try:
            async for piece in pieces:
                waiting.append(piece)
                size += len(piece)
                held += len(piece)
                if held < STEP and (inward is not None or size <= INLINE):
                    continue
                check(size)
                if inward is None:
                    inward = _Inward(await self._run(self._store.begin), self._run)
                await inward.write(waiting)
                waiting, held = [], 0
            check(size)
            if inward is None:
                content = b"".join(waiting)
                return Content(digest_of(content), len(content), inline=content)
            await inward.write(waiting)
            return await inward.finish()
        except BaseException:
            if inward is not None:
                await inward.abandon()
            raise

    async def give_out(
        self, content: Content, start: int, stop: int | None, path: TreePath
    ) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` up to `stop`. Raises `DataLoss` that names the path and the part."""
        stop = content.size if stop is None else min(stop, content.size)
        if content.inline is not None:
            if digest_of(content.inline) != content.digest:
                raise DataLoss(f"{path}: {damaged(content, 0, content.size)}")
            if start < stop:
                yield content.inline[start:stop]
            return
        if start >= stop:
            return
        reader = await self._run(self._store.open, content)
        ahead: deque[asyncio.Future[list[bytes]]] = deque()
        place = start
        try:
            while place < stop or ahead:
                while place < stop and len(ahead) < AHEAD:
                    end = min(stop, place - place % STEP + STEP)
                    ahead.append(self._run(reader.read, place, end))
                    place = end
                try:
                    parts = await asyncio.shield(ahead[0])  # a thread reads on, whoever stops to wait for it
                except DataLoss as error:
                    raise DataLoss(f"{path}: {error.message}", remedy=error.remedy) from error
                ahead.popleft()
                for part in parts:
                    yield part
        finally:
            for future in ahead:
                await _ended(future)
            reader.close()

    def _run(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *args)


class _Inward:
    """A large content on its way in: one step is written while the next one comes.

    What a thread does goes on when nobody waits for it any more: it is held on to, until it has ended.
    """

    def __init__(self, writer: ContentWriter, run: Callable[..., asyncio.Future[Any]]) -> None:
        self._writer = writer
        self._run = run
        self._writing: asyncio.Future[Any] | None = None
        self._syncing: asyncio.Future[Any] | None = None
        self._unsynced = 0

    async def write(self, pieces: list[bytes]) -> None:
        """Hand pieces over; waits for those before."""
        if self._writing is not None:
            await asyncio.shield(self._writing)
        self._unsynced += sum(map(len, pieces))
        if self._unsynced >= SYNC:
            if self._syncing is not None:
                await asyncio.shield(self._syncing)
            self._unsynced = 0
            self._syncing = self._run(self._writer.sync)
        self._writing = self._run(self._writer.write, pieces)

    async def finish(self) -> Content:
        """It is whole."""
        for future in (self._writing, self._syncing):
            if future is not None:
                await asyncio.shield(future)
        self._writing = self._run(self._writer.finish)
        content: Content = await asyncio.shield(self._writing)
        return content

    async def abandon(self) -> None:
        """It is not wanted any more."""
        for future in (self._writing, self._syncing):
            if future is not None:
                await _ended(future)
        await self._run(self._writer.abandon)


async def _ended(future: asyncio.Future[Any]) -> None:
    """Wait until a thread is through, whatever came of it."""
    await asyncio.wait([future])
    if not future.cancelled():
        future.exception()  # somebody has looked at it
