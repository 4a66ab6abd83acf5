"""N items in M tasks: sizes that differ by at most one, or sizes that follow what items take."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["Equal", "Guided", "Partition"]

TARGET = 0.1  # seconds that a task takes, where nobody said how many there are
GROWTH = 8  # times as many items as the last task had, at most: the first ones may have been the short ones
NEWEST = 0.3  # weight of the newest task in what an item is taken to take
RESERVE = 2  # tasks for each worker that are left for the end, so that none is alone with the last


class Partition(ABC):
    """How a job is cut into tasks, one after the other."""

    @abstractmethod
    def next(self, start: int, left: int, workers: int) -> int:
        """How many items the task has that begins at `start`: at least one. `left` are not in a task yet."""

    def note(self, items: int, seconds: float) -> None:  # noqa: B027 - most know beforehand
        """A task of so many items took so long."""


class Equal(Partition):
    """M tasks of N/M items: the first N mod M have one more. Where they begin depends on nothing else."""

    def __init__(self, items: int, tasks: int) -> None:
        """`tasks` is from 1 to `items`."""
        self._least, self._more = divmod(items, tasks)

    def next(self, start: int, left: int, workers: int) -> int:  # noqa: ARG002 - others ask for them
        longer = self._least + 1
        if start < self._more * longer:
            return longer - start % longer
        return self._least - (start - self._more * longer) % self._least


class Guided(Partition):
    """Tasks of about 100 ms, and smaller ones at the end, as in guided self-scheduling.

    Polychronopoulos and Kuck, IEEE Transactions on Computers C-36, 1987.
    """

    def __init__(self) -> None:
        self._each = 0.0  # seconds
        self._last = 0  # items

    def next(self, start: int, left: int, workers: int) -> int:  # noqa: ARG002 - others ask for it
        if self._last == 0:
            wanted = 1
        elif self._each > 0.0:
            wanted = min(int(TARGET / self._each) or 1, self._last * GROWTH)
        else:
            wanted = self._last  # nothing has ended yet
        fair = -(-left // (RESERVE * workers))
        self._last = max(1, min(wanted, fair, left))
        return self._last

    def note(self, items: int, seconds: float) -> None:
        each = seconds / items
        self._each = each if self._each == 0.0 else self._each + NEWEST * (each - self._each)
