"""Compute threads of a simulation: the promises of `Executor` without a thread.

A quantum runs on the loop, at a moment of the seed's. Order, limits, cancellation and the end are those of real ones.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec

from microkernel.errors import Unavailable
from microkernel.executor import Executor, ExecutorStatus
from microkernel.executors import Executors
from microkernel.job import Job, Shares, settle
from microkernel.policy import Claim

__all__ = ["SimulatedExecutor", "SimulatedExecutors"]

LONGEST = 0.05  # seconds of virtual time that a quantum takes, at most


class SimulatedExecutors(Executors):
    """The executors of a node in a simulation: each that is added is replaced by a simulated one."""

    def __init__(self, seed: int | str = 0) -> None:
        super().__init__()
        self._chance = random.Random(f"{seed} executors")  # noqa: S311 - a simulation's, no secret

    async def add(self, executor: Executor) -> None:
        """Make one like `executor` known; the real one is never started. Raises `AlreadyExists`."""
        await super().add(SimulatedExecutor(executor, self._chance))


class SimulatedExecutor(Executor):
    """Stands for `real`: the same name, numbers of threads, queue, `initialize` and `initialize_core`."""

    def __init__(self, real: Executor, chance: random.Random) -> None:
        threads, cores, queue = real._wanted, real._wanted_cores, real._limit  # noqa: SLF001 - of our own class
        super().__init__(
            real.name,
            threads=threads,
            cores=cores,
            queue=queue,
            initialize=real._initialize,  # noqa: SLF001
            initialize_core=real._initialize_core,  # noqa: SLF001
        )
        self._free = {False: threads, True: cores}  # by whether they take one core
        self._chance = chance
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop_here = asyncio.get_running_loop()

    async def start(self) -> None:
        """Run `initialize` as often as there are threads; raises what it raises."""
        for prepare in [self._initialize] * self._wanted + [self._initialize_core] * self._wanted_cores:
            if prepare is not None:
                await self._loop_here.run_in_executor(None, prepare)
        self._core_threads = self._wanted_cores
        self._loop = self._loop_here

    async def stop(self, *, timeout: float = 10.0) -> bool:
        """As the real one; what runs ends in its time."""
        self._closing = True
        while (entry := self._policy.choose()) is not None:
            self._drop(entry.item)
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            self._abandon()  # whoever waits even now, or is left because we were cancelled

    def status(self) -> ExecutorStatus:
        """Counts; the costs of threads that are none are 0."""
        here = self._loop is not None and not self._closing
        return msgspec.structs.replace(
            super().status(),
            threads=self._wanted if here else 0,
            core_threads=self._wanted_cores if here else 0,
        )

    def _enter(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        claim: Claim | None,
        *,
        one_core: bool = False,
        shares: Shares | None = None,
    ) -> Job:
        job = super()._enter(function, arguments, claim, one_core=one_core, shares=shares)
        self._loop_here.call_soon(self._give_out)
        return job

    def _now(self) -> float:
        return self._loop_here.time()

    def _give_out(self) -> None:
        """Give whose turn it is to the threads that are free."""
        given = True
        while given:
            given = False
            for one_core in (False, True):
                job = self._next(one_core=one_core) if self._free[one_core] else None
                if job is None:
                    continue
                given = True
                self._free[one_core] -= 1
                self._idle.clear()
                seconds = self._chance.uniform(0.0, LONGEST)
                self._loop_here.call_later(seconds, self._end_quantum, job, seconds)

    def _end_quantum(self, job: Job, seconds: float) -> None:
        is_last = job.run()
        self._free[job.one_core] += 1
        self._give_back(job, seconds, is_last=is_last)
        if not is_last and self._closing:
            assert job.entry is not None, "it waits for its next quantum"
            self._policy.leave(job.entry)
            self._drop(job)
        self._deliver()
        if not self._running:
            self._idle.set()
        self._give_out()

    def _drop(self, job: Job) -> None:
        """It has no more turns."""
        if job.quanta is not None:
            job.quanta.close()
        begun = job.quanta is not None
        settle(job.future, None, Unavailable(f"executor {self.name} has stopped", may_have_run=begun))
