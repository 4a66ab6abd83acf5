"""Two owners who always have work, with weights of 3 and 1: what each gets of a real executor under `fair`.

Seconds are counted by the work itself, not by the policy. Quanta are of 1 to 4 ms for one owner and of 3 to 9 ms for
the other, so that to take turns would not be fair.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Generator, Mapping

from microkernel.executor import Executor
from microkernel.policy import Claim, ProcessClass
from services.scheduler.policies.fair import Fair

__all__ = ["Shares", "jain"]

WEIGHTS = {"three": 3.0, "one": 1.0}
QUANTA = {"three": (0.001, 0.004), "one": (0.003, 0.009)}  # seconds
JOBS = 4  # of each owner
WARM_UP = 0.25  # of the time, in which the policy learns what quanta take


class Shares:
    """One compute thread."""

    async def start(self) -> None:
        """Start it."""
        self._executor = Executor("shares")
        await self._executor.start()

    async def stop(self) -> None:
        """End it."""
        await self._executor.stop()

    async def shares(self, seconds: float) -> dict[str, float]:
        """The part that the heavier owner got, how far parts are from what they should be, and Jain's index."""
        self._executor.schedule_by(Fair(WEIGHTS))
        self._used = dict.fromkeys(WEIGHTS, 0.0)
        self._over = False
        now = time.monotonic()
        jobs = [
            asyncio.create_task(
                self._executor.run(
                    self._work,
                    owner,
                    number,
                    claim=Claim(owner=owner, process_class=ProcessClass.BATCH, came=now, since=now),
                )
            )
            for number in range(JOBS)
            for owner in WEIGHTS
        ]
        await asyncio.sleep(seconds * WARM_UP)
        before = dict(self._used)
        await asyncio.sleep(seconds)
        used = {owner: self._used[owner] - before[owner] for owner in WEIGHTS}
        self._over = True
        await asyncio.gather(*jobs)
        parts = {owner: each / sum(used.values()) for owner, each in used.items()}
        due = {owner: weight / sum(WEIGHTS.values()) for owner, weight in WEIGHTS.items()}
        return {
            "heavier": parts["three"],
            "off": max(abs(parts[owner] / due[owner] - 1.0) for owner in WEIGHTS),
            "jain": jain(used, WEIGHTS),
        }

    def _work(self, owner: str, seed: int) -> Generator[None, None, None]:
        chance = random.Random(seed)
        clock = time.perf_counter
        while not self._over:
            began = clock()
            ends = began + chance.uniform(*QUANTA[owner])
            while clock() < ends:
                pass
            self._used[owner] += clock() - began
            yield


def jain(used: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """How fair it is, from 1/n, where one has all, to 1: Jain, Chiu and Hawe, DEC-TR-301, 1984."""
    each = [used[owner] / weight for owner, weight in weights.items()]
    return sum(each) ** 2 / (len(each) * sum(one**2 for one in each))
