"""Compute threads of a device (hot: once a quantum): create, schedule, end.

Work that would hold up the loop leaves it here. Each device has its own threads, a bounded queue whose policy says
whose turn is next, and one wake-up of the loop for each burst of results. The cost of a thread's life is measured the
way schedulers are taught: T_c to create it, T_s to schedule a job (from submit to start), T_f to end it.

Most work takes the whole device: a step of a model, whose operations spread over all cores. Some takes one core, and is
given to threads of another kind, as many as there are cores. None of these begins a quantum while the whole device is
taken.

A thread without work sleeps on a lock of its own, and whoever brings work opens just that one: no condition variable,
no polling. In one step under the queue's lock a thread gives back its last job and takes the next.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import msgspec

from microkernel.errors import Invalid, Overloaded, Unavailable
from microkernel.job import Job, Shares, raisable, settle
from microkernel.policy import Arrival, Claim, Policy
from microkernel.switch_interval import switch_interval
from microkernel.timing import Samples, Timing

__all__ = ["Executor", "ExecutorStatus", "Timing"]

T = TypeVar("T")

URGENT = Claim(nice=-20)  # for what only has to be ended


class ExecutorStatus(msgspec.Struct, frozen=True):
    """How an executor is doing. `t_c`, `t_s` and `t_f` are the costs to create, schedule and end.

    `threads` take the whole device, `core_threads` one core each.
    """

    name: str
    threads: int
    core_threads: int
    policy: str
    queued: int
    running: int
    finished: int
    busy_seconds: float
    t_c: Timing
    t_s: Timing
    t_f: Timing


class Executor:
    """The compute threads of one device.

    `initialize` runs first on each of its `threads`, `initialize_core` on each of its `cores`; if one raises, `start`
    does. A job's claim says to `policy` when it runs. A quantum cannot be interrupted: whoever waits for it is freed at
    once when cancelled, and its result is dropped.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int = 1,
        cores: int = 0,
        queue: int = 1024,
        initialize: Callable[[], None] | None = None,
        initialize_core: Callable[[], None] | None = None,
    ) -> None:
        if threads < 1 or cores < 0 or queue < 1:
            raise Invalid(f"executor {name}: threads and queue must be at least 1, cores 0")
        self.name = name
        self._wanted = threads
        self._wanted_cores = cores
        self._limit = queue
        self._initialize = initialize
        self._initialize_core = initialize_core
        self._threads: list[threading.Thread] = []
        self._core_threads = 0
        self._cores_limit = cores
        self._cores_at_work = 0
        self._lock = threading.Lock()  # over all that the threads and the loop share, from here to `_ended_at`
        self._policy: Policy = Arrival()
        self._sleepers: list[threading.Lock] = []  # the last to fall asleep is woken first: its caches are warm
        self._core_sleepers: list[threading.Lock] = []
        self._woken = 0  # threads that have not looked for work yet
        self._bells: list[threading.Lock] = []  # of quanta that rest until others wait
        self._done: list[Job] = []
        self._notified = False
        self._closing = False
        self._running: set[Job] = set()
        self._whole = 0  # jobs that run and take the whole device
        self._finished = 0
        self._busy = 0.0
        self._ended_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._created, self._scheduled, self._ended = Samples(), Samples(), Samples()

    async def start(self) -> None:
        """Create the threads; returns when each is ready. After an error no thread is left."""
        self._loop = asyncio.get_running_loop()
        switch_interval.shorten(self)
        try:
            for number in range(self._wanted):
                await self._create(f"{self.name}.{number}", self._initialize, self._loop, one_core=False)
            for number in range(self._wanted_cores):
                await self._create(f"{self.name}.core{number}", self._initialize_core, self._loop, one_core=True)
                self._core_threads += 1
        except BaseException:
            await self.stop()
            raise

    async def run(
        self,
        function: Callable[..., Generator[Any, None, T]] | Callable[..., T],
        /,
        *arguments: Any,
        claim: Claim | None = None,
        one_core: bool = False,
        shares: Shares | None = None,
    ) -> T:
        """Run `function(*arguments)` on a compute thread; returns its result or raises its error.

        A generator function runs quantum by quantum, each to the next `yield`; what it returns is the result. With
        `one_core` it runs beside others on a thread that has one core. `shares`, which it may fill, say who had which
        part of a quantum. Raises `Overloaded` when the queue is full, `Unavailable` after `stop`, and `Invalid` where
        there are no threads of that kind.
        """
        if (waiting := len(self._policy)) >= self._limit:
            raise Overloaded(f"executor {self.name} has {waiting} jobs waiting, its limit", retry_after=0.1)
        job = self._enter(function, arguments, claim, one_core=one_core, shares=shares)
        try:
            return await job.future  # type: ignore[no-any-return] # what `function` returned
        except asyncio.CancelledError:
            self._withdraw(job)
            raise

    async def finish(self, function: Callable[..., T], /, *arguments: Any, claim: Claim | None = None) -> T:
        """As `run`, for what has to be done: it is, also when nobody waits for it any more, and however many jobs wait.

        Raises `Unavailable` after `stop`.
        """
        return await asyncio.shield(self._enter(function, arguments, claim).future)

    @property
    def core_threads(self) -> int:
        """How many threads that have one core each may be at work."""
        return min(self._core_threads, self._cores_limit)

    def rest_until_wanted(self, seconds: float, wants: Callable[[Claim], bool] = lambda _: True) -> bool:
        """Within a quantum, on its thread: do nothing until work waits that `wants` the device, `seconds` at most.

        Returns whether there is such work. For a quantum whose work is done elsewhere, by a process of its own: it has
        the device as long as it does not end, and learns here when it should.
        """
        ends = time.monotonic() + seconds
        bell = threading.Lock()
        bell.acquire()
        while True:
            with self._lock:
                if self._closing or any(wants(entry.claim) for entry in self._policy.entries()):
                    return True
                self._bells.append(bell)
            if not bell.acquire(timeout=max(0.0, ends - time.monotonic())):
                with self._lock:
                    if bell in self._bells:  # or it has just been rung
                        self._bells.remove(bell)
                        return False

    def limit_cores(self, count: int) -> None:
        """Have no more than so many threads of one core at work from now on; the others sleep."""
        with self._lock:
            self._cores_limit = max(1, count)
            sleeper = self._sleeper()
        if sleeper is not None:
            sleeper.release()

    @property
    def policy(self) -> Policy:
        """Whose turn is next. It is the threads': to be asked with `look`."""
        return self._policy

    def schedule_by(self, policy: Policy) -> None:
        """Have another policy from the next quantum on; all that waits, waits there."""
        with self._lock:
            policy.take_over(self._policy)
            for entry in policy.entries():
                entry.item.entry = entry
            self._policy = policy

    def look(self, question: Callable[[Policy], T]) -> T:
        """What `question` finds out of the policy, while no thread changes it; it has to be quick."""
        with self._lock:
            return question(self._policy)

    def why(self, pid: int) -> str | None:
        """What the work of a process waits for here, as the rest of a sentence; None where none of it waits."""
        said = self.look(
            lambda policy: next((policy.why(each) for each in policy.entries() if each.claim.pid == pid), None)
        )
        return None if said is None else f"waits for {self.name}, {said}"

    async def stop(self, *, timeout: float = 10.0) -> bool:
        """End the threads; jobs that wait end with `Unavailable`, those that run are waited for.

        Returns False if a thread was still busy after `timeout` seconds; being a daemon it will not keep the process.
        Whoever waits for a job that runs even then, or when `stop` is cancelled, gets `Unavailable`.
        """
        began = time.perf_counter()
        with self._lock:
            self._closing = True
            waiting = self._clear()
            sleepers = [*self._sleepers, *self._core_sleepers, *self._ringing()]
            self._sleepers, self._core_sleepers = [], []
        for sleeper in sleepers:
            sleeper.release()
        for job in waiting:
            begun = job.quanta is not None
            settle(job.future, None, Unavailable(f"executor {self.name} has stopped", may_have_run=begun))
        try:
            while any(thread.is_alive() for thread in self._threads):
                if time.perf_counter() - began > timeout:
                    return False
                await asyncio.sleep(0.001)
        finally:
            self._deliver()
            self._abandon()
            switch_interval.restore(self)
        if self._threads:
            self._ended.add(max(0.0, self._ended_at - began))  # by the thread's own watch: ours looks each millisecond
        self._threads.clear()
        self._core_threads = 0
        return True

    def status(self) -> ExecutorStatus:
        """Counts and costs as of now."""
        return ExecutorStatus(
            name=self.name,
            threads=len(self._threads) - self._core_threads,
            core_threads=self.core_threads,
            policy=self._policy.name,
            queued=len(self._policy),
            running=len(self._running),
            finished=self._finished,
            busy_seconds=self._busy,
            t_c=self._created.timing(),
            t_s=self._scheduled.timing(),
            t_f=self._ended.timing(),
        )

    async def _create(
        self, name: str, initialize: Callable[[], None] | None, loop: asyncio.AbstractEventLoop, *, one_core: bool
    ) -> None:
        began = time.perf_counter()
        ready: asyncio.Future[None] = loop.create_future()
        thread = threading.Thread(
            target=self._work, args=(loop, ready, initialize), kwargs={"one_core": one_core}, name=name, daemon=True
        )
        self._threads.append(thread)
        thread.start()
        await ready
        self._created.add(time.perf_counter() - began)

    def _enter(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        claim: Claim | None,
        *,
        one_core: bool = False,
        shares: Shares | None = None,
    ) -> Job:
        """Put a job into the queue, and wake a thread for it."""
        loop = self._loop
        if loop is None or self._closing:
            raise Unavailable(f"executor {self.name} is not running", retry_after=1.0, may_have_run=False)
        if one_core and not self._core_threads:
            raise Invalid(f"executor {self.name} has no threads for work that takes one core")
        if claim is None:
            now = self._now()
            claim = Claim(came=now, since=now)
        job = Job(function, arguments, loop.create_future(), claim, one_core=one_core, shares=shares)
        with self._lock:
            job.entry = self._policy.enter(claim, job)
            sleeper = self._sleeper()
            bells = self._ringing()
        if sleeper is not None:
            sleeper.release()
        for bell in bells:
            bell.release()
        return job

    def _withdraw(self, job: Job) -> None:
        """Take out a job that nobody waits for. What has begun is given a last turn, to be ended by its own thread."""
        with self._lock:
            if job.entry is None or not job.entry.waits:
                return  # it runs, or has run
            self._policy.leave(job.entry)
            job.entry = None if job.quanta is None else self._policy.enter(URGENT, job)
            bells = () if job.entry is None else self._ringing()
        for bell in bells:
            bell.release()
        if job.quanta is None:
            job.empty()  # not under the lock: what it lets go of may end with code of its own

    def _clear(self) -> list[Job]:
        """All that wait; what has begun stays, to be ended; under the lock."""
        waiting: list[Job] = [entry.item for entry in self._policy.entries()]
        for job in waiting:
            if job.quanta is None and job.entry is not None:
                self._policy.leave(job.entry)
                job.entry = None
        return waiting

    def _work(
        self,
        loop: asyncio.AbstractEventLoop,
        ready: asyncio.Future[None],
        initialize: Callable[[], None] | None,
        *,
        one_core: bool,
    ) -> None:
        """The life of one thread."""
        failure: Exception | None = None
        try:
            if initialize is not None:
                initialize()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits in `start`
            failure = raisable(error, initialize)
        try:
            loop.call_soon_threadsafe(settle, ready, None, failure)
            if failure is None:
                self._take_turns(loop, one_core=one_core)
        except RuntimeError:
            return  # the loop has closed: nobody is left to hear of it
        finally:
            with self._lock:
                self._ended_at = time.perf_counter()

    def _take_turns(self, loop: asyncio.AbstractEventLoop, *, one_core: bool) -> None:
        """Run quantum after quantum until `stop`. Raises `RuntimeError` when the loop has closed."""
        asleep = threading.Lock()
        asleep.acquire()
        job: Job | None = None
        is_last = slept = False
        began = ended = 0.0
        while True:
            with self._lock:
                if slept:
                    self._woken = max(0, self._woken - 1)
                notify = False
                if job is not None:
                    notify = self._give_back(job, ended - began, is_last=is_last)
                job = self._next(one_core=one_core)
                closing = self._closing
                sleeper = self._sleeper()
                if slept := job is None and not closing:
                    sleepers = self._core_sleepers if one_core else self._sleepers
                    sleepers.append(asleep)
            if notify:
                loop.call_soon_threadsafe(self._deliver)
            if sleeper is not None:
                sleeper.release()
            if job is not None:
                began = time.perf_counter()
                self._scheduled.add(began - job.submitted)
                is_last = job.run()
                ended = time.perf_counter()
            elif closing:
                return
            else:
                asleep.acquire()

    def _give_back(self, job: Job, seconds: float, *, is_last: bool) -> bool:
        """A quantum has ended; whether the loop is to be told of it; under the lock."""
        self._running.discard(job)
        if job.one_core:
            self._cores_at_work -= 1
        else:
            self._whole -= 1
        self._busy += seconds
        entry, policy = job.entry, self._policy
        assert entry is not None, "it was chosen"
        assert job.chosen_by is not None, "that was by a policy"
        job.chosen_by.settle(entry)  # which may not be the one that holds now
        whole = sum(job.shares.values()) if job.shares else 0.0
        if whole > 0.0 and job.shares:
            for claim, part in job.shares.items():
                policy.charge(claim, seconds * part / whole)
        else:
            policy.charge(job.claim, seconds)
        if not is_last:
            job.claim = msgspec.structs.replace(job.claim, since=self._now())
            job.submitted = time.perf_counter()
            job.entry = policy.enter(URGENT if job.future.done() else job.claim, job)
            return False
        job.entry = None
        self._finished += 1
        self._done.append(job)
        notify, self._notified = not self._notified, True
        return notify

    def _next(self, *, one_core: bool) -> Job | None:
        """Whose turn it is, if it is for a thread of that kind; under the lock."""
        while (entry := self._policy.first()) is not None:
            job: Job = entry.item
            if job.quanta is None and job.future.done():  # whoever waited was cancelled a moment ago
                self._policy.leave(entry)
                job.entry = None
                continue
            if job.one_core is not one_core or (one_core and not self._is_core_free()):
                return None
            self._policy.choose()
            job.chosen_by = self._policy
            self._running.add(job)
            if one_core:
                self._cores_at_work += 1
            else:
                self._whole += 1
            return job
        return None

    def _is_core_free(self) -> bool:
        """Whether work that takes one core may begin; under the lock."""
        return not self._whole and self._cores_at_work < self._cores_limit

    def _sleeper(self) -> threading.Lock | None:
        """A thread to be woken for whose turn it is; under the lock."""
        if self._woken >= len(self._policy):
            return None
        entry = self._policy.first()
        if entry is None:
            return None
        one_core = entry.item.one_core
        sleepers = self._core_sleepers if one_core else self._sleepers
        if not sleepers or (one_core and not self._is_core_free()):
            return None
        self._woken += 1
        return sleepers.pop()

    def _ringing(self) -> Sequence[threading.Lock]:
        """The bells of all that rest until others wait, which they do now; under the lock."""
        if not self._bells:
            return ()
        bells, self._bells = self._bells, []
        return bells

    def _now(self) -> float:
        """Seconds on the clock of claims."""
        return time.monotonic()

    def _deliver(self) -> None:
        """Hand a burst of results to those who wait; on the loop."""
        with self._lock:
            self._notified = False
            done, self._done = self._done, []
        for job in done:
            settle(job.future, job.result, job.error)

    def _abandon(self) -> None:
        """Free those who wait for jobs that run still."""
        with self._lock:
            running = tuple(self._running)
        for job in running:
            why = f"executor {self.name} has stopped while the work still ran"
            settle(job.future, None, Unavailable(why, may_have_run=True))
