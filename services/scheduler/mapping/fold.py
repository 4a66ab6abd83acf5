"""Results put back in order: of tasks that end in any order, those are taken that follow what was taken before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Fold", "InOrder"]


class InOrder:
    """Pieces by where they begin, given out front to back without a gap."""

    def __init__(self, start: int = 0) -> None:
        self.next = start  # the item with which the next piece begins
        self._waiting: dict[int, tuple[int, Any]] = {}

    def put(self, start: int, stop: int, piece: Any) -> list[Any]:
        """A piece of the items from `start` up to `stop`; returns all pieces that follow now, in order."""
        self._waiting[start] = stop, piece
        ready = []
        while (found := self._waiting.pop(self.next, None)) is not None:
            self.next, each = found
            ready.append(each)
        return ready


class Fold:
    """A reduction whose shape depends on the tasks alone: neither on workers, nor on which ended first."""

    def __init__(self, reduce: Callable[[Any, Any], Any]) -> None:
        self._reduce = reduce
        self._order = InOrder()
        self.count = 0
        self.value: Any = None

    def put(self, start: int, stop: int, value: Any, count: int) -> None:
        """What a task folded its `count` values to; nothing, where that is 0."""
        for each, each_count in self._order.put(start, stop, (value, count)):
            if each_count == 0:
                continue
            self.value = each if self.count == 0 else self._reduce(self.value, each)
            self.count += each_count
