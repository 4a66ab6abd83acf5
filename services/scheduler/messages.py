"""What the scheduler answers: the process table."""

from __future__ import annotations

from enum import StrEnum

from microkernel.message import Message

__all__ = [
    "Exit",
    "Kill",
    "ListProcesses",
    "Process",
    "ProcessClass",
    "ProcessState",
    "Progress",
    "Report",
    "Signal",
    "Spawn",
]


class ProcessClass(StrEnum):
    """Interactive work goes before batch, batch before background."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    BACKGROUND = "background"


class ProcessState(StrEnum):
    """Where a process stands."""

    READY = "ready"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    SWAPPED = "swapped"
    DONE = "done"
    FAILED = "failed"
    KILLED = "killed"


class Spawn(Message, kw_only=True):
    """Enter a piece of work into the table. The service that sends it runs it and gets its signals.

    Those come to `<service>.signal`. `pid` is only given by who had one before the scheduler was restarted.
    """

    kind: str
    title: str
    owner: str = "local"
    device: str | None = None
    process_class: ProcessClass = ProcessClass.INTERACTIVE
    parent: int | None = None
    nice: int = 0
    pid: int | None = None


class Process(Message, kw_only=True):
    """One line of `ps`. Times are in seconds: `age` since it began, `device_seconds` spent on its device."""

    pid: int
    service: str
    kind: str
    title: str
    owner: str
    device: str | None
    process_class: ProcessClass
    parent: int | None
    nice: int
    state: ProcessState
    why: str
    age: float
    device_seconds: float
    tokens_in: int
    tokens_out: int


class Progress(Message, kw_only=True):
    """What one process has used so far; totals, not increments."""

    pid: int
    state: ProcessState
    why: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    device_seconds: float = 0.0


class Report(Message):
    """Progress of many processes at once, sent by the service that runs them, about twice a second."""

    entries: tuple[Progress, ...]


class Exit(Message, kw_only=True):
    """A process has ended; `progress.state` is done, failed or killed."""

    progress: Progress


class ListProcesses(Message):
    """Which processes: those that run, or with `ended` the last ones that have ended as well."""

    ended: bool = False


class Kill(Message):
    """End a process; the service that runs it is told by a signal."""

    pid: int
    why: str = "killed by its user"


class Signal(Message):
    """What the scheduler sends to `<service>.signal` of the service that runs `pid`. `signal` is `kill`."""

    pid: int
    signal: str
    why: str
