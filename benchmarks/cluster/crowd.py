"""How long something takes while others do the same beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

__all__ = ["crowd"]


async def crowd(step: Callable[[], Awaitable[object]], seconds: float, *, depth: int) -> list[float]:
    """Seconds of each, by `depth` that do one after the other; each's first does not count."""
    found: list[float] = []
    clock = time.perf_counter
    ends = clock() + seconds

    async def one() -> None:
        await step()
        while True:
            began = clock()
            await step()
            done = clock()
            found.append(done - began)
            if done >= ends:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(depth):
            group.create_task(one())
    return found
