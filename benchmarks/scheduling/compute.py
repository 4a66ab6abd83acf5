"""A map that computes with torch: two threads against one, and the same on threads without a scheduler.

The latter says what the machine has to give: two processors that share one core have less than twice as much.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.scheduling.items import multiply
from benchmarks.scheduling.node import DEVICE, MapNode
from microkernel.executor import Executor
from services.scheduler.messages import Range

__all__ = ["Compute"]

THREADS = 2


def _one_core() -> None:
    """As the CPU's own device has it."""
    torch.set_num_threads(1)


class _TorchNode(MapNode):
    def __init__(self, threads: int) -> None:
        self.threads = threads

    def executor(self, threads: int) -> Executor:
        """Threads on which torch uses one core."""
        return Executor(DEVICE, cores=threads, initialize_core=_one_core)


class Compute:
    """Two nodes in one process, of which one computes at a time."""

    async def start(self) -> None:
        """Boot both."""
        self._nodes = {count: _TorchNode(count) for count in (1, THREADS)}
        for node in self._nodes.values():
            await node.start()
        self._pools = {count: ThreadPoolExecutor(count, initializer=_one_core) for count in (1, THREADS)}

    async def stop(self) -> None:
        """Shut both down."""
        for pool in self._pools.values():
            pool.shutdown()
        for node in reversed(self._nodes.values()):  # each looks whether more is left than was there before it
            await node.stop()

    async def speed_up(self, items: int, size: int, times: int) -> dict[str, float]:
        """Seconds of a map on one thread and on two, and how many times faster two are; and those without a map."""
        found = {}
        for count in (1, THREADS):
            began = time.perf_counter()
            arguments = {"size": size, "times": times}
            await self._nodes[count].map("multiply", Range(0, items), arguments=arguments)
            found[f"map/{count}"] = time.perf_counter() - began
            began = time.perf_counter()
            loop = asyncio.get_running_loop()
            await asyncio.gather(
                *(loop.run_in_executor(self._pools[count], _multiply, size, times) for _ in range(items))
            )
            found[f"bare/{count}"] = time.perf_counter() - began
        return {
            "one": found["map/1"],
            "two": found[f"map/{THREADS}"],
            "faster": found["map/1"] / found[f"map/{THREADS}"],
            "bare": found["bare/1"] / found[f"bare/{THREADS}"],
        }


def _multiply(size: int, times: int) -> None:
    multiply(0, size=size, times=times)
