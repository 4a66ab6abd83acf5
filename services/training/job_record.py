"""What is known of a job while it runs: kept on the disk, and told to who watches.

Workers tell of every step. What comes of that is written and told twice a second, so that a job of a thousand steps a
second costs no more than one of two.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from microkernel.service import Service
from services.training.agent.liveness import WorkerLost
from services.training.history import History
from services.training.messages import Job, JobState, Point
from services.training.orders import (
    Evaluated,
    Finished,
    Formed,
    LeftOut,
    Noted,
    Preparing,
    Ready,
    Report,
    Rested,
    Saved,
    Stepped,
)

__all__ = ["JobRecord"]

NOTES = 20  # the last that a job is shown with
RECENT = 20  # steps by which the time that is left is judged
TELL = 0.5  # seconds between two looks at what is new
KEPT_POINTS = 10_000  # that those who watch may be behind


class JobRecord:
    """One job's. `keep` runs beside the job, and `close` ends it with all written."""

    def __init__(self, service: Service, history: History, job: Job) -> None:
        self.job = job
        self._service = service
        self._history = history
        self._new: list[Point] = []
        self._points: deque[tuple[int, Point]] = deque(maxlen=KEPT_POINTS)
        self._count = 0  # points so far
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._dirty = False
        self._tellings = 0
        self._told = asyncio.Condition()
        self._over = asyncio.Event()
        self._kept = False  # the last was written

    async def news(self) -> AsyncIterator[tuple[Job, list[Point]]]:
        """The job as it is, again and again, with the points since the last time; ends with the job."""
        seen, told = self._count, self._tellings
        yield self.job, []
        while not (self._kept and told == self._tellings):
            async with self._told:
                while self._tellings == told:  # it may have been told while nobody waited
                    await self._told.wait()
            points, told = [point for number, point in self._points if number > seen], self._tellings
            seen = self._count
            yield self.job, points
            if not self._kept:
                await asyncio.sleep(TELL)

    async def keep(self) -> None:
        """Write what is new, and wake those who watch, until `close`."""
        while not self._over.is_set():
            try:
                async with asyncio.timeout(TELL):
                    await self._over.wait()
            except TimeoutError:
                if not (self._dirty or self._new):
                    continue
            await self._write(is_last=self._over.is_set())

    def close(self) -> None:
        """Have `keep` write the last, and return."""
        self._over.set()

    def hear(self, report: Report | WorkerLost) -> None:
        """Take what a process of the job tells."""
        now = time.time()
        match report:
            case Preparing():
                share = 100 * report.done / report.total if report.total else 100.0
                self.change(why=f"{share:.0f} % of the data, {report.tokens} tokens")
            case Formed():
                self.change(state=JobState.RUNNING, why="")
            case Rested():
                self.change(state=JobState.PAUSED, why="until it is resumed", seconds_left=None)
            case Ready():
                self.change(trained=report.trained)
            case Stepped():
                self._stepped(report, now)
            case Evaluated():
                self.change(evaluation_loss=report.loss)
                self._add(Point(step=report.step, at=now, evaluation_loss=report.loss))
            case Saved():
                self.change(saved_step=report.step)
            case LeftOut():
                self._event(report.step, f"rows of step {report.diverged} are passed over: {report.why}")
            case Noted():
                self.note(report.text)
            case Finished():
                self.change(seconds_left=0.0)
            case WorkerLost():
                self.change(lost_workers=self.job.lost_workers + 1)
                self._event(report.step, f"worker {report.number} ended: {report.why}")

    def _stepped(self, report: Stepped, now: float) -> None:
        self._recent.append(now)
        passed = self._recent[-1] - self._recent[0]
        each = passed / (len(self._recent) - 1) if len(self._recent) > 1 else report.seconds
        self.change(
            state=JobState.RUNNING,
            why="",
            step=report.step,
            tokens=report.step * report.tokens,
            tokens_second=report.tokens / max(each, 1e-9),
            loss=report.loss,
            seconds_left=each * (self.job.steps - report.step),
        )
        self._add(
            Point(
                step=report.step,
                at=now,
                loss=report.loss,
                rate=report.rate,
                norm=report.norm,
                tokens=report.tokens,
                seconds=report.seconds,
            )
        )

    def _event(self, step: int, text: str) -> None:
        self._service.log.warning("job %s: %s", self.job.job, text)
        self._add(Point(step=step, at=time.time(), event=text))

    def note(self, text: str) -> None:
        """Something that its owner should know."""
        self._service.log.warning("job %s: %s", self.job.job, text)
        self.change(notes=(*self.job.notes, text)[-NOTES:])

    def _add(self, point: Point) -> None:
        self._new.append(point)
        self._count += 1
        self._points.append((self._count, point))

    def change(self, **fields: Any) -> None:
        """It is another way now."""
        self.job = msgspec.structs.replace(self.job, **fields)
        self._dirty = True

    def end(self, state: JobState, why: str = "") -> None:
        """It runs no more."""
        ended = None if state is JobState.INTERRUPTED else time.time()
        self.change(state=state, why=why, ended=ended, seconds_left=None, pid=0)
        if why:
            self._service.log.warning("job %s is %s: %s", self.job.job, state, why)
        self._service.publish("training.ended", self.job)

    async def _write(self, *, is_last: bool) -> None:
        points, self._new = self._new, []
        job, self._dirty = self.job, False
        try:
            if points:
                await asyncio.to_thread(self._history.append, job.job, points)
            await asyncio.to_thread(self._history.record, job)
        except OSError:
            self._service.log.exception("the record of job %s cannot be written", job.job)
        self._service.publish("training.progress", job)
        self._tellings += 1
        self._kept = is_last
        async with self._told:
            self._told.notify_all()
