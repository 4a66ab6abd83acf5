"""10,000 tasks that do nothing over three nodes: ours, and Ray and Dask with three workers each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.cluster.node import Member
from benchmarks.scheduling.items import nothing
from benchmarks.scheduling.node import map_of
from benchmarks.scheduling.peers import DaskTasks, RayTasks
from services.devices.service import Devices
from services.scheduler.messages import Range
from services.scheduler.service import Scheduler

__all__ = ["DaskMap", "Map", "RayMap", "all_of"]

WORKERS = 2  # beside the first node
NODES = 1 + WORKERS
BATCH = 100  # items in a task, where a peer is told to have larger ones
# A worker node as `mk boot --nodes` starts it, without what no map needs.
WITHOUT = ("filesystem", "gateway", "inference", "memory", "models", "monitor")


class Map(Member):
    """`mk boot --nodes 2`, asked by its first node, which does a share of the tasks itself."""

    services = (Devices, Scheduler)
    settings = {
        "devices": {"tune_after": 0.0},
        "cluster": {
            "nodes": WORKERS,
            "worker": (
                "--set",
                "services.devices.tune_after=0.0",
                *(word for name in WITHOUT for word in ("--without", name)),
            ),
        },
    }

    async def start(self) -> None:
        """Boot all three, and see that each of them does something."""
        await super().start()
        await self.until(NODES, Scheduler.name)
        for _ in range(20):
            ask = map_of("pid", list(range(8 * NODES)), tasks=8 * NODES, arguments={"seconds": 0.02})
            if len(set(await self.system.call("scheduler.map", ask))) == NODES:
                return
        raise RuntimeError("not all nodes have done anything")

    async def map(self, count: int) -> dict[str, float]:
        """Seconds until all have ended: a task for each item, and tasks as the scheduler makes them."""
        return {"each": await self._seconds(count, tasks=count), "batched": await self._seconds(count)}

    async def _seconds(self, count: int, **fields: Any) -> float:
        began = time.perf_counter()
        values = await self.system.call("scheduler.map", map_of("nothing", Range(0, count), **fields))
        took = time.perf_counter() - began
        assert len(values) == count
        return took


def all_of(items: Sequence[int]) -> None:
    """One task for many items."""
    for item in items:
        nothing(item)


def _batches(count: int) -> list[range]:
    return [range(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]


class RayMap(RayTasks):
    """A local cluster with three workers."""

    cores = NODES

    def open(self) -> None:
        """Start it."""
        super().open()
        self._all_of: Any = self._ray.remote(all_of)
        self._ray.get([self._all_of.remote(batch) for batch in _batches(NODES * BATCH)])

    async def map(self, count: int) -> dict[str, float]:
        """Seconds until all have ended: a task for each item, and one for a hundred."""
        return await asyncio.to_thread(self._map, count)

    def _map(self, count: int) -> dict[str, float]:
        began = time.perf_counter()
        self.bulk(count)
        each = time.perf_counter()
        self._ray.get([self._all_of.remote(batch) for batch in _batches(count)])
        return {"each": each - began, "batched": time.perf_counter() - each}


class DaskMap(DaskTasks):
    """A local cluster of three processes."""

    cores = NODES

    async def map(self, count: int) -> dict[str, float]:
        """Seconds until all have ended: a task for each item, and one for a hundred."""
        return await asyncio.to_thread(self._map, count)

    def _map(self, count: int) -> dict[str, float]:
        began = time.perf_counter()
        self.bulk(count)
        each = time.perf_counter()
        self._client.gather(self._client.map(all_of, _batches(count), pure=False))
        return {"each": each - began, "batched": time.perf_counter() - each}
