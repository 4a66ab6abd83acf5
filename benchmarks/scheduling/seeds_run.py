"""The run of this project's seed: N items in M tasks over K workers, and what the life of a thread costs.

A thousand tasks whose results come in order, each once; and ten million numbers that ten workers sum in ten tasks of a
million. T_c is what it takes to create a thread, T_s from handing a job in to its start, T_f to end the threads.
"""

from __future__ import annotations

import time

from benchmarks.scheduling.node import DEVICE, MapNode, map_of
from microkernel.executor import ExecutorStatus
from services.scheduler.messages import Range

__all__ = ["SeedsRun"]

WORKERS = 10


class SeedsRun(MapNode):
    """Ten threads, new ones for each part."""

    threads = WORKERS

    async def measure(self, tasks: int, items: int) -> dict[str, float]:
        """Seconds of both parts; T_c, T_s (median and p99) and T_f of the second one."""
        await self.equip(WORKERS)
        in_order = await self._in_order(tasks)
        executor = await self.equip(WORKERS)
        summed = await self._summed(items)
        await self.system.kernel.executors.remove(DEVICE)
        status: ExecutorStatus = executor.status()
        await self.equip(WORKERS)
        return {
            "in_order": in_order,
            "summed": summed,
            "t_c": status.t_c.median,
            "t_s": status.t_s.median,
            "t_s_worst": status.t_s.worst,
            "t_f": status.t_f.median,
        }

    async def _in_order(self, tasks: int) -> float:
        """Raises where a result is missing, comes twice or out of its turn."""
        ask = map_of("twice", Range(0, tasks), tasks=tasks)
        began = time.perf_counter()
        values = [value async for piece in self.system.stream("scheduler.imap", ask) for value in piece.values]
        took = time.perf_counter() - began
        if values != [2 * item for item in range(tasks)]:
            raise RuntimeError("the results are not those of all items, each once and in order")
        return took

    async def _summed(self, items: int) -> float:
        began = time.perf_counter()
        value = await self.map("total", Range(0, items), tasks=10, whole=True, reduce="sum")
        took = time.perf_counter() - began
        if value != items * (items - 1) // 2:
            raise RuntimeError(f"the sum of {items} items is not {value}")
        return took
