"""What a file system of fsspec reads of the tree: what is where, and files as a whole or in parts."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

from fsspec.asyn import AsyncFileSystem, sync_wrapper
from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.utils import isfilelike

from services.filesystem.client.link import Link
from services.filesystem.client.local import open_local, write_out
from services.filesystem.client.ranges import Asked, Span, spans, within
from services.filesystem.messages import FileKind, FileVersion, Stat

__all__ = ["TreeReader"]

PAGE = 10_000  # names that are listed at once


class TreeReader(AsyncFileSystem):  # type: ignore[misc] # fsspec has no types
    """The half of `TreeFileSystem` that changes nothing."""

    link: Link

    async def _info(self, path: str, version: int | str | None = None, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        return _info_of(await self.link.call("stat", path, version=version, result_type=Stat))

    async def _ls(
        self,
        path: str,
        detail: bool = True,
        version: int | str | None = None,
        **_: Any,
    ) -> list[Any]:
        path = self._strip_protocol(path)
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            try:
                page = await self.link.call(
                    "list", path, version=version, after=after, limit=PAGE, result_type=list[Stat]
                )
            except NotADirectoryError:
                page = [await self.link.call("stat", path, version=version, result_type=Stat)]
            found += map(_info_of, page)
            if len(page) < PAGE:
                return found if detail else [each["name"] for each in found]
            after = page[-1].path.rpartition("/")[2]

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        return await self._kind(path, **kwargs) is not None

    async def _isdir(self, path: str) -> bool:
        return await self._kind(path) == "directory"

    async def _isfile(self, path: str) -> bool:
        return await self._kind(path) == "file"

    async def _kind(self, path: str, **kwargs: Any) -> str | None:
        """None for nothing, also where no such path can be. Where the node does not answer, nobody knows."""
        try:
            return str((await self._info(path, **kwargs))["type"])
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise

    async def _modified(self, path: str) -> datetime:
        at = (await self._info(path))["mtime"]
        return (
            datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
        )  # a live file is as new as its reader

    async def _created(self, path: str) -> datetime:
        try:
            versions = await self.link.call("history", self._strip_protocol(path), result_type=list[FileVersion])
        except OSError as error:
            if error.errno != errno.EINVAL:  # no versions are kept there
                raise
            versions = []
        return datetime.fromtimestamp(versions[-1].at, UTC) if versions else await self._modified(path)

    async def _ukey(self, path: str) -> str:
        """The BLAKE3 of a file's content; the version of a folder."""
        info = await self._info(path)
        return str(info["digest"] or info["version"])

    modified = sync_wrapper(_modified)
    created = sync_wrapper(_created)
    ukey = sync_wrapper(_ukey)

    def checksum(self, path: str) -> int:
        """`ukey` as a number."""
        key: str = self.ukey(path)
        return int(key, 16)

    # Reading

    async def _cat_file(
        self,
        path: str,
        start: int | None = None,
        end: int | None = None,
        version: int | str | None = None,
        **_: Any,
    ) -> bytes:
        path = self._strip_protocol(path)
        if (start or 0) < 0 or (end or 0) < 0:
            info = await self._info(path, version=version)
            if info["size"] is None:  # nobody knows before it is read
                return (await self._cat_file(path))[start:end]
            start, end = within(start, end, info["size"])
            version = info["version"] if version is None else version
        start = start or 0
        end = None if end is None else max(start, end)
        async with aclosing(self.link.pieces(path, start, end, version)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def _cat_ranges(
        self,
        paths: list[str],
        starts: int | Iterable[int | None] | None,
        ends: int | Iterable[int | None] | None,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        if not isinstance(paths, list):
            raise TypeError("paths is a list")
        firsts = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
        lasts = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
        asked: dict[str, list[Asked]] = {}
        for number, (path, start, end) in enumerate(zip(paths, firsts, lasts, strict=True)):
            asked.setdefault(self._strip_protocol(path), []).append(Asked(number, start or 0, end))
        turns = asyncio.Semaphore(batch_size or self.batch_size)

        async def read(span: Span) -> dict[int, Any]:
            async with turns:
                try:
                    return span.cut(await self._cat_file(span.path, span.start, span.stop))
                except OSError as error:
                    return {part.number: error for part in span.asked}

        async def read_all(path: str, parts: list[Asked]) -> list[dict[int, Any]]:
            try:
                async with turns:
                    parts = await self._counted(path, parts)
            except OSError as error:
                return [{part.number: error for part in parts}]
            return await asyncio.gather(*map(read, spans(path, parts, max_gap)))

        read_of_each = await asyncio.gather(*[read_all(path, parts) for path, parts in asked.items()])
        found = {number: content for each in read_of_each for cut in each for number, content in cut.items()}
        results = [found[number] for number in range(len(paths))]
        error = next((each for each in results if isinstance(each, OSError)), None)
        if error is not None and on_error != "return":
            raise error
        return results

    async def _counted(self, path: str, parts: list[Asked]) -> list[Asked]:
        """Parts of a file, of which none counts from its end any more."""
        if all(part.start >= 0 and (part.stop or 0) >= 0 for part in parts):
            return parts
        size = (await self._info(path))["size"] or 0
        return [Asked(part.number, *within(part.start, part.stop, size)) for part in parts]

    async def _get_file(
        self,
        rpath: str,
        lpath: str | BinaryIO,
        callback: Any = DEFAULT_CALLBACK,
        version: int | str | None = None,
        **_: Any,
    ) -> None:
        info = await self._info(rpath, version=version)
        if info["type"] == "directory":
            await asyncio.to_thread(os.makedirs, cast("str", lpath), exist_ok=True)
            return
        callback.set_size(info["size"])
        pieces = self.link.pieces(info["name"], version=info["version"] if version is None else version)
        async with aclosing(pieces):
            if isfilelike(lpath):
                await write_out(pieces, cast("BinaryIO", lpath), callback)
                return
            with await asyncio.to_thread(open_local, cast("str", lpath)) as file:
                await write_out(pieces, file, callback)


def _info_of(found: Stat) -> dict[str, Any]:
    is_folder = found.kind == FileKind.FOLDER
    return {
        "name": found.path,
        "type": "directory" if is_folder else "file",
        "size": 0 if is_folder else found.size,
        "mtime": found.modified,
        "version": found.version,
        "digest": found.digest,
        "owner": found.owner,
        "by": found.by,
    }
