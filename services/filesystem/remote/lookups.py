"""What is where in other storage: asked once for all who want to know, and remembered for some seconds."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

import msgspec

from microkernel.errors import MicrokernelError, Unavailable, copy_of
from services.filesystem.paths import twin_key
from services.filesystem.remote.store import Found, Names, Store

__all__ = ["Lookups", "order_of"]

MOST = 200_000  # names that are remembered, in files and in lists

T = TypeVar("T")


class _Asking(Generic[T]):
    """A question on its way, and how many wait for its answer."""

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.waiting = 0


class Lookups:
    """What one mount has been told by its store."""

    def __init__(self, store: Store, seconds: float, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._seconds = seconds
        self._now = now
        self._found: OrderedDict[Names, tuple[float, Found]] = OrderedDict()
        self._lists: OrderedDict[Names, tuple[float, list[Found]]] = OrderedDict()
        self._listed = 0
        self._asked: dict[tuple[str, Names], _Asking[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changes = 0

    async def find(self, names: Names, *, anew: bool = False) -> Found:
        """What names lead to; with `anew` the store is asked in any case."""
        kept = self._found.get(names)
        if kept is not None and not anew and self._now() < kept[0]:
            return kept[1]

        async def ask() -> Found:
            changes, since = self._changes, self._now()
            found = msgspec.structs.replace(await self._store.find(names), since=since)
            if changes == self._changes:  # or what it told may be what was before
                self._found[names] = (since + self._seconds, found)
                self._found.move_to_end(names)
                if len(self._found) > MOST:
                    self._found.popitem(last=False)
            return found

        return await self._once(("find", names), ask)

    async def list(self, names: Names) -> list[Found]:
        """What is in a folder, in the order of `order_of`."""
        kept = self._lists.get(names)
        if kept is not None and self._now() < kept[0]:
            return kept[1]

        async def ask() -> list[Found]:
            changes, since = self._changes, self._now()
            found = sorted(await self._store.list(names), key=lambda each: order_of(each.name))
            if changes == self._changes:
                self._drop(names)
                self._lists[names] = (since + self._seconds, found)
                self._listed += len(found)
                while self._listed > MOST:
                    self._drop(next(iter(self._lists)))
            return found

        return await self._once(("list", names), ask)

    def forget(self) -> None:
        """Something has been changed: ask again."""
        self._changes += 1
        self._found.clear()
        self._lists.clear()
        self._listed = 0
        self._asked.clear()

    async def close(self) -> None:
        """End what is being asked."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _drop(self, names: Names) -> None:
        kept = self._lists.pop(names, None)
        if kept is not None:
            self._listed -= len(kept[1])

    async def _once(self, key: tuple[str, Names], ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        asking: _Asking[T] = self._asked.get(key) or _Asking(asyncio.create_task(ask(), name="mount lookup"))
        if asking.task not in self._tasks:
            self._asked[key] = asking
            self._tasks.add(asking.task)
            asking.task.add_done_callback(self._tasks.discard)
        asking.waiting += 1
        try:
            await asyncio.wait([asking.task])
        finally:
            asking.waiting -= 1
            if not asking.waiting and not asking.task.done():
                asking.task.cancel()
            if (asking.task.done() or not asking.waiting) and self._asked.get(key) is asking:
                del self._asked[key]
        if asking.task.cancelled():
            raise Unavailable("the mount was removed", remedy="mk fs mounts")
        error = asking.task.exception()
        if isinstance(error, MicrokernelError):
            raise copy_of(error, type(error))
        return asking.task.result()


def order_of(name: str) -> tuple[str, str]:
    """By what names are sorted, as in the rest of the tree; some stores have names that are twins there."""
    return twin_key(name), name
