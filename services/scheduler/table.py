"""The process table: a plain class without a loop."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from microkernel.errors import AlreadyExists, NotFound, Overloaded, PreconditionFailed
from services.scheduler.messages import Process, ProcessState, Progress, Spawn

__all__ = ["ProcessTable"]

PIDS = itertools.count(1)
ENDED = frozenset({ProcessState.DONE, ProcessState.FAILED, ProcessState.KILLED})


class ProcessTable:
    """All that runs, and the last `history` that have ended. Times are seconds on the caller's clock.

    `pids` gives new pids; the default one goes on counting when the scheduler is restarted, so that a pid names one
    process for the life of the node.
    """

    def __init__(self, *, limit: int = 4096, history: int = 256, pids: Iterator[int] = PIDS) -> None:
        self._limit = limit
        self._history = history
        self._running: dict[int, _Row] = {}
        self._ended: OrderedDict[int, _Row] = OrderedDict()
        self._pids = pids

    def spawn(self, ask: Spawn, service: str, now: float) -> Process:
        """Enter a process of `service` in state ready. Raises `Overloaded` when the table is full.

        A pid that is given must be free, or `AlreadyExists` is raised.
        """
        if ask.pid is not None and (ask.pid in self._running or ask.pid in self._ended):
            raise AlreadyExists(f"there is a process {ask.pid} already", field="pid")
        if len(self._running) >= self._limit:
            raise Overloaded(f"{self._limit} processes are running, the table's limit", retry_after=1.0)
        process = Process(
            pid=next(self._pids) if ask.pid is None else ask.pid,
            service=service,
            kind=ask.kind,
            title=ask.title,
            owner=ask.owner,
            device=ask.device,
            process_class=ask.process_class,
            parent=ask.parent,
            nice=ask.nice,
            due=ask.due,
            state=ProcessState.READY,
            why="",
            age=0.0,
            device_seconds=0.0,
            tokens_in=0,
            tokens_out=0,
        )
        self._running[process.pid] = _Row(process, now)
        return process

    def reserve(self, count: int) -> list[int]:
        """Pids of processes that are not entered here: whoever runs them tells of them when somebody looks."""
        return [next(self._pids) for _ in range(count)]

    def update(self, progress: Progress, now: float, *, service: str | None = None) -> Process | None:
        """Note progress; a state that is an end moves the process to the history. None for one that is not running."""
        row = self._running.get(progress.pid)
        if row is None or service not in {None, row.process.service}:
            return None
        row.process = msgspec.structs.replace(
            row.process,
            state=progress.state,
            why=progress.why,
            device=row.process.device if progress.device is None else progress.device,
            tokens_in=progress.tokens_in,
            tokens_out=progress.tokens_out,
            device_seconds=progress.device_seconds,
        )
        if progress.state in ENDED:
            row.ended = now
            self._ended[progress.pid] = self._running.pop(progress.pid)
            while len(self._ended) > self._history:
                self._ended.popitem(last=False)
        return row.at(now)

    def renice(self, pid: int, nice: int, now: float) -> Process:
        """Note another nice value. Raises as `running`."""
        self.running(pid, now)
        row = self._running[pid]
        row.process = msgspec.structs.replace(row.process, nice=nice)
        return row.at(now)

    def fail_service(self, service: str, why: str, now: float) -> list[Process]:
        """End all processes of a service that is gone; returns them as they ended."""
        ended = []
        for process in [row.process for row in self._running.values() if row.process.service == service]:
            failed = Progress(
                pid=process.pid,
                state=ProcessState.FAILED,
                why=why,
                tokens_in=process.tokens_in,
                tokens_out=process.tokens_out,
                device_seconds=process.device_seconds,
            )
            row = self.update(failed, now)
            if row is not None:
                ended.append(row)
        return ended

    def running(self, pid: int, now: float) -> Process:
        """Raises `NotFound` for a pid never given, `PreconditionFailed` for one that has ended."""
        row = self._running.get(pid)
        if row is not None:
            return row.at(now)
        ended = self._ended.get(pid)
        if ended is not None:
            raise PreconditionFailed(f"process {pid} is {ended.process.state} already")
        raise NotFound(f"there is no process {pid}", remedy="see `mk ps`")

    def show(self, now: float, *, ended: bool) -> list[Process]:
        """What runs, oldest first; with `ended` the history before it."""
        rows = [*self._ended.values(), *self._running.values()] if ended else list(self._running.values())
        return [row.at(now) for row in rows]


class _Row:
    __slots__ = ("began", "ended", "process")

    def __init__(self, process: Process, began: float) -> None:
        self.process = process
        self.began = began
        self.ended: float | None = None

    def at(self, now: float) -> Process:
        age = (now if self.ended is None else self.ended) - self.began
        due = self.process.due
        return msgspec.structs.replace(self.process, age=age, due=None if due is None else due - age)
