"""A job as it runs: its template, its workers and their groups, until what was learned is there.

All that happens comes as events to one loop, and every worker's end, hang or complaint leads to another group. What the
group has done stays: a step was done by all or will be done again, from what the living have in memory.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed import TCPStore  # type: ignore[attr-defined] # it is there where torch was built with it

from microkernel.errors import DataLoss, Internal, MicrokernelError, Unavailable, from_report
from services.training.agent.forks import Forked, Forks
from services.training.agent.formation import Formation
from services.training.agent.liveness import Standing, WorkerLost
from services.training.agent.turns import Turns
from services.training.agent.worker_process import WorkerProcess, first_of, line_to
from services.training.job_file import JobFile
from services.training.orders import (
    Broken,
    Failed,
    Finished,
    Form,
    Formed,
    Noted,
    Ready,
    Report,
    Rest,
    Rested,
    Save,
    Start,
    Stepped,
    Stop,
)

__all__ = ["JobRun"]

LOOK = 0.1  # seconds between two looks at the workers
HOUR = 3600.0
SETTLED = 0.05  # seconds after a complaint in which those who have gone are heard of
STOPPING = 30.0  # seconds to make a last checkpoint


class _Ended(NamedTuple):
    worker: WorkerProcess
    status: int


class _Said(NamedTuple):
    worker: WorkerProcess
    report: Report


class JobRun:
    """One job, from a job file to its result. `run` once."""

    def __init__(
        self,
        forks: Forks,
        path: Path,
        job: JobFile,
        turns: Turns,
        heard: Callable[[Report | WorkerLost], None],
        is_paused: Callable[[], bool],
    ) -> None:
        """`heard` is told what workers report, and of each that was lost; it is called on the loop."""
        self._forks = forks
        self._path = path
        self._job = job
        self._turns = turns
        self._heard = heard
        self._is_paused = is_paused
        self._events: asyncio.Queue[_Ended | _Said | Exception] = asyncio.Queue()
        self._formation = Formation(job.config.devices.workers)
        self._workers: dict[int, WorkerProcess] = {}
        self._watching: set[asyncio.Task[None]] = set()
        self._template: Forks | None = None
        self._template_process: Forked | None = None
        self._meeting = Meeting()
        self._lost: deque[float] = deque()
        self._count = 0
        self._began = time.monotonic()
        self._rests: set[int] | None = None  # those who are to say that they rest
        self._stopping = False
        self._step = 0  # the last one that was told of
        self._looks_at = 0.0

    async def run(self) -> Path:
        """The folder of what was learned. Raises the error of a worker that cannot go on, and `Unavailable`."""
        try:
            self._template = await self._begin_template()
            return await self._live()
        finally:
            await self._clear_away()

    def save(self) -> None:
        """Have a checkpoint made now."""
        for worker in self._workers.values():
            worker.tell(Save())

    def stop(self) -> None:
        """Have it end behind a whole step, with a checkpoint; `run` raises `Unavailable` then."""
        self._stopping = True
        for worker in self._workers.values():
            worker.tell(Stop())
            if self._is_paused():
                worker.forked.send(signal.SIGCONT)  # it has no turn to end in

    # The template

    async def _begin_template(self) -> Forks:
        """The process that has the model and the data. Raises what it has failed with."""
        ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()

        def heard(report: Report) -> None:
            if ready.done():
                return
            if isinstance(report, Ready):
                ready.set_result(report)
            elif isinstance(report, Failed):
                ready.set_exception(_error(report))

        line, control = line_to(heard, lambda error: None if ready.done() else ready.set_exception(error))
        ours, theirs = socket.socketpair()
        try:
            with control, theirs:
                forked = await self._forks.fork([control.fileno(), theirs.fileno()])
            self._template_process = forked
            template = Forks(ours)
            self._turns.add(forked)
            try:
                line.tell(Start(path=str(self._path)))
                await first_of(ready, forked.ended)
                await asyncio.sleep(0)  # its last words may come behind its end
                if not ready.done():
                    raise _died("the process that reads the model", forked.ended.result())
                self._heard(ready.result())
            except BaseException:
                await template.close()
                raise
            finally:
                self._turns.remove(forked)  # it only waits from here on, and has to fork at any time
                forked.send(signal.SIGCONT)
        finally:
            line.close()
            if ready.done() and not ready.cancelled():
                ready.exception()
        return template

    # The workers

    async def _live(self) -> Path:
        """Event after event, to the end."""
        while True:
            await self._staff()
            if self._formation.has_to_form and not self._is_paused() and not self._stopping:
                await self._form()
            if (now := time.monotonic()) >= self._looks_at:
                self._looks_at = now + LOOK
                self._look(now)
            try:
                async with asyncio.timeout(self._looks_at - now):
                    event = await self._events.get()
            except TimeoutError:
                continue
            if isinstance(event, Exception):
                raise event
            if isinstance(event, _Ended):
                self._ended(event)
                continue
            result = self._said(event.worker, event.report)
            if result is not None:
                return result
            if isinstance(event.report, Broken):
                await asyncio.sleep(SETTLED)

    async def _staff(self) -> None:
        """Make the workers that are missing. Raises `Unavailable` where too many have gone in an hour."""
        while self._formation.missing and not self._stopping:
            assert self._template is not None, "it is there before any worker"
            self._count += 1
            worker = await WorkerProcess.fork(self._template, self._count, time.monotonic(), self._hear, self._defect)
            self._workers[worker.number] = worker
            self._turns.add(worker.forked)
            task = asyncio.create_task(self._watch(worker), name=f"worker {worker.number}")
            self._watching.add(task)
            task.add_done_callback(self._watching.discard)
            self._formation.arrived(worker.number)

    async def _watch(self, worker: WorkerProcess) -> None:
        status = await asyncio.shield(worker.forked.ended)
        self._events.put_nowait(_Ended(worker, status))

    def _hear(self, worker: WorkerProcess, report: Report) -> None:
        self._events.put_nowait(_Said(worker, report))

    def _defect(self, _: WorkerProcess, error: DataLoss) -> None:
        self._events.put_nowait(error)

    async def _form(self) -> None:
        """Call another group; who still waits for the last one hears that there is nobody."""
        await asyncio.to_thread(self._meeting.close)
        self._meeting = await asyncio.to_thread(Meeting)
        places = self._formation.form()
        now = time.monotonic()
        self._lost_lately(now)
        for place in places:
            self._workers[place.worker].tell(
                Form(
                    generation=place.generation,
                    rank=place.rank,
                    world=place.world,
                    port=self._meeting.port,
                    restore=place.restore,
                    faults=self._count - self._job.config.devices.workers,
                    seconds=now - self._began,
                )
            )

    def _said(self, worker: WorkerProcess, report: Report) -> Path | None:
        """Take a report; the result where there is one. Raises what a worker has failed with."""
        match report:
            case Formed():
                self._formation.formed(worker.number, report.generation)
                self._step = report.step  # those behind it will be done again, if they were done
            case Stepped():
                if report.step <= self._step:
                    return None  # all workers tell of all steps: any of them may be the only one that has done the last
                self._step = report.step
            case Broken():
                self._formation.broke(worker.number, report.generation)
            case Rested():
                self._take_rested(worker)
            case Failed():
                raise _error(report)
            case Finished():
                self._heard(report)
                return Path(report.path)
        self._heard(report)
        return None

    def _take_rested(self, worker: WorkerProcess) -> None:
        """One of those who are to rest does so, or is gone; where nobody was told to, there is to be another group."""
        if self._rests is not None:
            self._rests.discard(worker.number)
        if not self._rests:
            self._rests = None
            self._formation.rested()

    def _ended(self, event: _Ended) -> None:
        worker, status = event
        self._workers.pop(worker.number, None)
        self._turns.remove(worker.forked)
        self._formation.left(worker.number)
        worker.close()
        if self._rests is not None:
            self._take_rested(worker)
        if self._stopping:
            if not self._workers:
                raise Unavailable(f"training '{self._job.config.name}' was stopped", retry_after=1.0)
            return
        now = time.monotonic()
        self._lost.append(now)
        self._heard(WorkerLost(worker.number, worker.pulse.step, _how(status)))
        if self._lost_lately(now) > self._job.config.faults.restarts:
            raise Unavailable(
                f"{len(self._lost)} workers of '{self._job.config.name}' ended within an hour, the last with "
                f"{_how(status)}",
                remedy="see its log; faults.restarts says how many may",
            )

    def _lost_lately(self, now: float) -> int:
        while self._lost and now - self._lost[0] > HOUR:
            self._lost.popleft()
        return len(self._lost)

    # What nobody says

    def _look(self, now: float) -> None:
        """Whether all get on, and whether they are to rest."""
        if self._is_paused() and self._rests is None and self._formation.members and not self._formation.has_to_form:
            self._rests = set(self._formation.members)
            for number in self._rests:
                self._workers[number].tell(Rest())
        for worker in tuple(self._workers.values()):
            if not self._turns.has_turn:
                worker.liveness.rested(now)
                continue
            standing = worker.liveness.look(worker.pulse, now)
            if standing in {Standing.DEAD, Standing.HUNG}:
                self._heard(Noted(text=f"worker {worker.number} is {standing} in the phase {worker.pulse.phase!r}"))
                worker.forked.kill()

    @property
    def is_busy(self) -> bool:
        """Whether a paused job has something to bring to an end: a step, and a checkpoint of it."""
        return bool(self._formation.members) and (self._rests is not None or not self._formation.has_to_form)

    async def _clear_away(self) -> None:
        """No process is left."""
        for worker in self._workers.values():
            worker.forked.kill()
            worker.close()
        if self._template is not None:
            await self._template.close()
        if self._template_process is not None:
            await self._template_process.end()
        for task in tuple(self._watching):
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.to_thread(self._meeting.close)


class Meeting:
    """A place where one generation of a group meets: a store of torch.distributed, for this machine alone.

    It lives in this process and never in a worker's, so that it outlives all of them. Once it is closed, whoever still
    waits there hears of it at once.
    """

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            # It takes the socket over, which is bound to this machine; torch's own would be open to all.
            self._store: Any = TCPStore(
                "127.0.0.1", self.port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
            )

    def close(self) -> None:
        """Let nobody in any more."""
        self._store = None


def _error(report: Failed) -> MicrokernelError:
    return from_report(report.error)


def _died(what: str, status: int) -> Internal:
    return Internal(f"{what} ended with {_how(status)}", remedy="see the log")


def _how(status: int) -> str:
    """How a process has ended."""
    return f"status {status}" if status >= 0 else signal.Signals(-status).name
