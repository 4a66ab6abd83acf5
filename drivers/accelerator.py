"""What CUDA, MPS and XPU devices have in common: all of a driver but the few calls that each vendor names otherwise.

A vendor's library may take seconds for its first call, and a call for ever on a device that hangs. So the loop makes
none: it gets the answer of the last reading, and has a new one taken by a thread that it does not wait for. What this
process has taken or given back since is known without asking the device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from microkernel.driver import DeviceFacts, DriverDevice
from microkernel.executor import Executor
from microkernel.message import Message

__all__ = ["Accelerator", "Memory", "Vendor"]

FRESH = 0.5  # seconds for which a reading is not taken again
SILENT = 30.0  # seconds without an answer after which a device is said to hang

# What a library says once a device's context is lost: each later call fails too, until the process ends.
LASTING = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "invalid address space",
    "invalid program counter",
    "hardware stack error",
    "unspecified launch failure",
    "uncorrectable",
    "ecc error",
    "nvlink error",
    "context is destroyed",
    "device is lost",
    "device lost",
    "device unavailable",
    "fallen off the bus",
)


class Memory(Message, frozen=True):
    """Bytes as a device tells them: `free` can be taken by anybody or is kept by torch for us, `ours` our tensors have.

    Read at one moment, so that `free` now is `free` then, and `ours` then, without `ours` now.
    """

    free: int
    ours: int


class Vendor(Protocol):
    """The calls that differ. All but `ours` may take long; any may raise what its library raises."""

    def begin(self) -> None:
        """On the compute thread, once: make the device and a stream of its own the thread's."""
        ...

    def memory(self) -> Memory:
        """Ask the device."""
        ...

    def ours(self) -> int:
        """Bytes that tensors of this process have, from torch's own counts: the device is not asked."""
        ...


class Accelerator(DriverDevice):
    """One device of some vendor's."""

    def __init__(
        self,
        facts: DeviceFacts,
        vendor: Vendor,
        *,
        now: Callable[[], float] = time.monotonic,
        begin_thread: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Take the first reading, on the thread of `Driver.find`. `begin_thread` runs a function beside the caller."""
        self.facts = facts
        self._vendor = vendor
        self._now = now
        self._begin_thread = begin_thread or _on_a_daemon_thread
        self._memory = vendor.memory()
        self._read_at = now()
        self._asked_at: float | None = None  # when the reading began that is under way
        self._fault = ""
        self._lost = ""

    def executor(self) -> Executor:
        """One compute thread, with a stream of its own: what it asks for is done in that order."""
        return Executor(self.facts.name, threads=1, initialize=self._vendor.begin)

    def free_memory(self) -> int:
        """Bytes that could be taken, as last read, less what we took since; a new reading is begun if that is old."""
        self._refresh()
        memory = self._memory
        if self._lost:
            return 0
        return max(0, min(memory.free + memory.ours - self._vendor.ours(), self.facts.memory_bytes))

    def fault(self) -> str | None:
        """What the last reading met, or that the device does not answer."""
        self._refresh()
        asked = self._asked_at
        if asked is not None and self._now() - asked > SILENT:
            return f"it has not answered for {self._now() - asked:.0f} s"
        return self._lost or self._fault or None

    def lost(self) -> str | None:
        """The error after which each call fails."""
        return self._lost or None

    def _refresh(self) -> None:
        """Have a reading taken unless one is under way, or the last one is fresh, or none could change anything."""
        if self._asked_at is not None or self._lost or self._now() - self._read_at < FRESH:
            return
        self._asked_at = self._now()
        self._begin_thread(self._read)

    def _read(self) -> None:
        try:
            self._memory = self._vendor.memory()
        except Exception as error:  # noqa: BLE001 - whatever a library raises is what is wrong with its device
            why = str(error).partition("\n")[0] or type(error).__name__
            if any(sign in why.lower() for sign in LASTING):
                self._lost = why
            else:
                self._fault = why
        else:
            self._fault = ""
        self._read_at = self._now()
        self._asked_at = None


def _on_a_daemon_thread(function: Callable[[], None]) -> None:
    """A daemon's: a call that never comes back keeps no process."""
    threading.Thread(target=function, name="device reading", daemon=True).start()
