"""What the devices service answers: which devices there are, what they can do, how they are."""

from __future__ import annotations

from enum import StrEnum

from microkernel.errors import Overloaded
from microkernel.message import Message
from microkernel.model_server import Generate
from microkernel.timing import Timing

__all__ = [
    "QUIET",
    "AskModel",
    "Device",
    "DeviceState",
    "FindTuning",
    "KeepTuning",
    "ListServed",
    "Served",
    "ShowDevice",
    "ThreadCosts",
    "Tune",
    "Tuning",
    "beside_others",
    "in_the_way",
]


QUIET = 0.15  # part of our cores that others may be in the way of, where something is measured


def in_the_way(worked: float, seconds: float, cores: int, machine_cores: int) -> float:
    """How many of our `cores` others kept busy in the mean, for whom the machine's worked so many seconds in `seconds`.

    What they had of cores that this process may not use, was in nobody's way.
    """
    return max(0.0, worked / seconds - max(0, machine_cores - cores)) if seconds > 0.0 else 0.0


def beside_others(taken: float, cores: int, *, retry_after: float) -> Overloaded:
    """Why nothing is made of what was measured: others kept so many of our cores busy."""
    return Overloaded(
        f"other processes kept {taken:.1f} of {cores} cores busy: what was measured beside them does not hold without",
        remedy="tune while they rest",
        retry_after=retry_after,
    )


class DeviceState(StrEnum):
    """A device's health as its driver and the service see it."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    QUARANTINED = "quarantined"
    GONE = "gone"


class ThreadCosts(Message, kw_only=True):
    """What the device's threads cost: to create one, to schedule a quantum (from asking to its begin), to end one."""

    create: Timing
    schedule: Timing
    end: Timing


class Device(Message, kw_only=True):
    """One thing that runs quanta. Sizes are in bytes; `why` says what is wrong with it.

    Beside its `threads`, whose operations are spread over `spread` cores, are `core_threads` that take one core each.
    While it is `tuning`, nothing else should be measured. `others_seconds` are those that the machine's cores, of which
    there are `machine_cores`, worked for other processes since it began.

    One that `answers` runs nothing of ours, and gives whole answers of its `models`: `running` are those under way,
    `queued` those that wait for it, and `quanta` those that have ended.
    """

    name: str
    kind: str
    driver: str
    model: str
    state: DeviceState
    cores: int
    threads: int
    memory_bytes: int
    memory_free_bytes: int
    instruction_sets: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    torch_device: str = "cpu"
    queued: int = 0
    running: int = 0
    quanta: int = 0
    busy_seconds: float = 0.0
    core_threads: int = 0
    spread: int = 1
    tuning: bool = False
    others_seconds: float = 0.0
    machine_cores: int = 1
    policy: str = ""
    costs: ThreadCosts | None = None
    why: str = ""
    answers: bool = False
    models: tuple[str, ...] = ()

    def others_since(self, before: Device, seconds: float) -> float:
        """How many of its cores other processes kept busy in the mean, `seconds` after `before`."""
        return in_the_way(self.others_seconds - before.others_seconds, seconds, self.cores, self.machine_cores)


class ShowDevice(Message):
    """Ask for one device by name, such as `cpu0`."""

    name: str


class Tune(Message, kw_only=True):
    """Measure on a device what its numbers of threads are chosen by, and use what is best.

    With `anyway`, also where other processes keep the machine busy, beside which it does not hold.
    """

    name: str
    anyway: bool = False


class FindTuning(Message, kw_only=True):
    """Ask for what was chosen on a device for a subject: a model by its digest, or the device itself, ""."""

    device: str
    subject: str = ""


class KeepTuning(Message, kw_only=True):
    """Keep what was `chosen` on a device for a subject, and the figures that it was chosen by; `title` is for people.

    What was kept for it before, is forgotten. Figures are seconds, by what took them.
    """

    device: str
    subject: str
    title: str
    chosen: dict[str, int]
    measured: dict[str, float] = {}


class Tuning(Message, kw_only=True):
    """What is kept, and holds on this machine: fields as in `KeepTuning`. `at` is Unix time in seconds."""

    device: str
    subject: str
    title: str
    chosen: dict[str, int]
    measured: dict[str, float]
    machine: str
    at: float


class ListServed(Message):
    """Ask which models devices serve; with a `name`, only what that means.

    That is a model of that name wherever it is served, or else `device/model`, or `driver/model` for all of a driver's.
    """

    name: str | None = None


class Served(Message, kw_only=True):
    """A model that a device answers with, as it was last seen; `state` and `why` are the device's.

    `context_length` is in tokens and `created` Unix time, 0 where the device does not tell.
    """

    model: str
    device: str
    driver: str
    state: DeviceState
    why: str = ""
    context_length: int = 0
    created: int = 0


class AskModel(Generate, kw_only=True):
    """Have one of the devices that serve `model` answer. `where` names a device, or a driver, or "" for any.

    Of those that wait for a place the one with the least `urgency` goes first, and then who came first.
    """

    where: str = ""
    urgency: int = 0
