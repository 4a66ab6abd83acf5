"""Runs a map: assigns its tasks, takes their results, and gives them out in order (hot: once a task)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from microkernel.errors import ErrorReport, Internal, MicrokernelError, Overloaded, Unavailable
from microkernel.policy import Claim
from services.scheduler.mapping.crews import Crew, WorkerLost
from services.scheduler.mapping.fold import Fold, InOrder
from services.scheduler.mapping.functions import find
from services.scheduler.mapping.job import Attempt, Job, Task
from services.scheduler.mapping.journal import Journal, Record
from services.scheduler.mapping.partition import Equal, Guided, Partition
from services.scheduler.mapping.work import TOGETHER, Outcome
from services.scheduler.messages import Map, Mapped, Range, RunTasks

__all__ = ["Batch", "MapRun", "count_of"]

AHEAD = 2  # batches that each worker has: one runs, and the next one is there when it ends
WINDOW = 64  # tasks' worth of items that may be done ahead of the first that is not, for each worker
FOLDED = 256  # tasks of a reduction where nobody said how many: its bits are to depend on the items alone
LOOK = 0.02  # seconds after which idle workers look for a slow task to copy
AGAIN = 0.05  # seconds until a task is given again that nobody took

Piece = tuple[int, int, Outcome]
"""The items from a start up to a stop, and what they gave."""


class Batch(msgspec.Struct, frozen=True, eq=False):
    """What a worker was given at once: attempts at tasks, each with a pid. Their claim has the first one's."""

    attempts: list[Attempt]
    pids: list[int]
    claim: Claim


