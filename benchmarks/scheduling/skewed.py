"""Items of very different costs: do all workers end at the same time?

Costs are drawn by Zipf's law: k units with a chance that goes with 1/k^1.2, up to 1,000. Most items take a unit or two,
the costliest a twentieth of what each of eight workers has to do. Items rest, so eight workers have room on two cores.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

from benchmarks.scheduling.node import MapNode, Where

__all__ = ["Skewed", "costs_of"]

EXPONENT = 1.2
MOST = 1000
WORKERS = 8


class Skewed(MapNode):
    """Eight workers of each kind."""

    threads = WORKERS
    processes = WORKERS

    async def start(self) -> None:
        """Boot, and have all workers there."""
        await super().start()
        await self.pids()
        self._round = 0

    async def finishes(self, items: int, unit: float) -> dict[str, float]:
        """When the last worker had nothing more to do, by when they had on average; other costs in each round."""
        self._round += 1
        costs = [unit * cost for cost in costs_of(items, seed=self._round)]
        return {"threads": await self._spread(costs, "threads"), "processes": await self._spread(costs, "processes")}

    async def _spread(self, costs: list[float], workers: Where) -> float:
        began = time.monotonic()
        values: list[Any] = await self.map("finish", costs, workers=workers)
        finishes: dict[str, float] = {}
        for who, when in values:
            finishes[who] = max(finishes.get(who, 0.0), when - began)
        if len(finishes) != WORKERS:
            raise RuntimeError(f"{len(finishes)} of {WORKERS} {workers} had an item")
        return max(finishes.values()) / statistics.fmean(finishes.values())


def costs_of(items: int, *, seed: int) -> list[int]:
    """In units; the same for a seed."""
    costs = range(1, MOST + 1)
    return random.Random(seed).choices(costs, [cost**-EXPONENT for cost in costs], k=items)
