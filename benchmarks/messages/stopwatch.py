"""How fast something goes, and how long it takes: rates over a time, and the times of single ones."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

__all__ = ["P50", "P99", "P999", "percentile", "percentiles", "rate", "times"]

P50, P99, P999 = 0.5, 0.99, 0.999


async def rate(step: Callable[[int], Awaitable[object]], seconds: float, *, batch: int) -> float:
    """Things a second; `step(count)` does `count` of them. The first batch warms up and does not count."""
    await step(batch)
    done = 0
    began = time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or not done:
        await step(batch)
        done += batch
    return done / elapsed


async def times(step: Callable[[], Awaitable[object]], seconds: float, *, warm_up: int = 20) -> list[float]:
    """Seconds of each of as many as there is time for, one after the other."""
    for _ in range(warm_up):
        await step()
    found: list[float] = []
    clock = time.perf_counter
    ends = clock() + seconds
    while (began := clock()) < ends or not found:
        await step()
        found.append(clock() - began)
    return found


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of `ordered` that at least `share` of them do not exceed (the nearest rank)."""
    return ordered[min(len(ordered) - 1, max(0, -(-round(share * 10_000) * len(ordered) // 10_000) - 1))]


def percentiles(found: Sequence[float]) -> dict[str, float]:
    """p50, p99 and p99.9."""
    ordered = sorted(found)
    return {"p50": percentile(ordered, P50), "p99": percentile(ordered, P99), "p999": percentile(ordered, P999)}