class MapRun:
    """One map, while it runs."""

    def __init__(
        self,
        ask: Map,
        crew: Crew,
        now: Callable[[], float],
        *,
        begin: Callable[[list[Attempt]], Batch],
        journal: Path | None = None,
    ) -> None:
        """`begin` says for whom attempts are and when their turn is. With `journal`, what is done is kept there."""
        self.items = count_of(ask.items)
        self.paused = False
        self.seconds = 0.0  # that workers were at its tasks
        self._ask = ask
        self._crew = crew
        self._now = now
        self._begin = begin
        self._error: MicrokernelError | None = None
        self._path = journal
        self._journal: Journal | None = None
        self._job: Job | None = None
        self._flying: dict[asyncio.Task[list[Outcome]], Batch] = {}
        self._landed: list[asyncio.Task[list[Outcome]]] = []  # of these, those that have ended
        self._wake = asyncio.Event()
        self._rests_until = 0.0  # nobody took a task a moment ago
        self._parts: dict[tuple[int, int], tuple[InOrder, list[Outcome]]] = {}

    @property
    def done(self) -> int:
        """How many items are done."""
        return 0 if self._job is None else self._job.done_items

    @property
    def batches(self) -> list[Batch]:
        """What workers have now."""
        return list(self._flying.values())

    def pause(self, *, paused: bool) -> None:
        """Begin no more tasks, or go on; those that run end."""
        self.paused = paused
        self._wake.set()

    def kill(self, error: MicrokernelError) -> None:
        """End it with `error`, for whoever waits for its results; its workers are free at once."""
        self._error = error
        for doing in self._flying:
            doing.cancel()
        self._wake.set()

    def told(self) -> str:
        """How far it is, for people."""
        job = self._job
        if job is None:
            return ""
        more = f", {job.lost_workers} workers lost" if job.lost_workers else ""
        more += f", {job.copied} tasks copied" if job.copied else ""
        return f"{job.done_items} of {job.items} items done{more}"

    async def value(self) -> tuple[Any, dict[int, ErrorReport]]:
        """The reduction of all values, and which items failed."""
        assert self._ask.reduce is not None
        fold = Fold(find(self._ask.reduce))
        failed: dict[int, ErrorReport] = {}
        async with aclosing(self._pieces()) as taken:
            async for pieces in taken:
                for start, _, outcome in pieces:
                    failed |= {start + place: report for place, report in outcome.failed.items()}
                await asyncio.to_thread(_put, fold, pieces)
        return fold.value, failed

    async def results(self) -> AsyncGenerator[Mapped, None]:
        """The values, task by task: in the order of the items, or as tasks end."""
        order = InOrder()
        async with aclosing(self._pieces()) as taken:
            async for pieces in taken:
                for start, stop, outcome in pieces:
                    failed = {start + place: report for place, report in outcome.failed.items()}
                    piece = Mapped(start=start, stop=stop, values=outcome.values, failed=failed)
                    if not self._ask.ordered:
                        yield piece
                        continue
                    for each in order.put(start, stop, piece):
                        yield each
                        self._taken(each.stop)

    def finish(self) -> None:
        """Its results were handed over: what was kept for a restart is not needed any more."""
        if self._journal is not None:
            self._journal.forget()
            self._journal = None

    async def _pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What tasks gave, as they end; a task that was cut in half gives one piece for both."""
        kept: list[Record] = [] if self._path is None else await asyncio.to_thread(self._open, self._path)
        job = self._job = self._make(kept)
        try:
            yield [(record.start, record.stop, record.outcome) for record in kept]
            while not job.finished or self._flying:
                if job.finished:
                    self._cancel_copies()
                self._fill(job)
                await self._look(job)
                if self._error is not None:
                    raise self._error
                yield await self._ended(job)
        finally:
            flying = list(self._flying)
            for each in flying:
                each.cancel()
            if flying:
                await asyncio.wait(flying)
            self._flying.clear()
            if self._journal is not None:
                await asyncio.to_thread(self._journal.close)

    @property
    def _tasks(self) -> int | None:
        """Into how many tasks the items are cut, where that is known beforehand."""
        ask = self._ask
        return ask.tasks if ask.tasks is not None or ask.reduce is None else min(FOLDED, self.items)

    def _open(self, path: Path) -> list[Record]:
        """What the journal has; on a thread."""
        self._journal = Journal(path, _digest(self._ask), {"tasks": self._tasks})
        return list(self._journal.records())

    def _make(self, kept: Iterable[Record]) -> Job:
        """The tasks that are left."""
        tasks = self._tasks if self._journal is None else self._journal.partition["tasks"]
        partition: Partition = (
            Guided() if tasks is None or self.items == 0 else Equal(self.items, min(tasks, self.items))
        )
        size = 1 if tasks is None else -(-self.items // tasks) if self.items else 1
        ordered = self._ask.ordered and self._ask.reduce is None
        return Job(
            self.items,
            partition,
            self._crew.size,
            window=max(4096, WINDOW * size * self._crew.size) if ordered else self.items + 1,
            divisible=not self._ask.whole,
            done=[(record.start, record.stop) for record in kept],
        )

    def _fill(self, job: Job) -> None:
        """Give every worker something to do."""
        if self._now() < self._rests_until:
            return
        while not self.paused and len(self._flying) < AHEAD * self._crew.size:
            # Which worker has which is not known: one that is frozen may have all that is left, and the others nothing.
            ahead = len(self._flying) // self._crew.size
            attempts = job.assign_some(self._now(), TOGETHER, ahead=ahead)
            if not attempts:
                return
            batch = self._begin(attempts)
            doing = asyncio.create_task(self._crew.run(self._work([each.task for each in attempts]), batch.claim))
            self._flying[doing] = batch
            doing.add_done_callback(self._land)

    def _land(self, doing: asyncio.Task[list[Outcome]]) -> None:
        self._landed.append(doing)
        self._wake.set()

    def _work(self, tasks: list[Task]) -> RunTasks:
        ask = self._ask
        return RunTasks(
            function=ask.function,
            tasks=[self._items(task) for task in tasks],
            arguments=ask.arguments,
            whole=ask.whole,
            reduce=None if tasks[0].is_part else ask.reduce,  # parts are folded together, as the whole would have been
        )

    def _items(self, task: Task) -> list[Any] | Range:
        items = self._ask.items
        if isinstance(items, Range):
            span = items.numbers[task.start : task.stop]
            return Range(span.start, span.stop, span.step)
        return items[task.start : task.stop]

    async def _look(self, job: Job) -> None:
        """Return when a task has ended, or it is time to see whether one is slow, or something was said."""
        self._wake.clear()
        if self._landed or self._error is not None or (job.finished and not self._flying):
            return
        patience = None  # while all have enough to do, only the end of a task is news
        if len(self._flying) < AHEAD * self._crew.size:
            patience = AGAIN if self._now() < self._rests_until or not self._flying else LOOK
        timer = None if patience is None else asyncio.get_running_loop().call_later(patience, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _ended(self, job: Job) -> list[Piece]:
        """What counts of that which has ended; it is on disk where it is kept."""
        pieces: list[Piece] = []
        landed, self._landed = self._landed, []
        for doing in landed:
            for task, outcome in self._counted(job, self._flying.pop(doing).attempts, doing):
                if task.is_part and self._ask.reduce is not None:
                    pieces += await asyncio.to_thread(self._join, task, outcome)
                else:
                    pieces.append((task.start, task.stop, outcome))
        if pieces and self._journal is not None:
            await asyncio.to_thread(self._journal.commit, [Record(*piece) for piece in pieces])
        return pieces

    def _counted(
        self, job: Job, attempts: list[Attempt], doing: asyncio.Task[list[Outcome]]
    ) -> list[tuple[Task, Outcome]]:
        """What counts of what a worker gave for the tasks that it was given at once."""
        try:
            outcomes = doing.result()
        except asyncio.CancelledError:
            outcomes = []
        except (Overloaded, Unavailable):  # they never began: their worker is being replaced, or has enough
            self._rests_until = self._now() + AGAIN
            outcomes = []
        except WorkerLost as error:
            task = job.lose_some(attempts)
            return [] if task is None else [(task, _lost(task, error))]
        except MicrokernelError:
            if len(attempts) == 1:
                raise
            job.refuse(attempts)
            return []
        counted: list[tuple[Task, Outcome]] = []
        for attempt, outcome in zip(attempts, outcomes, strict=False):
            self.seconds += outcome.seconds
            others = len(attempt.task.attempts) > 1
            if job.commit(attempt, outcome.seconds):
                counted.append((attempt.task, outcome))
                if others:
                    self._cancel_copies()
        for attempt in attempts[len(outcomes) :]:
            job.cancel(attempt)
        return counted

    def _cancel_copies(self) -> None:
        """Nobody waits for what others have done already."""
        for doing, batch in self._flying.items():
            if all(attempt.task.done for attempt in batch.attempts):
                doing.cancel()

    def _join(self, task: Task, outcome: Outcome) -> list[Piece]:
        """The whole task, once all of its parts are there: folded as it would have been in one piece; on a thread."""
        start, stop = task.whole
        order, parts = self._parts.setdefault(task.whole, (InOrder(start), []))
        parts += order.put(task.start, task.stop, outcome)
        if order.next < stop:
            return []
        del self._parts[task.whole]
        assert self._ask.reduce is not None
        reduce, folded, count = find(self._ask.reduce), None, 0
        failed: dict[int, ErrorReport] = {}
        place = 0
        for part in parts:
            failed |= {place + each: report for each, report in part.failed.items()}
            for each, value in enumerate(part.values):
                if each in part.failed:
                    continue
                folded = value if count == 0 else reduce(folded, value)
                count += 1
            place += len(part.values)
        return [(start, stop, Outcome(folded=folded, count=count, failed=failed))]

    def _taken(self, stop: int) -> None:
        """Results up to an item were handed over."""
        if self._job is not None:
            self._job.taken = max(self._job.taken, stop)


def _put(fold: Fold, pieces: Iterable[Piece]) -> None:
    """Fold what some tasks gave; on a thread."""
    for start, stop, outcome in pieces:
        fold.put(start, stop, outcome.folded, outcome.count)


def _lost(task: Task, error: WorkerLost) -> Outcome:
    """What a task gave that costs its workers."""
    what = f"item {task.start}" if len(task) == 1 else f"the task of items {task.start} to {task.stop - 1}"
    report = Internal(f"{what} cost {task.killed} workers: {error.message}", service="scheduler").report()
    return Outcome(values=[None] * len(task), failed=dict.fromkeys(range(len(task)), report))


def count_of(items: list[Any] | Range) -> int:
    """How many items there are."""
    return len(items.numbers if isinstance(items, Range) else items)


def _digest(ask: Map) -> bytes:
    """What is computed: the same for the same map, whoever does it and how."""
    what = [ask.function, ask.items, ask.arguments, ask.whole, ask.reduce, ask.tasks]
    return hashlib.blake2b(msgspec.msgpack.encode(what), digest_size=16).digest()
