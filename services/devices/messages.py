"""What the devices service answers: which devices there are, what they can do, how they are."""

from __future__ import annotations

from enum import StrEnum

from microkernel.message import Message
from microkernel.timing import Timing

__all__ = ["Device", "DeviceState", "ShowDevice", "ThreadCosts"]


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
    """One thing that runs quanta. Sizes are in bytes; `why` says what is wrong with it."""

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
    policy: str = ""
    costs: ThreadCosts | None = None
    why: str = ""


class ShowDevice(Message):
    """Ask for one device by name, such as `cpu0`."""

    name: str
