"""Workers that lag behind: one of eight that is slow, and one that is frozen in the middle of a map.

Items rest and do not compute, so eight workers have room on two cores. The workers are processes: tasks that are run by
threads change them after each quantum, so that no thread ever has a task of its own to be late with.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import time
from contextlib import nullcontext
from unittest import mock

from benchmarks.messages.stopwatch import P99, percentile
from benchmarks.scheduling.node import MapNode, map_of
from services.scheduler.mapping import maps
from services.scheduler.mapping.job import Job
from services.scheduler.messages import Range

__all__ = ["Frozen", "Slow"]


class Slow(MapNode):
    """One of eight processes takes four times as long for each item."""

    processes = 8

    async def start(self) -> None:
        """Boot, and choose the one."""
        await super().start()
        self._slow = (await self.pids())[0]
        self._turn = 0

    async def compare(self, items: int, seconds: float) -> dict[str, float]:
        """Seconds of a map with a slow worker, and without."""
        found = {}
        self._turn += 1
        for name, slow in (("one", self._slow), ("none", 0))[:: 1 if self._turn % 2 else -1]:
            arguments = {"seconds": seconds, "slow": slow, "times": 4.0}
            began = time.perf_counter()
            await self.map("rest", Range(0, items), workers="processes", arguments=arguments)
            found[name] = time.perf_counter() - began
        return {**found, "longer": found["one"] / found["none"]}


class Frozen(MapNode):
    """One of eight processes is stopped in the middle of a map, and goes on when the map has long been over.

    Nobody can switch copies off, so the job is made without them behind the scheduler's back.
    """

    processes = 8

    async def start(self) -> None:
        """Boot, and have all workers there."""
        await super().start()
        await self.pids()

    async def compare(self, maps_each: int, items: int, seconds: float, freeze: float) -> dict[str, float]:
        """Seconds from the begin of a map to its last result: p99 of so many maps, with copies and without."""
        late: dict[str, list[float]] = {"copies": [], "none": []}
        for _ in range(maps_each):
            for name, found in late.items():
                found.append(await self._last_result(items, seconds, freeze, copies=name == "copies"))
        with_copies, without = (percentile(sorted(each), P99) for each in late.values())
        return {"copies": with_copies, "none": without, "share": with_copies / without}

    async def _last_result(self, items: int, seconds: float, freeze: float, *, copies: bool) -> float:
        """A map of four items a task; half of its results are there when the worker stops for `freeze` seconds."""
        ask = map_of(
            "rest",
            Range(0, items),
            tasks=items // 4,
            workers="processes",
            ordered=False,
            arguments={"seconds": seconds},
        )
        without = mock.patch.object(maps, "Job", functools.partial(Job, copies=False))
        frozen = (await self.pids())[0]  # all are there, and have nothing else to do
        done, thaw = 0, None
        with nullcontext() if copies else without:
            began = last = time.perf_counter()
            try:
                async for piece in self.system.stream("scheduler.imap", ask):
                    last = time.perf_counter()
                    done += piece.stop - piece.start
                    if thaw is None and done >= items // 2:
                        os.kill(frozen, signal.SIGSTOP)
                        thaw = asyncio.get_running_loop().call_later(freeze, os.kill, frozen, signal.SIGCONT)
            finally:
                if thaw is not None:
                    thaw.cancel()
                os.kill(frozen, signal.SIGCONT)
        assert done == items
        return last - began
