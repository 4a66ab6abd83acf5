"""Chooses numbers of threads for a device by trying them, so that the loop keeps its turns.

Each number is tried several times, in turns with the others, and the shortest time counts: what else the machine does
makes trials longer, never shorter. The trials are quanta of the background, so whoever asks something meanwhile waits
for one trial at the most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec

from microkernel.driver import DriverDevice, Trial
from microkernel.executor import Executor
from microkernel.policy import Claim, ProcessClass

__all__ = ["Choice", "choose_threads", "measure"]

ROUNDS = 9
WORTH = 0.95  # more threads are taken only where the work then takes less than this part of the time
LATE = 0.02  # seconds that the loop may be late while the device works
TICK = 0.001  # seconds between two looks at how late it is
REPEATS = 8  # pieces of work that each of several threads does in a trial: they do not begin at one moment


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`spread` cores for each operation of the device's threads, and `core_threads` threads of one core each.

    `measured` are seconds, of the shortest trial of each number of threads, and how late the loop was beside it.
    """

    spread: int
    core_threads: int
    measured: dict[str, float]

    @property
    def chosen(self) -> dict[str, int]:
        """The numbers by name."""
        return {"spread": self.spread, "core_threads": self.core_threads}


async def measure(device: DriverDevice, executor: Executor, cores: int) -> Choice | None:
    """Try all numbers of threads that are worth it, up to `cores`; None where the device leaves no choice.

    Afterwards operations are spread as they were, and as many threads are at work: use what was chosen.
    """
    trials = await executor.run(device.trials, claim=_claim())
    if not trials:
        return None
    counts = worth_trying(cores)
    spreads = {count: dict.fromkeys(trials, float("inf")) for count in counts}
    crews = {count: dict.fromkeys(trials, float("inf")) for count in counts}
    late = dict.fromkeys(counts, float("inf"))
    for _ in range(ROUNDS):
        for count in counts:
            async with _lateness() as lateness:
                for name, trial in trials.items():
                    took = await executor.run(trial, count, claim=_claim())
                    spreads[count][name] = min(spreads[count][name], took)
            late[count] = min(late[count], max(lateness))
            for name, trial in trials.items():
                crews[count][name] = min(crews[count][name], await _together(executor, trial, count))
    measured = {f"loop is late beside {count}": seconds for count, seconds in late.items()}
    for count in counts:
        measured |= {f"{name} on {count}": seconds for name, seconds in spreads[count].items()}
        measured |= {f"{name} by {count}": seconds for name, seconds in crews[count].items()}
    in_time = [count for count in counts if late[count] <= LATE] or [min(counts, key=late.__getitem__)]
    return Choice(
        spread=choose_threads({count: spreads[count] for count in in_time}),
        core_threads=choose_threads(crews),
        measured=measured,
    )


def worth_trying(cores: int) -> list[int]:
    """All cores, and half as many again and again: threads that share a core, or memory, may be no faster by two."""
    return sorted({max(1, cores >> shift) for shift in range(cores.bit_length())})


def choose_threads(seconds: Mapping[int, Mapping[str, float]]) -> int:
    """The number of threads for several kinds of work that count alike, from the seconds that each took.

    The fewest than which no more are worth it: a core that gains nothing is better left to the loop.
    """
    best = min(seconds)
    for count in sorted(seconds):
        gain = 1.0
        for name, took in seconds[count].items():
            gain *= took / seconds[best][name]
        if gain ** (1.0 / max(1, len(seconds[count]))) < WORTH:
            best = count
    return best


async def _together(executor: Executor, trial: Trial, threads: int) -> float:
    """Seconds for a piece of work each, where so many threads of one core are at it side by side."""
    works = (executor.run(_repeated, trial, claim=_claim(), one_core=True) for _ in range(threads))
    return max(await asyncio.gather(*works)) / (threads * REPEATS)


def _repeated(trial: Trial) -> float:
    """Seconds of so many trials on one core."""
    return sum(trial(1) for _ in range(REPEATS))


@asynccontextmanager
async def _lateness() -> AsyncIterator[list[float]]:
    """Seconds by which the loop was late, each time it looked, from here to the end of the block."""
    late = [0.0]

    async def look() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - began - TICK)

    watch = asyncio.create_task(look())
    try:
        yield late
    finally:
        watch.cancel()
        await asyncio.wait([watch])


def _claim() -> Claim:
    now = time.monotonic()
    return Claim(process_class=ProcessClass.BACKGROUND, nice=19, came=now, since=now)
