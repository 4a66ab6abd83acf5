"""Names: what it takes to look one up, list a folder and rename a file, among few and among a million."""

from __future__ import annotations

import random
import time
from functools import partial

from benchmarks.filesystem.node import TreeNode
from services.filesystem.paths import TreePath
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.contents import Content, digest_of
from services.filesystem.stored.volume import StoredVolume

__all__ = ["Names"]

PER_FOLDER = 100
PAGE = 50  # names of one page, whatever the folder has
BATCH = 5_000  # files that one transaction makes: a call for each would take minutes


class Names(TreeNode):
    """Two trees on one node; folders of both have a hundred files, and one of each has all the names."""

    async def start(self) -> None:
        """Boot; the trees are made when they are asked for."""
        await super().start()
        self._made: set[tuple[int, int]] = set()
        self._folders: dict[int, list[str]] = {}  # by how many files there are, as a listing has them

    async def make(self, count: int, first: int, stop: int) -> None:
        """Make some files of a tree of `count`, once."""
        if (count, first) not in self._made:
            self._made.add((count, first))
            for begin in range(first, stop, BATCH):
                await self._volume.change(partial(_make, count, begin, min(begin + BATCH, stop)))

    async def ask(self, count: int, times: int) -> dict[str, float]:
        """Seconds of a stat, of a list of a hundred files, of a page of a large folder, and of a rename."""
        chance = random.Random(count)
        self._folders[count] = sorted(str(number) for number in range(count // PER_FOLDER))
        found = {}
        for name, one in {"stat": self._stat, "list": self._list, "page": self._page, "rename": self._rename}.items():
            spent = []
            for _ in range(times):
                number = chance.randrange(count)
                began = time.perf_counter()
                await one(count, number)
                spent.append(time.perf_counter() - began)
            found[name] = sorted(spent)[len(spent) // 2]
        return found

    @property
    def _volume(self) -> StoredVolume:
        return self.filesystem.made[-1].tree.stored(TreePath(()))

    async def _stat(self, count: int, number: int) -> None:
        await self.system.call("filesystem.stat", path=_path(count, number))

    async def _list(self, count: int, number: int) -> None:
        found = await self.system.call("filesystem.list", path=f"/data/{count}/{number // PER_FOLDER}")
        assert len(found) == PER_FOLDER

    async def _page(self, count: int, number: int) -> None:
        names = self._folders[count]
        after = names[number % (len(names) - PAGE)]
        found = await self.system.call("filesystem.list", path=f"/data/{count}", limit=PAGE, after=after)
        assert len(found) == PAGE

    async def _rename(self, count: int, number: int) -> None:
        path = _path(count, number)
        await self.system.call("filesystem.rename", path=path, to=f"{path}-renamed")
        await self.system.call("filesystem.rename", path=f"{path}-renamed", to=path)


def _path(count: int, number: int) -> str:
    return f"/data/{count}/{number // PER_FOLDER}/{number}"


def _make(count: int, first: int, stop: int, changes: Changes) -> None:
    for number in range(first, stop):
        content = str(number).encode()
        path = TreePath(tuple(_path(count, number).split("/")[1:]))
        changes.put(path, Content(digest_of(content), len(content), inline=content), None)
    changes.told.clear()
