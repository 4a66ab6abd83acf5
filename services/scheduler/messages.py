"""What the scheduler answers: the process table."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from microkernel.errors import ErrorReport
from microkernel.message import Message
from microkernel.policy import ProcessClass

__all__ = [
    "Exit",
    "Explain",
    "Kill",
    "ListProcesses",
    "Map",
    "Mapped",
    "Pause",
    "PolicyStatus",
    "Process",
    "ProcessClass",
    "ProcessState",
    "Progress",
    "Range",
    "Report",
    "Resume",
    "RunElsewhere",
    "RunTasks",
    "SetNice",
    "SetPolicy",
    "SetWeight",
    "Share",
    "Signal",
    "Spawn",
    "Why",
]


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

    Those come to `<service>.signal`. It should have ended `due` seconds from now. `pid` is only given by who had one
    before the scheduler was restarted.
    """

    kind: str
    title: str
    owner: str = "local"
    device: str | None = None
    process_class: ProcessClass = ProcessClass.INTERACTIVE
    parent: int | None = None
    nice: int = 0
    due: float | None = None
    pid: int | None = None


class Process(Message, kw_only=True):
    """One line of `ps`. Times are in seconds: `age` since it began, `device_seconds` spent on its device.

    `due` is what is left until it should have ended; less than 0 when that has passed.
    """

    pid: int
    service: str
    kind: str
    title: str
    owner: str
    device: str | None
    process_class: ProcessClass
    parent: int | None
    nice: int
    due: float | None = None
    state: ProcessState
    why: str
    age: float
    device_seconds: float
    tokens_in: int
    tokens_out: int


class Progress(Message, kw_only=True):
    """What one process has used so far; totals, not increments. `device` None is the one that it was on before."""

    pid: int
    state: ProcessState
    why: str = ""
    device: str | None = None
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


class SetNice(Message):
    """Have a process go before others of its class, or behind them: -20 is first, 19 last.

    A user may make a process nicer; only root may make one less nice.
    """

    pid: int
    nice: int


class Pause(Message):
    """Let a process rest, between two quanta."""

    pid: int


class Resume(Message):
    """Let a process that rests go on."""

    pid: int


class Why(Message):
    """Ask why a process waits."""

    pid: int


class Explain(Message):
    """What the scheduler sends to `<service>.why` of the service that runs `pid`; the answer ends a sentence."""

    pid: int


class SetPolicy(Message):
    """Have the devices' time shared by another policy; what waits, waits there."""

    name: str


class SetWeight(Message):
    """Let `owner` have so many times the share of one of whom nothing is said; None: nothing is said any more."""

    owner: str
    weight: float | None


class Range(Message):
    """The numbers from `start` up to `stop`: items that need not be sent."""

    start: int
    stop: int
    step: int = 1

    @property
    def numbers(self) -> range:
        """All of them."""
        return range(self.start, self.stop, self.step)


class Map(Message, kw_only=True):
    """Call `function`, which is named `module:function`, with each of `items`, in `tasks` of equal size.

    None: tasks of about 100 ms. `arguments` go to each call by name. With `whole`, the function is called once a task,
    with all its items, and gives a value for them together. `reduce` is a function of two values, or `sum`, `max` or
    `min`: values are folded from the left, task by task in their order, so the result has the same bits however many
    workers there were and whatever failed. `workers` are "threads" of a device's cores, here and on the other nodes
    of the cluster, or "processes" of this node. What comes from another node or a process are plain values: lists for
    tuples. Not `ordered`, results come as tasks end.

    With a `name`, what is done is kept on disk: the same map goes on where the node was killed. `owner` is whom it is
    for where the call comes from no user.
    """

    function: str
    items: list[Any] | Range
    tasks: int | None = None
    arguments: dict[str, Any] = {}
    whole: bool = False
    reduce: str | None = None
    workers: Literal["threads", "processes"] = "threads"
    ordered: bool = True
    name: str | None = None
    owner: str = "local"
    process_class: ProcessClass = ProcessClass.BATCH
    nice: int = 0
    due: float | None = None


class Mapped(Message, kw_only=True):
    """The values of the items from `start` up to `stop`, with `whole` one for all. `failed` are those that raised, by
    their number; their values are None.
    """

    start: int
    stop: int
    values: list[Any]
    failed: dict[int, ErrorReport] = {}


class RunTasks(Message, kw_only=True):
    """What a worker is given in one go: the fields of a map, and the items of each task."""

    function: str
    tasks: list[list[Any] | Range]
    arguments: dict[str, Any] = {}
    whole: bool = False
    reduce: str | None = None


class RunElsewhere(Message, kw_only=True):
    """What another node is given of a map: `tasks` is a `RunTasks` as MessagePack, and so is the answer.

    The rest says when its turn is: `age` is the seconds since the map came, `due` those until it should have ended.
    """

    tasks: bytes
    owner: str
    process_class: ProcessClass
    nice: int
    age: float
    due: float | None = None


class Share(Message, kw_only=True):
    """What an owner had of a device in a class, in seconds, since the policy was set."""

    device: str
    owner: str
    process_class: ProcessClass
    seconds: float


class PolicyStatus(Message, kw_only=True):
    """The policy that holds, those there are, the owners' weights, and what they had: known only where it is `fair`."""

    name: str
    policies: tuple[str, ...]
    weights: dict[str, float]
    shares: list[Share] = []


class Signal(Message):
    """What the scheduler sends to `<service>.signal` of the service that runs `pid`.

    `signal` is `kill`, `pause`, `resume` or `nice`; with that comes the new value.
    """

    pid: int
    signal: str
    why: str
    nice: int = 0
