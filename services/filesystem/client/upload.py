"""A file on its way into the tree: it is there, whole, once it is finished."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterable

from microkernel.client import PreconditionFailed, Stream
from services.filesystem.client.link import Link
from services.filesystem.messages import Stat
from services.filesystem.posix import os_errors

__all__ = ["PIECE", "Upload", "upload"]

PIECE = 1 << 20  # bytes that are sent at once; the node takes 16 ahead


class Upload:
    """One `filesystem.write_stream`."""

    def __init__(self, link: Link, path: str, *, start: int | None = None, if_version: int | None = None) -> None:
        """With `start`, what is sent takes the place of the file's bytes from there on; see `WriteStream`."""
        self.path = path
        self._link = link
        self._start = start
        self._if_version = if_version
        self._pid = os.getpid()
        self._is_abandoned = False
        self._stream: Stream | None = None
        self._answer: asyncio.Task[Stat] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def has_begun(self) -> bool:
        """Whether anything was sent."""
        return self._answer is not None

    async def send(self, content: bytes | memoryview) -> None:
        """Bytes more, which do not change from now on. Returns when the node takes them."""
        view = memoryview(content)
        with os_errors(self.path):
            stream, answer = await self._open()
            for place in range(0, len(view), PIECE):
                try:
                    await stream.send(content if len(view) <= PIECE else view[place : place + PIECE])
                except PreconditionFailed:
                    await answer  # the node has ended it before its time: this says why
                    raise

    async def finish(self) -> Stat:
        """That was all: what is at the path from now on."""
        with os_errors(self.path):
            stream, answer = await self._open()
            await stream.finish()
            return await answer

    async def abandon(self) -> None:
        """Leave what was there."""
        self._is_abandoned = True
        if self._answer is not None and self._pid == os.getpid():
            self._answer.add_done_callback(_looked_at)
            self._answer.cancel()
            await asyncio.wait([self._answer])

    def abandon_soon(self) -> None:
        """`abandon` from any thread, without waiting for it: for finalisers."""
        self._is_abandoned = True
        answer, loop = self._answer, self._loop
        if answer is None or loop is None or self._pid != os.getpid() or loop.is_closed():
            return

        def cancel() -> None:
            answer.add_done_callback(_looked_at)
            answer.cancel()

        with contextlib.suppress(RuntimeError):  # the loop was closed in between: nothing is under way
            loop.call_soon_threadsafe(cancel)

    async def _open(self) -> tuple[Stream, asyncio.Task[Stat]]:
        if self._pid != os.getpid():
            raise OSError(errno.EBADF, "it was opened in another process, and is written there", self.path)
        if self._is_abandoned:  # not by what a cancelled task raises: fsspec would take that for success
            raise OSError(errno.ECANCELED, "it was discarded: what was there is kept", self.path)
        if self._stream is None or self._answer is None:
            self._loop = asyncio.get_running_loop()
            self._stream = await self._link.stream(
                "write_stream", self.path, start=self._start, if_version=self._if_version, result_type=Stat
            )
            self._answer = asyncio.create_task(_first(self._stream))
        return self._stream, self._answer


async def upload(
    link: Link, path: str, pieces: AsyncIterable[bytes | memoryview], if_version: int | None = None
) -> Stat:
    """A file in one go; where that fails, what was there stays."""
    target = Upload(link, path, if_version=if_version)
    try:
        async for piece in pieces:
            await target.send(piece)
        return await target.finish()
    except BaseException:
        await target.abandon()
        raise


async def _first(stream: Stream) -> Stat:
    async with stream:
        found: Stat = await anext(stream)
        return found


def _looked_at(answer: asyncio.Task[Stat]) -> None:
    if not answer.cancelled():
        answer.exception()
