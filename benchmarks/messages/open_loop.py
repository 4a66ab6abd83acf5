"""Calls that are sent when their time has come, whether or not those before them were answered.

A loop that waits for each answer leaves out the calls that would have come meanwhile, and with them the latencies that
their users would have seen (Tene, "How NOT to Measure Latency": coordinated omission). Here the moments are drawn
first, as a Poisson process, and a latency counts from the moment that was drawn.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator

from benchmarks.messages.line import Running

__all__ = ["Arrivals", "quiet", "run_open_loop", "with_a_hog", "with_tensors"]

DRAIN = 30.0  # seconds that the last answers may take
SHARE = 0.5  # of what the same link carries in a closed loop
DEPTH = 4  # more in flight share a frame, which calls that come by themselves do not
CLOSED, OPEN = 0.4, 3.0  # seconds
QUICK = 0.15


class Arrivals:
    """Moments, in seconds from the start, of a Poisson process with `rate` a second."""

    def __init__(self, rate: float, seconds: float, seed: int) -> None:
        self.rate = rate
        self.seconds = seconds
        self._seed = seed

    def __iter__(self) -> Iterator[float]:
        draw = random.Random(self._seed).expovariate
        moment = draw(self.rate)
        while moment < self.seconds:
            yield moment
            moment += draw(self.rate)


async def run_open_loop(call: Callable[[], Awaitable[object]], arrivals: Arrivals) -> list[float]:
    """Seconds from each arrival to the answer of its call. Raises what a call raises, and TimeoutError."""
    clock = time.perf_counter
    late: list[float] = []

    async def one(due: float) -> None:
        await call()
        late.append(clock() - due)

    async with asyncio.timeout(arrivals.seconds + DRAIN), asyncio.TaskGroup() as group:
        began = clock()
        for moment in arrivals:
            due = began + moment
            while clock() < due:  # noqa: ASYNC110 - a timer would come up to 1 ms late
                await asyncio.sleep(0)
            group.create_task(one(due))
    return late


def quiet(running: Running, is_quick: bool) -> dict[str, float]:
    """With nothing else to do."""
    capacity = _capacity(running, is_quick)
    return _open_loop(running, capacity, is_quick)


def with_a_hog(running: Running, is_quick: bool) -> dict[str, float]:
    """With a thread in the server that computes in pure Python all the time; the load is that without it."""
    assert running.server is not None
    capacity = _capacity(running, is_quick)
    running.server.ask("hog")
    try:
        return _open_loop(running, capacity, is_quick)
    finally:
        running.server.ask("rest")


def with_tensors(running: Running, is_quick: bool) -> dict[str, float]:
    """With tensors of 1 MiB on a link beside; the load is that without them."""
    assert running.beside is not None
    capacity = _capacity(running, is_quick)
    running.beside.ask("begin")
    try:
        return _open_loop(running, capacity, is_quick)
    finally:
        running.beside.ask("end")


def _capacity(running: Running, is_quick: bool) -> float:
    return float(running.client.ask("calls", seconds=QUICK if is_quick else CLOSED, depth=DEPTH))


def _open_loop(running: Running, capacity: float, is_quick: bool) -> dict[str, float]:
    assert running.server is not None
    running.server.ask("watch")
    seconds = QUICK if is_quick else OPEN
    try:
        found = running.client.ask("open_loop", seconds=seconds, calls=SHARE * capacity)
    finally:
        lag = running.server.ask("seen")
    return {"load": SHARE * capacity, **found, "lag_p99": lag["p99"], "lag_max": lag["max"]}
