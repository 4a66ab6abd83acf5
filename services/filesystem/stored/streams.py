"""Contents on their way in and out: small ones as they are, large ones by threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from microkernel.errors import DataLoss
from services.filesystem.paths import TreePath
from services.filesystem.stored.contents import Content, ContentStore, damaged, digest_of
from services.filesystem.stored.inward import Inward
from services.filesystem.stored.outward import Outward

__all__ = ["INLINE", "STEP", "Streams"]

T = TypeVar("T")

INLINE = 64 << 10  # bytes up to which a content is kept in its row
STEP = 1 << 20  # bytes that are laid down for a thread at once
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
        inward: Inward | None = None
        try:
            async for piece in pieces:
                waiting.append(piece)
                size += len(piece)
                held += len(piece)
                if held < STEP and (inward is not None or size <= INLINE):
                    continue
                check(size)
                if inward is None:
                    inward = Inward(await self._run(self._store.begin), self._threads)
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
        outward = Outward(await self._run(self._store.open, content), start, stop, self._threads)
        try:
            while piece := await outward.next():
                yield piece
        except DataLoss as error:
            raise DataLoss(f"{path}: {error.message}", remedy=error.remedy) from error
        finally:
            await outward.close()

    def _run(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
