"""Training as a service: jobs are started, watched, stopped, taken up again and forgotten; each is a process.

What a job computes, its own processes do; see `agent/` and `worker/`. This one keeps their history, has them take turns
with all else on their device, and puts what they have learned among the models.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator
from typing import ClassVar

import msgspec

from microkernel.errors import AlreadyExists, Invalid, NotFound, Overloaded, PreconditionFailed
from microkernel.message import Message, calling_user, may_touch
from microkernel.processes import ProcessService
from microkernel.service import Placement, handles, streams
from services.training.agent.fork_server import ForkServer
from services.training.config import JobConfig, read_job, with_files
from services.training.history import History, thinned
from services.training.messages import (
    Curve,
    ForgetJob,
    Job,
    JobNews,
    JobState,
    ListJobs,
    NameJob,
    Point,
    StartJob,
)
from services.training.running import RunningJob
from services.training.settings import TrainingSettings

__all__ = ["Training"]

SETTLED = 2.0  # seconds behind the time for a last checkpoint in which everything ends


class Training(ProcessService):
    """Fits models to texts, beside all else that the node does, and serves what they have learned."""

    name = "training"
    needs = ("devices",)
    uses = ("scheduler", "models", "filesystem", "inference")
    placement = Placement.NODE
    Settings: ClassVar[type[Message]] = TrainingSettings
    settings: TrainingSettings

    async def start(self) -> None:
        """Read the history. Jobs that were interrupted wait for `ready`."""
        self._history = await asyncio.to_thread(History, self.state_dir / "jobs")
        jobs, broken = await asyncio.to_thread(self._history.all)
        self._jobs = {job.job: _interrupted(job) for job in jobs}
        for name in broken:
            self.log.warning("the record of job %s cannot be read: it is left out", name)
        self._running: dict[str, RunningJob] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._server: ForkServer | None = None
        self._starting = asyncio.Lock()  # of two jobs that begin at a time, one starts the fork server
        self._room = asyncio.Semaphore(self.settings.at_once)
        self._stopping = False

    async def ready(self) -> None:
        """Jobs that were interrupted go on."""
        if not self.settings.resume:
            return
        for job in sorted(self._jobs.values(), key=lambda job: job.started):
            if job.state is JobState.INTERRUPTED:
                await self._take_up(job)

    async def stop(self) -> None:
        """Jobs make a last checkpoint, as far as there is time, and go on at the next boot."""
        self._stopping = True
        for running in self._running.values():
            running.stop(goes_on=True)
        tasks = tuple(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=self.settings.stop_seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.close()

    @handles(name="start")
    async def start_job(self, message: StartJob) -> Job:
        """Start a job; it returns once the job is accepted. Raises `INVALID` with the line of what is wrong."""
        config = with_files(read_job(message.text, message.where), message.files, message.text, message.where)
        if len(self._running) >= self.settings.at_once + self.settings.waiting:
            raise Overloaded(f"{len(self._running)} jobs run or wait, and that many may", retry_after=60.0)
        name = config.serve.name
        if name is not None and any(job.result == name for job in self._jobs.values()):
            raise AlreadyExists(f"a job before this one has made '{name}'", field="serve.name", remedy="choose another")
        job_name = await asyncio.to_thread(self._history.begin, config.name, message.text, message.files)
        job = Job(
            job=job_name,
            name=config.name,
            owner=calling_user() or "local",
            state=JobState.PREPARING,
            why="waits for its turn",
            method=config.method.kind,
            workers=config.devices.workers,
            started=time.time(),
        )
        await asyncio.to_thread(self._history.record, job)
        self._begin(job, config)
        return job

    @handles(idempotent=True)
    async def check(self, message: StartJob) -> JobConfig:
        """A configuration with all that it leaves unsaid; nothing is started. Raises `INVALID` as `start` does."""
        return read_job(message.text, message.where)

    @handles(name="list", idempotent=True)
    async def list_jobs(self, message: ListJobs) -> list[Job]:
        """Jobs of the caller, or of all users for root; the newest first."""
        jobs = [job for job in self._all() if may_touch(job.owner)]
        return sorted(jobs, key=lambda job: -job.started)[: max(0, message.limit)]

    @handles(idempotent=True)
    async def show(self, message: NameJob) -> Job:
        """One job as it is now."""
        return self._find(message.job)

    @handles(idempotent=True)
    async def curve(self, message: Curve) -> list[Point]:
        """What was measured, step by step, and what happened; thinned out."""
        job = self._find(message.job)
        return thinned(await asyncio.to_thread(self._history.curve, job.job), max(2, message.most))

    @streams
    async def watch(self, message: NameJob) -> AsyncIterator[JobNews]:
        """The job as it is, whenever something is new, until it ends."""
        job = self._find(message.job)
        running = self._running.get(job.job)
        if running is None:
            yield JobNews(job=job)
            return
        async for now, points in running.record.news():
            yield JobNews(job=now, points=tuple(points))

    @handles
    async def save(self, message: NameJob) -> Job:
        """Have a checkpoint made behind the next step."""
        self._run_of(message.job).save()
        return self._find(message.job)

    @handles(name="stop")
    async def stop_job(self, message: NameJob) -> Job:
        """End a job behind a whole step, with a checkpoint; `training.resume` goes on from there."""
        self._run_of(message.job).stop()
        return self._find(message.job)

    @handles
    async def resume(self, message: NameJob) -> Job:
        """Go on with a job that was stopped, killed, interrupted or failed, from its last checkpoint."""
        job = await self._settled(message.job)
        if job.job in self._running or job.state is JobState.DONE:
            raise PreconditionFailed(f"job '{job.job}' is {job.state}", field="job")
        return await self._take_up(job)

    @handles
    async def forget(self, message: ForgetJob) -> Job:
        """Remove a job's checkpoints, curve and record. Raises `PRECONDITION_FAILED` while it runs."""
        job = await self._settled(message.job)
        if job.job in self._running:
            raise PreconditionFailed(f"job '{job.job}' is {job.state}", remedy="stop or kill it first")
        await asyncio.to_thread(self._history.forget, job.job)
        self._jobs.pop(job.job, None)
        return job

    # What they share

    def _all(self) -> list[Job]:
        running = {name: run.job for name, run in self._running.items()}
        return list({**self._jobs, **running}.values())

    def _find(self, name: str) -> Job:
        running = self._running.get(name)
        job = running.job if running is not None else self._jobs.get(name)
        if job is None or not may_touch(job.owner):
            raise NotFound(f"there is no job '{name[:96]}'", field="job", remedy="see `mk jobs`")
        return job

    async def _settled(self, name: str) -> Job:
        """A job; one that has just ended is let go of first. Raises `NotFound`."""
        job = self._find(name)
        task = self._tasks.get(job.job)
        if task is not None and job.state.is_over:
            await asyncio.wait([task])
        return self._find(name)

    def _run_of(self, name: str) -> RunningJob:
        job = self._find(name)
        running = self._running.get(job.job)
        if running is None:
            raise PreconditionFailed(f"job '{job.job}' is {job.state}", field="job")
        return running

    async def _take_up(self, job: Job) -> Job:
        """Go on with a job from the disk."""
        text = await asyncio.to_thread(self._history.config, job.job)
        files = await asyncio.to_thread(self._history.files, job.job)
        config = with_files(read_job(text, where := f"job {job.job}"), files, text, where)
        fresh = msgspec.structs.replace(job, state=JobState.PREPARING, why="waits for its turn", ended=None, notes=())
        self._begin(fresh, config)
        return fresh

    def _begin(self, job: Job, config: JobConfig) -> None:
        running = RunningJob(self, self._history, config, job)
        self._running[job.job] = running
        # Not the caller's context: its deadline and its rights are the call's, and the job is not over with that.
        self._tasks[job.job] = task = asyncio.create_task(
            self._run(running), name=f"training {job.job}", context=contextvars.Context()
        )
        task.add_done_callback(lambda _: self._tasks.pop(job.job, None))

    async def _run(self, running: RunningJob) -> None:
        """One job, when there is room for it."""
        name = running.job.job
        try:
            async with self._room:
                await running.run(self._forks)
        finally:
            self._jobs[name] = running.job if running.job.state.is_over else _interrupted(running.job)
            self._running.pop(name, None)

    async def _forks(self) -> ForkServer:
        """The fork server, started when it is needed first, and again where it has ended."""
        async with self._starting:
            if self._stopping:
                raise Invalid("training is about to stop")
            if self._server is not None and not self._server.is_there:
                await self._server.close()
                self._server = None
            if self._server is None:
                self._server = await ForkServer.start()
            return self._server


def _interrupted(job: Job) -> Job:
    """A job that ran when its node ended."""
    if job.state.is_over:
        return job
    return msgspec.structs.replace(job, state=JobState.INTERRUPTED, pid=0, seconds_left=None)
