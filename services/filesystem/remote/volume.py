"""Other storage as a volume: who may read it, what is in it, and, where the mount says so, changes by root."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

from microkernel.errors import AlreadyExists, Denied, Invalid, NotFound, PreconditionFailed
from services.filesystem.messages import FileKind, Stat
from services.filesystem.paths import TreePath
from services.filesystem.remote.blocks import Blocks
from services.filesystem.remote.cache import BlockCache
from services.filesystem.remote.lookups import Lookups, order_of
from services.filesystem.remote.spool import Spool
from services.filesystem.remote.store import Found, Names, Store, WritableStore
from services.filesystem.volume import (
    CHUNK,
    Version,
    a_folder,
    folder_stat,
    no_versions,
    not_a_folder,
)

__all__ = ["RemoteVolume", "WritableRemoteVolume"]

OWNER = "root"
MOST_AT_ONCE = 100_000  # files and folders that one call removes or renames


class RemoteVolume:
    """A mount that is read."""

    def __init__(
        self,
        mount: TreePath,
        about: str,
        store: Store,
        cache: BlockCache,
        seconds: float,
        users: tuple[str, ...] | None,
    ) -> None:
        """`users` may read besides root; None is everybody. `seconds` is how long is remembered what is where."""
        self.mount = mount
        self.about = about
        self.cache = cache
        self._store = store
        self._users = users
        self._lookups = Lookups(store, seconds)
        self._blocks = Blocks(store, cache)

    def may_read(self, user: str | None) -> bool:
        """Whether a user may read what is here; None is root."""
        return user is None or self._users is None or user in self._users

    async def stat(self, path: TreePath, user: str | None, /, version: Version = None) -> Stat:
        if version is not None:
            raise no_versions(path)
        if path == self.mount:  # it is there, whatever its store says: a folder above it can be listed
            return folder_stat(path, self.about if self.may_read(user) else "")
        return _stat(path, await self._find(path, user))

    async def list(
        self, path: TreePath, user: str | None, /, version: Version = None, *, after: str = "", limit: int = 10_000
    ) -> list[Stat]:
        if version is not None:
            raise no_versions(path)
        self._check(path, user)
        found = await self._lookups.list(self._names(path))
        if after:  # which may be gone by now
            found = [each for each in found if order_of(each.name) > order_of(after)]
        return [_stat(path / each.name, each) for each in found[:limit]]

    async def read(
        self, path: TreePath, user: str | None, /, start: int, stop: int | None, version: Version = None
    ) -> AsyncGenerator[bytes, None]:
        if version is not None:
            raise no_versions(path)
        found = await self._find(path, user)
        if found.folder:
            raise a_folder(path)
        blocks = self._blocks.read(self._names(path), found, start, stop)
        async with aclosing(blocks):
            async for block in blocks:
                for place in range(0, len(block), CHUNK):
                    yield block[place : place + CHUNK]

    async def open(self) -> None:
        """Find what the cache has from before; the store is not asked yet."""
        await self.cache.open()

    async def close(self) -> None:
        await self._blocks.close()
        await self._lookups.close()
        await self._store.close()

    def _names(self, path: TreePath) -> Names:
        return path.below(self.mount).names

    def _check(self, path: TreePath, user: str | None) -> None:
        if not self.may_read(user):
            raise Denied(f"only {', '.join(('root', *(self._users or ())))} may read {path}")

    async def _find(self, path: TreePath, user: str | None, *, anew: bool = False) -> Found:
        self._check(path, user)
        if path == self.mount:
            return Found("", folder=True)
        return await self._lookups.find(self._names(path), anew=anew)


class WritableRemoteVolume(RemoteVolume):
    """A mount that root changes. What comes in is kept on this machine until it is whole."""

    def __init__(
        self,
        mount: TreePath,
        about: str,
        store: WritableStore,
        cache: BlockCache,
        seconds: float,
        users: tuple[str, ...] | None,
        spool: Path,
    ) -> None:
        """`spool` is the folder for what comes in."""
        super().__init__(mount, about, store, cache, seconds, users)
        self._target = store
        self._spool = spool

    async def open(self) -> None:
        """As for others; what was coming in when the node died is cleared away."""
        await asyncio.to_thread(shutil.rmtree, self._spool, True)
        await super().open()

    @property
    def atomic(self) -> bool:
        """Whether a file is there whole or not at all while it is put."""
        return self._target.atomic

    async def write(self, path: TreePath, content: bytes, user: str | None, if_version: int | None = None) -> Stat:
        """Put a content in place of what a path leads to. Versions are not kept: `if_version` is 0 or None."""
        self._check_change(path, user)
        async with Spool(self._spool) as spool:
            await spool.write(content)
            return await self._put(path, spool, if_version)

    async def write_stream(
        self,
        path: TreePath,
        pieces: AsyncIterator[bytes],
        user: str | None,
        start: int | None = None,
        if_version: int | None = None,
    ) -> Stat:
        """`write` in pieces; with `start` the whole file is read, changed and put."""
        self._check_change(path, user)
        async with Spool(self._spool) as spool:
            if start is not None:
                await self._take_over(path, spool, start)
            async for piece in pieces:
                await spool.write(piece)
            return await self._put(path, spool, if_version)

    async def make_folder(self, path: TreePath, user: str | None, *, exist_ok: bool) -> Stat:
        """Make a folder, and those on the way. Stores that have none make it with its first file."""
        self._check_change(path, user)
        found = await self._there(path)
        if found is not None and not (found.folder and exist_ok):
            raise AlreadyExists(f"{path} is there already", field="path")
        if found is None:
            await self._check_way(path)
            await self._change(self._target.make_folder(self._names(path)))
            found = await self._there(path) or Found(path.name, folder=True)
        return _stat(path, found)

    async def remove(self, path: TreePath, user: str | None, *, recursive: bool) -> None:
        """Remove a file or folder, one after the other; a link without what it leads to."""
        self._check_change(path, user)
        found = await self._find(path, user, anew=True)
        try:
            if not found.folder or found.link:
                await self._target.remove(self._names(path), folder=False)
                return
            inside = await self._walk(self._names(path))
            if inside and not recursive:
                raise PreconditionFailed(f"{path} is not empty", remedy="remove it with what is in it: recursive")
            for names, each in reversed(inside):
                await self._target.remove(names, folder=each.folder and not each.link)
            await self._target.remove(self._names(path), folder=True)
        finally:
            self._lookups.forget()

    async def rename(self, path: TreePath, to: TreePath, user: str | None, *, replace: bool) -> Stat:
        """Another path in this mount; a folder's files go one after the other, where the store moves only files."""
        self._check_change(path, user)
        self._check_change(to, user)
        found = await self._find(path, user, anew=True)
        if path == to:
            return _stat(to, found)
        if to.is_within(path):
            raise Invalid(f"{to} is in {path} itself", field="to")
        there = await self._there(to)
        if there is not None and (there.folder or found.folder or not replace):
            raise AlreadyExists(f"{to} is there already", field="to")
        await self._make_way(to)
        if found.folder and not self._target.moves_folders:
            await self._change(self._move_folder(self._names(path), self._names(to)))
        else:
            await self._change(self._target.move(self._names(path), self._names(to)))
        return _stat(to, await self._there(to) or found)

    async def copy(self, path: TreePath, to: TreePath, user: str | None, version: Version = None) -> Stat:
        """A file's content under another path too, in place of what is there."""
        if version is not None:
            raise no_versions(path)
        self._check_change(to, user)
        found = await self._find(path, user, anew=True)
        if found.folder:
            raise a_folder(path)
        await self._check_file(to)
        if path != to:
            await self._make_way(to)
            await self._change(self._target.copy(self._names(path), self._names(to)))
        return _stat(to, await self._find(to, user, anew=True))

    def _check_change(self, path: TreePath, user: str | None) -> None:
        if user is not None:
            raise Denied(f"only root may change {path}")
        if path == self.mount:
            raise a_folder(path)

    async def _put(self, path: TreePath, spool: Spool, if_version: int | None) -> Stat:
        if if_version:
            raise no_versions(path)
        found = await self._check_file(path)
        if found is not None and if_version == 0:
            raise AlreadyExists(f"{path} is there already", field="path")
        await self._make_way(path)
        await self._change(self._target.put(self._names(path), await spool.finish()))
        return _stat(path, await self._find(path, None, anew=True))

    async def _take_over(self, path: TreePath, spool: Spool, start: int) -> None:
        """Put what is in a file into the spool, which then goes on at `start`."""
        found = await self._find(path, None, anew=True)
        if found.folder:
            raise a_folder(path)
        blocks = self._blocks.read(self._names(path), found, 0, None)
        async with aclosing(blocks):
            async for block in blocks:
                await spool.write(block)
        if start > spool.size:
            raise Invalid(f"{path} has {spool.size} bytes, and {start} is behind its end", field="start")
        await spool.go_to(start)

    async def _there(self, path: TreePath) -> Found | None:
        try:
            return await self._find(path, None, anew=True)
        except NotFound:
            return None

    async def _check_file(self, path: TreePath) -> Found | None:
        found = await self._there(path)
        if found is not None and found.folder:
            raise a_folder(path)
        return found

    async def _check_way(self, path: TreePath) -> bool:
        """Whether the folder of a path is there. Raises `Invalid` for a file on the way to it."""
        place = path.parent
        while place != self.mount:
            found = await self._there(place)
            if found is not None:
                if not found.folder:
                    raise not_a_folder(place)
                return place == path.parent
            place = place.parent
        return path.parent == self.mount

    async def _make_way(self, path: TreePath) -> None:
        if not await self._check_way(path):
            await self._target.make_folder(self._names(path.parent))

    async def _change(self, change: Coroutine[Any, Any, None]) -> None:
        try:
            await change
        finally:
            self._lookups.forget()

    async def _walk(self, top: Names) -> list[tuple[Names, Found]]:
        """What is in a folder, and below; folders before what is in them."""
        inside: list[tuple[Names, Found]] = []
        left = [top]
        while left:
            folder = left.pop()
            for each in await self._store.list(folder):
                inside.append(((*folder, each.name), each))
                if each.folder and not each.link:
                    left.append((*folder, each.name))
            if len(inside) > MOST_AT_ONCE:
                raise PreconditionFailed(
                    f"more than {MOST_AT_ONCE} files are in {self.mount / top[0]}", remedy="take its folders one by one"
                )
        return inside

    async def _move_folder(self, names: Names, to: Names) -> None:
        inside = await self._walk(names)
        await self._target.make_folder(to)
        for place, each in inside:
            target = (*to, *place[len(names) :])
            await (self._target.make_folder(target) if each.folder else self._target.move(place, target))
        for place, each in reversed(inside):
            if each.folder:
                await self._target.remove(place, folder=True)
        await self._target.remove(names, folder=True)


def _stat(path: TreePath, found: Found) -> Stat:
    kind = FileKind.FOLDER if found.folder else FileKind.FILE
    return Stat(path=str(path), kind=kind, size=found.size, modified=found.modified, owner=OWNER)
