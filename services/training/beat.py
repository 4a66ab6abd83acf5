"""How a worker shows that it lives, in memory that it shares with its agent.

A thread of it counts ten times a second, which shows that the process runs: one that is stopped does not. The loop of
steps counts whenever it enters another phase, which shows that it gets on: one that hangs does not.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from typing import NamedTuple

__all__ = ["BEAT", "PHASES", "Beat", "Pulse", "read_pulse", "shared_memory"]

BEAT = 0.1  # seconds
PHASES = (
    "starting", "waiting", "forming", "forward", "backward", "summing", "applying", "evaluating", "saving", "finishing",
)  # fmt: skip
SIZE = 64
_LAYOUT = struct.Struct("=QQQI")  # beats, phases entered, step, phase


class Pulse(NamedTuple):
    """What a worker shows: how often it has counted, how many phases it has entered, its step, and its phase."""

    beats: int
    entered: int
    step: int
    phase: str


def shared_memory() -> int:
    """A descriptor of memory for one worker; it goes with its last descriptor."""
    handle = os.memfd_create("beat") if hasattr(os, "memfd_create") else _unnamed_file()
    os.ftruncate(handle, SIZE)
    return handle


def read_pulse(memory: mmap.mmap) -> Pulse:
    """What the worker shows now; what it is just writing may be half there, and is whole the next time."""
    beats, entered, step, phase = _LAYOUT.unpack_from(memory)
    return Pulse(beats, entered, step, PHASES[phase] if phase < len(PHASES) else "")


class Beat:
    """The worker's side."""

    def __init__(self, handle: int) -> None:
        self._memory = mmap.mmap(handle, SIZE)
        self._beats = self._entered = self._step = self._phase = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._count, name="beat", daemon=True)
        self._thread.start()

    def enter(self, phase: str, step: int | None = None) -> None:
        """The loop of steps is in another phase."""
        self._phase = PHASES.index(phase)
        self._entered += 1
        self._step = self._step if step is None else step
        self._show()

    def end(self) -> None:
        """Count no more."""
        self._ended.set()
        self._thread.join()

    def _count(self) -> None:
        while not self._ended.wait(BEAT):
            self._beats += 1
            self._show()

    def _show(self) -> None:
        _LAYOUT.pack_into(self._memory, 0, self._beats, self._entered, self._step, self._phase)


def _unnamed_file() -> int:
    import tempfile  # noqa: PLC0415 - where the system has no better way

    handle, path = tempfile.mkstemp(prefix="microkernel-beat-")
    os.unlink(path)  # noqa: PTH108 - a name that nobody is to find
    return handle
