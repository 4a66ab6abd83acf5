"""The lowest priority there is for a process, and an end for it when its parent dies."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from types import FrameType

__all__ = ["LINGER", "end_after", "run_last"]

LINGER = 120
"""Seconds in which a writer may finish what it has when its trainer has died: what is in its memory is not lost."""

PR_SET_PDEATHSIG = 1  # prctl(2)
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # the number of ioprio_set(2), for which libc has no function
IOPRIO_WHO_PROCESS = 1
IOPRIO_IDLE = 3 << 13


def run_last() -> None:
    """Have this process computed only where a core has nothing else to do, and its requests served last.

    Under SCHED_IDLE (sched(7)) it gets 3 of 1027 parts of a core beside one other process, and whoever wakes takes the
    core from it at once. Where the system has or allows less, it is done as far as that.
    """
    os.nice(19)
    if sys.platform != "linux":
        return
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE)


def end_after(parent: int) -> None:
    """Have this process killed `LINGER` seconds after `parent`'s death, if it has not ended by itself by then.

    The system's signal comes also when only the thread ended that started this process: then nothing happens.
    """

    def orphaned(_signal: int, _frame: FrameType | None) -> None:
        if os.getppid() != parent:
            signal.alarm(LINGER)  # SIGALRM, which nobody catches

    signal.signal(signal.SIGTERM, orphaned)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        signal.alarm(LINGER)
