"""A file that is read part by part: one stream for parts that follow each other, and one for each that does not."""

from __future__ import annotations

import os

from microkernel.client import Stream
from services.filesystem.client.link import AHEAD, Link
from services.filesystem.posix import os_errors

__all__ = ["Download"]


class Download:
    """The bytes of one version of a file. The second of two parts that follow each other opens a stream to the end."""

    def __init__(self, link: Link, path: str, version: int | str | None) -> None:
        self._link = link
        self._path = path
        self._version = version
        self._pid = os.getpid()
        self._stream: Stream | None = None
        self._rest = memoryview(b"")  # of the last piece that has come
        self._place = -1  # where the last part has ended

    async def part(self, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop`, or to the end of the file."""
        if self._pid != os.getpid():  # the stream is the parent's
            self._stream, self._place, self._pid = None, -1, os.getpid()
        if start != self._place:
            await self.leave()
            self._place = stop
            return b"".join([piece async for piece in self._link.pieces(self._path, start, stop, self._version)])
        with os_errors(self._path):
            return await self._next(start, stop)

    async def leave(self) -> None:
        """End the stream: nothing comes ahead any more."""
        stream, self._stream, self._rest, self._place = self._stream, None, memoryview(b""), -1
        if stream is not None:
            await stream.aclose()

    async def _next(self, start: int, stop: int) -> bytes:
        if self._stream is None:
            self._stream = await self._link.stream(
                "read", self._path, start=start, version=self._version, credit=AHEAD, result_type=bytes
            )
        parts: list[bytes | memoryview] = []
        wanted = stop - start
        while wanted:
            if not self._rest:
                piece = await anext(self._stream, b"")
                if not piece:
                    break
                self._rest = memoryview(piece)
            part = self._rest[:wanted]
            self._rest = self._rest[len(part) :]
            wanted -= len(part)
            parts.append(part)
        self._place = stop - wanted
        return b"".join(parts)
