"""Tasks that do nothing, ours: many in one map, and a map for each."""

from __future__ import annotations

import functools

from benchmarks.messages.stopwatch import percentiles, rate, times
from benchmarks.scheduling.node import MapNode, Where
from services.scheduler.messages import Range

__all__ = ["Processes", "Threads"]


class _Tasks(MapNode):
    workers: Where

    async def start(self) -> None:
        """Boot, and have the workers there."""
        await super().start()
        await self._map(8)

    async def tasks(self, seconds: float, count: int) -> dict[str, float]:
        """Seconds a task where `count` are in one map, and of a map of one."""
        single = percentiles(await times(functools.partial(self._map, 1), seconds))
        return {"bulk": 1 / await rate(self._map, seconds, batch=count), "single": single["p50"], "p99": single["p99"]}

    async def _map(self, count: int) -> None:
        values = await self.map("nothing", Range(0, count), tasks=count, workers=self.workers)
        assert len(values) == count


class Threads(_Tasks):
    """Workers are threads of the node."""

    workers = "threads"


class Processes(_Tasks):
    """Workers are processes of their own."""

    workers = "processes"
