"""Things in the order of a key (hot: several times for each turn of a policy)."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["Keyed"]

T = TypeVar("T")


class Keyed(Generic[T]):
    """The smallest key goes first, of equals what came first.

    The heap has the keys alone, each once. So two are compared without a look at what has them, which of a hundred
    thousand is in no cache; and where keys are few, so are the comparisons.
    """

    __slots__ = ("_behind", "_firsts", "_keys")

    def __init__(self) -> None:
        self._keys: list[float] = []
        self._firsts: dict[float, T] = {}  # what came first with each key
        self._behind: dict[float, deque[T]] = {}  # and what came with it later: most keys have one thing

    def __iter__(self) -> Iterator[T]:
        """All, equals in their order."""
        behind = self._behind
        return iter([thing for key, first in self._firsts.items() for thing in (first, *behind.get(key, ()))])

    def push(self, key: float, thing: T) -> None:
        """It comes."""
        if self._firsts.setdefault(key, thing) is thing:
            heapq.heappush(self._keys, key)
        elif key in self._behind:
            self._behind[key].append(thing)
        else:
            self._behind[key] = deque((thing,))

    def first(self) -> T | None:
        """What `pop` would take."""
        return self._firsts[self._keys[0]] if self._keys else None

    def pop(self) -> T | None:
        """Take out the first."""
        keys, firsts = self._keys, self._firsts
        if not keys:
            return None
        key = keys[0]
        if key not in self._behind:
            heapq.heappop(keys)
            return firsts.pop(key)
        behind = self._behind[key]
        first, firsts[key] = firsts[key], behind.popleft()
        if not behind:
            del self._behind[key]
        return first

    def put_back(self, key: float, thing: T) -> None:
        """`pop` and `push` in one step of the heap: `thing` comes in place of the first."""
        keys, firsts = self._keys, self._firsts
        before = keys[0]
        if before in self._behind or key in firsts:
            self.pop()
            self.push(key, thing)
        else:
            heapq.heapreplace(keys, key)
            del firsts[before]
            firsts[key] = thing
