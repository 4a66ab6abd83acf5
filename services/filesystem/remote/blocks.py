"""The bytes of files elsewhere, block by block: from the cache, or fetched once for all readers (hot: once a MiB).

A reader asks for blocks before it needs them, twice as many each time up to `AHEAD`, which come in one request while
those before are read. What is being fetched is shared by all who want it, and given up when nobody does any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from microkernel.errors import MicrokernelError, Overloaded, Unavailable, copy_of, from_exception
from services.filesystem.remote.cache import BLOCK, BlockCache
from services.filesystem.remote.faults import changed_meanwhile
from services.filesystem.remote.store import Found, Names, NoParts, Store, digest_of, shown

__all__ = ["Blocks"]

AHEAD = 4  # blocks that are fetched by one request; a reader has twice as many in memory at the most
FETCHES = 8  # requests at once
READERS = 64  # at once


class _Fetch:
    """Blocks in a row on their way, for as long as somebody waits."""

    def __init__(self, keys: list[str]) -> None:
        loop = asyncio.get_running_loop()
        self.blocks: dict[str, asyncio.Future[bytes]] = {key: loop.create_future() for key in keys}
        self.waiting = 0
        self.task: asyncio.Task[None] | None = None


class _Block(msgspec.Struct, frozen=True):
    """One block that a reader wants: in a fetch, or in the cache."""

    number: int
    key: str
    fetch: _Fetch | None = None


class Blocks:
    """What readers of one mount share."""

    def __init__(self, store: Store, cache: BlockCache) -> None:
        self._store = store
        self._cache = cache
        self._coming: dict[str, _Fetch] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        self._requests = asyncio.Semaphore(FETCHES)
        self._readers = 0
        self._closed = False

    async def close(self) -> None:
        """End what is being fetched; readers are told."""
        self._closed = True
        tasks = list(self._fetches)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def read(self, names: Names, found: Found, start: int, stop: int | None) -> AsyncGenerator[bytes, None]:
        """Bytes of a file that is as it was found. Raises `Aborted` where it is not any more, and `Overloaded`."""
        if self._readers >= READERS:
            raise Overloaded(f"{READERS} readers are at this mount already", retry_after=1.0)
        self._readers += 1
        try:
            place = start
            if found.ranges and found.size is not None:
                end = found.size if stop is None else min(stop, found.size)
                parts = self._in_parts(names, found, start, end)
                try:
                    async with aclosing(parts):
                        async for piece in parts:
                            place += len(piece)
                            yield piece
                except NoParts:
                    pass  # from here on as a stream
                else:
                    return
            whole = self._streamed(names, found, place, stop)
            async with aclosing(whole):
                async for piece in whole:
                    yield piece
        finally:
            self._readers -= 1

    async def _in_parts(self, names: Names, found: Found, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        ahead: deque[_Block] = deque()
        following, last, window = start // BLOCK, -(-stop // BLOCK), 1
        try:
            for number in range(following, last if stop > start else 0):
                if len(ahead) <= window // 2 and following < last:
                    upto = min(last, following + window)
                    ahead += self._want(names, found, range(following, upto))
                    following, window = upto, min(AHEAD, window * 2)
                content = await self._have(names, found, ahead[0])
                self._leave(ahead.popleft())
                yield _part(content, number, start, stop)
        finally:
            for block in ahead:
                self._leave(block)

    async def _streamed(self, names: Names, found: Found, start: int, stop: int | None) -> AsyncGenerator[bytes, None]:
        """As `read`, from a store that sends no parts: what the cache has, and from there on all that comes."""
        number = start // BLOCK
        while size := self._size_of(found, number):
            kept = await self._cache.get(self._key(names, found, number), size)
            if kept is None:
                break
            yield _part(kept, number, start, stop)
            number += 1
            if stop is not None and number * BLOCK >= stop:
                return
        got = number * BLOCK
        if found.size is not None and got >= found.size:
            return
        pieces = self._store.stream(names, found, got)
        async with aclosing(pieces):
            async for content in _rows(pieces):
                self._check_open()
                if len(content) == self._size_of(found, number):
                    await self._cache.put(self._key(names, found, number), content)
                yield _part(content, number, start, stop)
                number += 1
                got += len(content)
                if stop is not None and got >= stop:
                    return
        if found.size is not None and got != found.size:
            raise changed_meanwhile(shown(self._store.place, names))

    def _want(self, names: Names, found: Found, numbers: range) -> list[_Block]:
        """Blocks in a row: those that are neither here nor on their way begin to come."""
        blocks: list[_Block] = []
        row: list[tuple[int, str]] = []
        for number in numbers:
            key = self._key(names, found, number)
            fetch = self._coming.get(key)
            if fetch is None and key not in self._cache:
                row.append((number, key))
                continue
            blocks += self._begin(names, found, row)
            row = []
            blocks.append(self._join(number, key, fetch))
        return blocks + self._begin(names, found, row)

    def _begin(self, names: Names, found: Found, row: list[tuple[int, str]]) -> list[_Block]:
        if not row:
            return []
        fetch = _Fetch([key for _, key in row])
        self._coming.update(dict.fromkeys(fetch.blocks, fetch))
        fetch.task = asyncio.create_task(self._fetch(names, found, row[0][0], fetch), name="mount fetch")
        self._fetches.add(fetch.task)
        fetch.task.add_done_callback(self._fetches.discard)
        return [self._join(number, key, fetch) for number, key in row]

    def _join(self, number: int, key: str, fetch: _Fetch | None) -> _Block:
        if fetch is not None:
            fetch.waiting += 1
        return _Block(number, key, fetch)

    def _leave(self, block: _Block) -> None:
        """A reader has its block, or does not want it any more; what nobody waits for is given up."""
        fetch = block.fetch
        if fetch is None:
            return
        fetch.waiting -= 1
        if fetch.waiting == 0 and not all(future.done() for future in fetch.blocks.values()):
            self._forget(fetch)
            assert fetch.task is not None
            fetch.task.cancel()

    async def _have(self, names: Names, found: Found, block: _Block) -> bytes:
        """A block's bytes. One that the cache has lost since is fetched after all."""
        self._check_open()
        size = self._size_of(found, block.number)
        if block.fetch is None:
            kept = await self._cache.get(block.key, size)
            if kept is not None:
                return kept
            (block,) = self._want(names, found, range(block.number, block.number + 1))
            try:
                return await self._have(names, found, block)
            finally:
                self._leave(block)
        try:
            return await asyncio.shield(block.fetch.blocks[block.key])
        except MicrokernelError as error:
            raise copy_of(error, type(error)) from None  # each reader has one of its own

    async def _fetch(self, names: Names, found: Found, first: int, fetch: _Fetch) -> None:
        """Have blocks come, give them to who waits, and keep them. Where one fails, all do, and nothing is kept."""
        start = first * BLOCK
        try:
            async with self._requests:
                stop = start + (len(fetch.blocks) - 1) * BLOCK + self._size_of(found, first + len(fetch.blocks) - 1)
                content = await self._store.fetch(names, found, start, stop)
            if len(content) != stop - start:
                raise changed_meanwhile(shown(self._store.place, names))
            parts = [content[place : place + BLOCK] for place in range(0, len(content), BLOCK)]
            del content
            for (key, future), part in zip(fetch.blocks.items(), parts, strict=True):
                await self._cache.put(key, part)
                future.set_result(part)
        except asyncio.CancelledError:
            self._fail(fetch, Unavailable("the mount was removed", remedy="mk fs mounts"))
            raise
        except Exception as error:  # noqa: BLE001 - given to all who wait
            self._fail(fetch, from_exception(error))
        finally:
            self._forget(fetch)

    def _fail(self, fetch: _Fetch, error: MicrokernelError) -> None:
        for future in fetch.blocks.values():
            if not future.done():
                future.set_exception(error)
                future.exception()  # somebody has looked at it

    def _forget(self, fetch: _Fetch) -> None:
        for key in fetch.blocks:
            if self._coming.get(key) is fetch:
                del self._coming[key]

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the mount was removed", remedy="mk fs mounts shows what there is")

    def _size_of(self, found: Found, number: int) -> int:
        """Bytes of a block; 0 where the size of the file is not known."""
        return 0 if found.size is None else max(0, min(BLOCK, found.size - number * BLOCK))

    def _key(self, names: Names, found: Found, number: int) -> str:
        mark = found.mark or f"since {found.since}"
        return digest_of(["/".join(names), mark, str(found.size), str(number)])


async def _rows(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Pieces as blocks."""
    content = bytearray()
    async for piece in pieces:
        content += piece
        while len(content) >= BLOCK:
            yield bytes(content[:BLOCK])
            del content[:BLOCK]
    if content:
        yield bytes(content)


def _part(content: bytes, number: int, start: int, stop: int | None) -> bytes:
    """What is between `start` and `stop` of the file, of a block."""
    place = number * BLOCK
    return content[max(0, start - place) : None if stop is None else max(0, stop - place)]
