"""Files of the tree that are open: read in blocks of one version, written as one stream that replaces at its end."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AbstractAsyncStreamedFile, sync
from fsspec.spec import AbstractBufferedFile

from services.filesystem.client.download import Download
from services.filesystem.client.link import is_ending
from services.filesystem.client.upload import PIECE, Upload

if TYPE_CHECKING:
    from services.filesystem.client.filesystem import TreeFileSystem

__all__ = ["AsyncTreeFile", "TreeFile"]

SMALL = 64 << 10  # bytes that are written by one call
LINE = 8 << 10  # bytes in which the end of a line is looked for

log = logging.getLogger("microkernel.client")


class TreeFile(AbstractBufferedFile):  # type: ignore[misc] # fsspec has no types
    """A file that `TreeFileSystem.open` gives.

    What is written is there once the file is closed, in a transaction once that ends, and until then what was there
    before. A file that is read stays what it was when it was opened, whatever is written meanwhile.
    """

    DEFAULT_BLOCK_SIZE = 4 << 20

    def __init__(
        self,
        fs: TreeFileSystem,
        path: str,
        mode: str = "rb",
        *args: Any,
        start: int | None = None,
        if_version: int | None = None,
        details: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """`version` is what is read, `details` what is known of it; `start` and `if_version` are of `WriteStream`."""
        self._upload = Upload(fs.link, path, start=start, if_version=if_version)
        self._download = Download(fs.link, path, kwargs.get("version"))
        self._is_replaced = start is None
        self._if_version = if_version
        super().__init__(fs, path, mode, *args, **kwargs)
        self.loc = start or 0
        self._details = details

    @property
    def details(self) -> dict[str, Any]:
        """What `TreeFileSystem.info` says of the version that is read."""
        if self._details is None:
            self._details = self.fs.info(self.path, version=self.kwargs.get("version"))
        known: dict[str, Any] = self._details
        return known

    def write(self, data: Any) -> int:
        """Add bytes, whose end is sent when there are enough of them."""
        view = memoryview(data)
        size = view.nbytes
        if size < self.blocksize or not self.writable() or self.forced:
            return int(super().write(data))
        # A long one is not collected first. Bytes stay what they are; of what may change before it has left, a copy
        # does.
        self.flush_buffer()
        if type(data) is bytes:
            self._run(self._upload.send, data)
        else:
            flat = view.cast("B")
            for place in range(0, size, PIECE):
                self._run(self._upload.send, bytes(flat[place : place + PIECE]))
        self.loc += size
        return size

    def flush_buffer(self) -> None:
        """Send what was collected."""
        content = self.buffer.getvalue()
        self.buffer.seek(0)
        self.buffer.truncate()
        if content:
            self._run(self._upload.send, content)

    def readline(self, size: int | None = -1) -> bytes:
        """Up to the end of a line."""
        found: bytes = self.readuntil(b"\n", blocks=LINE)
        if size is not None and 0 <= size < len(found):
            self.loc -= len(found) - size
            found = found[:size]
        return found

    def commit(self) -> None:
        """Put what was written in place of what was there."""
        if not self.closed:
            self.close()
        self._run(self._upload.finish)

    def discard(self) -> None:
        """Leave what was there."""
        self.forced = self.closed = True
        self._run(self._upload.abandon)

    def close(self) -> None:
        """Write the rest, and put all in its place."""
        try:
            super().close()
        except BaseException:
            self._upload.abandon_soon()
            raise
        finally:
            if self.mode == "rb":
                self._download = Download(self.fs.link, self.path, None)  # the old one's stream ends with it

    def __del__(self) -> None:
        if self.closed:
            return
        if self.mode == "rb" or not (is_ending() or self.fs.is_on_loop):
            self.close()
            return
        self.closed = True  # whoever would wait here would wait for itself
        self._upload.abandon_soon()
        log.warning("%s was not closed: nothing of what was written to it is kept", self.path)

    def _fetch_range(self, start: int, end: int) -> bytes:
        found: bytes = self._run(self._download.part, start, end)
        return found

    def _upload_chunk(self, final: bool = False) -> bool:  # fsspec calls it so
        content = self.buffer.getvalue()
        if final and self.autocommit and self._is_replaced and len(content) <= SMALL and not self._upload.has_begun:
            self._run(self.fs.write_whole, self.path, content, self._if_version)
            return True
        if content:
            self._run(self._upload.send, content)
        if final and self.autocommit:
            self._run(self._upload.finish)
        return True

    def _run(self, work: Any, *args: Any) -> Any:
        if is_ending():
            raise OSError(errno.EIO, "it was not closed before the process ended: what was there is kept", self.path)
        return sync(self.fs.loop, work, *args)


class AsyncTreeFile(AbstractAsyncStreamedFile):  # type: ignore[misc] # fsspec has no types
    """A file that `TreeFileSystem.open_async` gives: as `TreeFile`, awaited, and without blocks when it is read."""

    def __init__(
        self,
        fs: TreeFileSystem,
        path: str,
        mode: str = "rb",
        *args: Any,
        start: int | None = None,
        if_version: int | None = None,
        details: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """See `TreeFile`."""
        self._upload = Upload(fs.link, path, start=start, if_version=if_version)
        self._download = Download(fs.link, path, kwargs.get("version"))
        super().__init__(fs, path, mode, *args, **kwargs)
        self.loc = start or 0
        self._details = details

    async def discard(self) -> None:
        """Leave what was there."""
        self.forced = self.closed = True
        await self._upload.abandon()

    def __del__(self) -> None:
        if not self.closed:
            self.closed = True
            self._upload.abandon_soon()

    async def _fetch_range(self, start: int, end: int) -> bytes:
        return await self._download.part(start, min(end, self.size))

    async def _upload_chunk(self, final: bool = False) -> bool:  # fsspec calls it so
        if content := self.buffer.getvalue():
            await self._upload.send(content)
        if final:
            await self._upload.finish()
        return True
