"""The maps that run: each is a process, and so is each of its tasks while it is done.

Maps are entered into the process table. Tasks are not: most end before anybody looks, so their lines are made for who
does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from microkernel.errors import (
    Aborted,
    AlreadyExists,
    CallCancelled,
    ErrorReport,
    Invalid,
    NotFound,
    PreconditionFailed,
    Unavailable,
    from_exception,
)
from microkernel.executor import Executor
from microkernel.policy import Claim, counted
from microkernel.processes import checked_nice
from microkernel.service import Service
from services.scheduler.mapping.crews import Crew, Processes, Threads
from services.scheduler.mapping.functions import check_allowed, find
from services.scheduler.mapping.job import Attempt, Task
from services.scheduler.mapping.journal import journal_path
from services.scheduler.mapping.maps import Batch, MapRun, count_of
from services.scheduler.mapping.over_nodes import OverNodes, pack_outcomes, unpack_tasks
from services.scheduler.messages import (
    Map,
    Mapped,
    Process,
    ProcessState,
    Progress,
    Range,
    RunElsewhere,
    Signal,
    Spawn,
)
from services.scheduler.table import ProcessTable
from services.scheduler.worker import Worker

__all__ = ["MapJobs"]

LARGE = 1 << 16  # bytes of tasks from which their outcomes are packed on a thread
TOLD = 3  # failed items that an error names
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class MapJobs:
    """The maps of a node. They are entered into the process table of the scheduler, which runs them itself."""

    def __init__(self, service: Service, table: ProcessTable, functions: tuple[str, ...]) -> None:
        """`functions` are patterns of those that users other than root may name."""
        self._service = service
        self._table = table
        self._functions = functions
        self._running: dict[int, MapRun] = {}
        self._asked: dict[int, Spawn] = {}
        self._named: set[tuple[str, str]] = set()
        self._found: set[str] = set()  # names of functions whose modules are here
        self._starting = asyncio.Lock()  # of two maps that ask at a time, one starts the processes
        self._workers: int | None = None  # how many processes there are, while that is known

    async def value(self, ask: Map, *, owner: str, is_root: bool) -> Any:
        """All values in a list, or their reduction. Raises `Aborted` where items failed, once the others are done."""
        await self._check(ask, is_root=is_root)
        failed: dict[int, ErrorReport] = {}
        async with self._run(ask, owner) as run:
            if ask.reduce is not None:
                value, failed = await run.value()
            else:
                pieces: list[Mapped] = []
                async with aclosing(run.results()) as results:
                    async for piece in results:
                        failed |= piece.failed
                        pieces.append(piece)
                value = [each for piece in sorted(pieces, key=lambda piece: piece.start) for each in piece.values]
            if failed:
                raise _failed(failed, run.items)
            return value

    async def results(self, ask: Map, *, owner: str, is_root: bool) -> AsyncGenerator[Mapped, None]:
        """The values, task by task."""
        await self._check(ask, is_root=is_root)
        if ask.reduce is not None:
            raise Invalid("a reduction has one value: call scheduler.map", field="reduce")
        async with self._run(ask, owner) as run, aclosing(run.results()) as results:
            async for piece in results:
                yield piece

    async def do_for_another(self, ask: RunElsewhere) -> bytes:
        """Do tasks of another node's map, on this one's cores. Raises `NotFound` where their function is not here."""
        now = self._service.clock.now()
        claim = Claim(
            pid=self._table.reserve(1)[0],
            owner=ask.owner,
            process_class=ask.process_class,
            nice=ask.nice,
            came=now - ask.age,
            since=now,
            deadline=None if ask.due is None else now + ask.due,
        )
        batch = unpack_tasks(ask)
        await self._import({batch.function, batch.reduce})
        outcomes = await Threads(self._with_cores).run(batch, claim)
        return pack_outcomes(outcomes) if len(ask.tasks) < LARGE else await asyncio.to_thread(pack_outcomes, outcomes)

    async def signal(self, signal: Signal) -> None:
        """Do what a signal asks of a map. Raises `NotFound`, `PreconditionFailed` for one of its tasks."""
        run = self._find(signal.pid)
        match signal.signal:
            case "kill":
                run.kill(CallCancelled(f"process {signal.pid}: {signal.why}"))
            case "pause":
                run.pause(paused=True)
            case "resume":
                run.pause(paused=False)
            case "nice":
                self._asked[signal.pid] = msgspec.structs.replace(self._asked[signal.pid], nice=signal.nice)
        self.report()

    def why(self, pid: int) -> str:
        """What a map or a task of one waits for, or that it runs, as the rest of a sentence about it."""
        run = self._running.get(pid)
        if run is None:
            return self._why_task(pid)
        if run.paused:
            return f"is paused, until it is resumed: {run.told()}"
        if not run.batches:
            return f"waits for a worker: {run.told()}"
        return f"runs: {run.told()}"

    def report(self) -> None:
        """Enter into the table how far each map is."""
        now = self._service.clock.now()
        for pid, run in self._running.items():
            state = ProcessState.PAUSED if run.paused else ProcessState.RUNNING
            progress = Progress(pid=pid, state=state, why=run.told(), device_seconds=run.seconds)
            self._table.update(progress, now)

    def tasks(self, now: float) -> list[Process]:
        """The tasks that workers have, as the process table shows them."""
        return [
            Process(
                pid=pid,
                service=self._service.name,
                kind="task",
                title=_title(attempt.task),
                owner=batch.claim.owner,
                device=None,
                process_class=batch.claim.process_class,
                parent=parent,
                nice=batch.claim.nice,
                due=None if batch.claim.deadline is None else batch.claim.deadline - now,
                state=ProcessState.READY,
                why="",
                age=now - attempt.began,
                device_seconds=0.0,
                tokens_in=0,
                tokens_out=0,
            )
            for parent, run in self._running.items()
            for batch in run.batches
            for pid, attempt in zip(batch.pids, batch.attempts, strict=True)
        ]

    def task(self, pid: int, now: float) -> Process | None:
        """The task that has this pid."""
        return next((task for task in self.tasks(now) if task.pid == pid), None)

    def service_gone(self, name: str) -> None:
        """A service is not what it was."""
        if name == Worker.name:
            self._workers = None

    @asynccontextmanager
    async def _run(self, ask: Map, owner: str) -> AsyncIterator[MapRun]:
        """The map as a process, from its begin to its end."""
        name = None if ask.name is None else (owner, ask.name)
        if name in self._named:
            raise AlreadyExists(f"a map named '{ask.name}' runs already", field="name")
        self._named |= set() if name is None else {name}
        try:
            async with self._named_run(ask, owner, name) as run:
                yield run
        finally:
            self._named.discard(name or ("", ""))

    @asynccontextmanager
    async def _named_run(self, ask: Map, owner: str, name: tuple[str, str] | None) -> AsyncIterator[MapRun]:
        crew = await self._crew(ask)
        spawn = Spawn(
            kind="map",
            title=ask.function,
            owner=owner,
            process_class=ask.process_class,
            nice=ask.nice,
            due=ask.due,
        )
        now = self._service.clock.now
        pid = self._table.spawn(spawn, self._service.name, now()).pid
        self._asked[pid] = spawn
        came = now()

        def begin(attempts: list[Attempt]) -> Batch:
            asked, pids = self._asked[pid], self._table.reserve(len(attempts))
            claim = Claim(
                pid=pids[0],
                owner=asked.owner,
                process_class=asked.process_class,
                nice=asked.nice,
                came=came,
                since=now(),
                deadline=None if asked.due is None else came + asked.due,
            )
            return Batch(attempts, pids, claim)

        run = MapRun(ask, crew, now, begin=begin, journal=self._journal(name))
        self._running[pid] = run
        state, why = ProcessState.KILLED, "its reader left"
        try:
            yield run
            state, why = ProcessState.DONE, run.told()
            run.finish()
        except CallCancelled as error:
            state, why = ProcessState.KILLED, error.message
            raise
        except Exception as error:
            state, why = ProcessState.FAILED, from_exception(error, service=self._service.name).message
            raise
        finally:
            del self._running[pid], self._asked[pid]
            ended = self._table.update(Progress(pid=pid, state=state, why=why, device_seconds=run.seconds), now())
            if ended is not None:
                self._service.publish("process.ended", ended)

    async def _crew(self, ask: Map) -> Crew:
        if ask.workers == "threads":
            executor = self._with_cores()
            if executor is None:
                with suppress(NotFound, Unavailable):  # a node without that service has the executors it was given
                    await self._service.call("devices.list")  # answers once all have been found
                executor = self._with_cores()
            if executor is None:
                raise PreconditionFailed("no device has threads for single cores", remedy='ask for workers="processes"')
            return OverNodes(Threads(self._with_cores), self._service)
        return Processes(self._service, await self._start_workers())

    async def _start_workers(self) -> int:
        """See that there are processes; returns how many."""
        if self._workers is None:
            async with self._starting:
                services = await self._service.call("kernel.services")
                if not any(service.name == Worker.name for service in services):
                    await self._service.call("kernel.add", path=str(Path(__file__).with_name("worker.py")))
                (worker,) = await self._service.call("kernel.describe", name=Worker.name)
                self._workers = int(worker.instances)
                return self._workers
        return self._workers

    def _with_cores(self) -> Executor | None:
        """The first device that has threads for single cores."""
        return next((executor for executor in self._service.executors if executor.core_threads), None)

    async def _check(self, ask: Map, *, is_root: bool) -> None:
        """Raise `Invalid`, `Denied` or `NotFound` for what cannot be mapped."""
        if not is_root:
            for name in filter(None, (ask.function, ask.reduce)):
                check_allowed(name, self._functions)
        await self._import({ask.function if ask.workers == "threads" else None, ask.reduce})
        checked_nice(ask.nice)
        if isinstance(ask.items, Range) and ask.items.step == 0:
            raise Invalid("a range has a step that is not 0", field="items")
        if ask.tasks is not None and ask.tasks < 1:
            raise Invalid(f"tasks is {ask.tasks}, and at least 1 is needed", field="tasks")
        if ask.name is not None and not _NAME.fullmatch(ask.name):
            raise Invalid(f"'{ask.name}' is no name for a map", field="name", remedy="letters, digits, '.', '-', '_'")
        count_of(ask.items)

    async def _import(self, names: set[str | None]) -> None:
        """Have the functions of these names here. Raises `NotFound`, `Invalid`."""
        for name in filter(None, names - self._found):
            await asyncio.to_thread(find, name)  # it may import
            self._found.add(name)

    def _journal(self, name: tuple[str, str] | None) -> Path | None:
        if name is None:
            return None
        return journal_path(self._service.state_dir, *name)

    def _find(self, pid: int) -> MapRun:
        run = self._running.get(pid)
        if run is not None:
            return run
        now = self._service.clock.now()
        task = self.task(pid, now) or self._table.running(pid, now)
        if task.parent in self._running:
            raise PreconditionFailed(
                f"process {pid} is a task of process {task.parent}", remedy=f"send it to process {task.parent}"
            )
        raise NotFound(f"there is no process {pid}", remedy="see `mk ps`")

    def _why_task(self, pid: int) -> str:
        """A task is with a worker: whether that has begun with what it was given, its policy knows."""
        found = (batch for run in self._running.values() for batch in run.batches if pid in batch.pids)
        batch = next(found, None)
        if batch is None:
            return "has ended"
        for executor in self._service.executors:
            if (said := executor.why(batch.pids[0])) is not None:
                return said
        others = len(batch.pids) - 1
        return f"runs, or is next: its worker was given {counted(others)} with it" if others else "runs"


def _title(task: Task) -> str:
    return f"items {task.start} to {task.stop - 1}" if len(task) > 1 else f"item {task.start}"


def _failed(failed: dict[int, ErrorReport], items: int) -> Aborted:
    """What is raised where items failed."""
    first = [f"item {number}: {failed[number].message}" for number in sorted(failed)[:TOLD]]
    more = "" if len(failed) <= TOLD else f"; and {len(failed) - TOLD} more"
    return Aborted(
        f"{len(failed)} of {items} items failed: {'; '.join(first)}{more}",
        remedy="scheduler.imap gives the values of the others",
        causes=tuple(first),
    )
