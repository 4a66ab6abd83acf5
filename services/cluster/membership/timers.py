"""What is to be done when, by name; to set one again moves it. Sans-IO (hot: several times a probe)."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["Timers"]

SPARE = 64  # entries that may be kept although they were moved

K = TypeVar("K", bound=Hashable)


class Timers(Generic[K]):
    """Each key has one time at most, in seconds."""

    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []  # with entries that hold no longer, which are passed over
        self._count = itertools.count()

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: object) -> bool:
        return key in self._at

    def set(self, key: K, when: float) -> None:
        """Have it done at `when`, and at no other time."""
        if self._at.get(key) == when:
            return
        self._at[key] = when
        heapq.heappush(self._heap, (when, next(self._count), key))
        if len(self._heap) > 2 * len(self._at) + SPARE:
            self._heap = [(time, place, each) for time, place, each in self._heap if self._at.get(each) == time]
            heapq.heapify(self._heap)

    def drop(self, key: K) -> None:
        """It need not be done."""
        self._at.pop(key, None)

    def first(self) -> float:
        """When the next is due; infinity where there is none."""
        heap, at = self._heap, self._at
        while heap and at.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def due(self, now: float) -> Iterator[K]:
        """Those whose time has come, in its order. What is set for now meanwhile comes too."""
        while self.first() <= now:
            _, _, key = heapq.heappop(self._heap)
            del self._at[key]
            yield key
