"""Compute threads of a simulation: the promises of `Executor` without a thread.

A quantum runs on the loop, at a moment of the seed's. Order, limits, cancellation and the end are those of real ones.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from microkernel.errors import Invalid, Overloaded, Unavailable
from microkernel.executor import Executor, ExecutorStatus, Timing
from microkernel.executors import Executors
from microkernel.job import Job, Shares, settle
from microkernel.policy import Arrival, Claim, Policy

__all__ = ["SimulatedExecutor", "SimulatedExecutors"]

T = TypeVar("T")

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
        prepare = [real._initialize] * threads + [real._initialize_core] * cores  # noqa: SLF001
        super().__init__(real.name, threads=threads, cores=cores, queue=queue)
        self._free = {False: threads, True: cores}  # by whether they take one core
        self._capacity = queue
        self._prepare = [each for each in prepare if each is not None]
        self._chance = chance
        self._open = False
        self._chosen_by: Policy = Arrival()
        self._at_work: dict[Job, None] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._count = 0
        self._loop_here = asyncio.get_running_loop()

    async def start(self) -> None:
        """Run `initialize` as often as there are threads; raises what it raises."""
        for prepare in self._prepare:
            await self._loop_here.run_in_executor(None, prepare)
        self._open = True

    async def run(
        self,
        function: Callable[..., T],
        /,
        *arguments: Any,
        claim: Claim | None = None,
        one_core: bool = False,
        shares: Shares | None = None,
    ) -> T:
        """As the real one."""
        waiting = len(self._chosen_by)
        if waiting >= self._capacity:
            raise Overloaded(f"executor {self.name} has {waiting} jobs waiting, its limit", retry_after=0.1)
        job = self._put(function, arguments, claim, one_core=one_core, shares=shares)
        try:
            return await job.future  # type: ignore[no-any-return] # what `function` returned
        except asyncio.CancelledError:
            if job.entry is not None and job.quanta is None:
                self._chosen_by.leave(job.entry)
            raise

    async def finish(self, function: Callable[..., T], /, *arguments: Any, claim: Claim | None = None) -> T:
        """As the real one."""
        return await asyncio.shield(self._put(function, arguments, claim).future)

    @property
    def core_threads(self) -> int:
        """As the real one's."""
        return self._wanted_cores if self._open else 0

    @property
    def policy(self) -> Policy:
        """As the real one's."""
        return self._chosen_by

    def schedule_by(self, policy: Policy) -> None:
        """As the real one."""
        policy.take_over(self._chosen_by)
        for entry in policy.entries():
            entry.item.entry = entry
        self._chosen_by = policy

    def look(self, question: Callable[[Policy], T]) -> T:
        """As the real one."""
        return question(self._chosen_by)

    async def stop(self, *, timeout: float = 10.0) -> bool:
        """As the real one; what runs ends in its time."""
        self._open = False
        while (entry := self._chosen_by.choose()) is not None:
            job: Job = entry.item
            if job.quanta is not None:
                job.quanta.close()
            stopped = Unavailable(f"executor {self.name} has stopped", may_have_run=job.quanta is not None)
            settle(job.future, None, stopped)
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            return False
        else:
            return True
        finally:
            # Whoever waits even now, or is left because we were cancelled.
            why = f"executor {self.name} has stopped while the work still ran"
            for job in self._at_work:
                settle(job.future, None, Unavailable(why, may_have_run=True))

    def status(self) -> ExecutorStatus:
        """Counts; the costs of threads that are none are 0."""
        none = Timing(0, 0.0, 0.0, 0.0)
        return ExecutorStatus(
            name=self.name,
            threads=self._wanted if self._open else 0,
            core_threads=self._wanted_cores if self._open else 0,
            policy=self._chosen_by.name,
            queued=len(self._chosen_by),
            running=len(self._at_work),
            finished=self._count,
            busy_seconds=0.0,
            t_c=none,
            t_s=none,
            t_f=none,
        )

    def _put(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        claim: Claim | None,
        *,
        one_core: bool = False,
        shares: Shares | None = None,
    ) -> Job:
        if not self._open:
            raise Unavailable(f"executor {self.name} is not running", retry_after=1.0, may_have_run=False)
        if one_core and not self._wanted_cores:
            raise Invalid(f"executor {self.name} has no threads for work that takes one core")
        now = self._loop_here.time()
        claim = Claim(came=now, since=now) if claim is None else claim
        job = Job(function, arguments, self._loop_here.create_future(), claim, one_core=one_core, shares=shares)
        job.entry = self._chosen_by.enter(claim, job)
        self._loop_here.call_soon(self._give_out)
        return job

    def _give_out(self) -> None:
        """Give whose turn it is to the threads that are free."""
        while (entry := self._chosen_by.first()) is not None:
            job: Job = entry.item
            if job.future.done() and job.quanta is None:
                self._chosen_by.leave(entry)  # whoever waited has gone
                continue
            whole = any(not each.one_core for each in self._at_work)
            if not self._free[job.one_core] or (job.one_core and whole):
                return
            self._chosen_by.choose()
            self._free[job.one_core] -= 1
            self._at_work[job] = None
            self._idle.clear()
            seconds = self._chance.uniform(0.0, LONGEST)
            self._loop_here.call_later(seconds, self._end_quantum, job, seconds)

    def _end_quantum(self, job: Job, seconds: float) -> None:
        is_last = job.run()
        self._free[job.one_core] += 1
        del self._at_work[job]
        policy = self._chosen_by
        if job.entry is not None:
            policy.settle(job.entry)
        policy.charge(job.claim, seconds)
        if is_last:
            self._count += 1
            settle(job.future, job.result, job.error)
        elif self._open:
            job.claim = msgspec.structs.replace(job.claim, since=self._loop_here.time())
            job.entry = policy.enter(job.claim, job)
        else:
            assert job.quanta is not None, "it has another quantum"
            job.quanta.close()
            settle(job.future, None, Unavailable(f"executor {self.name} has stopped", may_have_run=True))
        if not self._at_work:
            self._idle.set()
        self._give_out()
