"""What a driver is: it finds devices, says what they can do, and owns their compute threads.

Some devices run no work of ours, and give whole answers by themselves: see `microkernel.model_server`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from microkernel.executor import Executor
from microkernel.message import Message, Nothing

if TYPE_CHECKING:
    from microkernel.model_server import ModelServer

__all__ = ["DeviceFacts", "Driver", "DriverDevice", "Trial"]

Trial = Callable[[int], float]
"""A fixed piece of work: called on a compute thread with how many threads its operations are to be spread over, it
gives the seconds that it took."""


class DeviceFacts(Message, kw_only=True):
    """What does not change about a device. `memory_bytes` is all that it has; `torch_device` is its name in torch."""

    name: str
    kind: str
    model: str
    cores: int
    threads: int
    memory_bytes: int
    instruction_sets: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    torch_device: str = "cpu"


class DriverDevice(ABC):
    """One device that a driver has found."""

    facts: DeviceFacts

    @abstractmethod
    def executor(self) -> Executor:
        """A new executor of this device, not started."""

    @abstractmethod
    def free_memory(self) -> int:
        """Bytes that could be taken now; called on the loop, so it answers at once."""

    @abstractmethod
    def fault(self) -> str | None:
        """What is wrong with the device, None while it is healthy; called on the loop."""

    def lost(self) -> str | None:
        """Why nothing can be computed on it any more in this process, None while something can; called on the loop."""
        return None

    def trials(self) -> Mapping[str, Trial]:
        """What the number of threads is chosen by, by name; nothing where there is no choice. Called on a thread.

        What they need of memory is theirs, and gone with them.
        """
        return {}

    def spread(self, threads: int) -> None:  # noqa: B027 - most have no choice
        """Have operations of the calling compute thread spread over so many threads, where `trials` has any."""


class Driver(ABC):
    """Installed by the entry-point group `microkernel.drivers`; made without arguments.

    `Settings` is the type of its section of the configuration, and `settings` what that says, from before `find` on.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Message]] = Nothing
    settings: Any

    @abstractmethod
    def find(self) -> Sequence[DriverDevice | ModelServer]:
        """The devices here, none if there are none; called on a thread, so it may import and probe."""
