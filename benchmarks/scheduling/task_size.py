"""How many items a task has where nobody says it, against the best of those that were tried by hand.

The workers are processes: items that compute in Python on threads would wait for each other's interpreter, and that
would be measured instead. An item is a loop of a fixed number of turns. By hand, the number of tasks is chosen once by
a trial, and then taken in turn with the automatic one: the best of several in each round would be the luckiest one.
"""

from __future__ import annotations

import statistics
import time

import msgspec

from benchmarks.messages.line import Running
from benchmarks.scheduling.items import spin
from benchmarks.scheduling.node import MapNode
from services.scheduler.messages import Range

__all__ = ["COSTS", "TaskSizes", "compare"]

BY_HAND = (2, 4, 8, 16, 32, 64, 128, 256)  # tasks of a map


class Cost(msgspec.Struct, frozen=True):
    """What an item takes, in seconds, and how many of them make a map of about a second on one core."""

    about: str
    seconds: float
    items: int


COSTS = {
    "1us": Cost("items of 1 us", 1e-6, 500_000),
    "100us": Cost("items of 100 us", 1e-4, 10_000),
    "10ms": Cost("items of 10 ms", 1e-2, 100),
}


class TaskSizes(MapNode):
    """As many processes as there are cores."""

    async def start(self) -> None:
        """Boot, and see how fast this machine is."""
        await super().start()
        self._best: dict[str, int] = {}
        loops = 2_000_000
        self._loop = min(_seconds_of(loops) for _ in range(5)) / loops
        await self.map("nothing", Range(0, 8), tasks=8, workers="processes")

    async def settle(self, repeats: int, share: float) -> None:
        """Try what is best by hand, if that is not known yet."""
        for name, cost in COSTS.items():
            if name not in self._best:
                self._best[name] = await self._try(cost, _items(cost, share), repeats)

    async def compare(self, repeats: int, share: float) -> dict[str, float]:
        """Seconds of maps of `share` of the items, each the median of so many; and how near the automatic one is."""
        found: dict[str, float] = {}
        for name, cost in COSTS.items():
            items = _items(cost, share)
            taken: dict[int | None, list[float]] = {None: [], self._best[name]: []}
            for turn in range(repeats):
                for tasks in list(taken) if turn % 2 else list(reversed(taken)):
                    taken[tasks].append(await self._seconds(cost, items, tasks))
            automatic, by_hand = (statistics.median(each) for each in taken.values())
            found |= {f"{name}/auto": automatic, f"{name}/hand": by_hand, f"{name}/near": by_hand / automatic}
            found[f"{name}/tasks"] = self._best[name]
        return found

    async def _try(self, cost: Cost, items: int, repeats: int) -> int:
        """The number of tasks with which a map is fastest."""
        taken: dict[int, list[float]] = {tasks: [] for tasks in BY_HAND if tasks <= items}
        for _ in range(repeats):
            for tasks, found in taken.items():
                found.append(await self._seconds(cost, items, tasks))
        return min(taken, key=lambda tasks: statistics.median(taken[tasks]))

    async def _seconds(self, cost: Cost, items: int, tasks: int | None) -> float:
        loops = max(1, round(cost.seconds / self._loop))
        began = time.perf_counter()
        await self.map("spin", Range(0, items), tasks=tasks, workers="processes", arguments={"loops": loops})
        return time.perf_counter() - began


def compare(running: Running, is_quick: bool) -> dict[str, float]:
    """The question of the line; what is best by hand is found out before the first round."""
    options = {"repeats": 1, "share": 0.05} if is_quick else {"repeats": 3, "share": 1.0}
    running.client.ask("settle", **options)
    return dict(running.client.ask("compare", **options))


def _items(cost: Cost, share: float) -> int:
    return max(BY_HAND[0], round(cost.items * share))


def _seconds_of(loops: int) -> float:
    began = time.perf_counter()
    spin(0, loops=loops)
    return time.perf_counter() - began
