"""What differs from run to run, taken from a seed: chance, secrets, the clocks, and when garbage is collected.

A program reads more than its loop's clock: the kernel draws names of sessions, services measure time and sleep. During
a simulation the sources themselves are replaced (`random`'s own generator, `os.urandom`, the readings of `time`), so
that no program has to be written for it. Out of reach: names that a module has imported before (`from time import
monotonic`), and the order of a set of objects, which is that of their addresses: where it matters, use a dict.

Threads that were there before go on with the machine's own: their sleeps are none of the simulation's time.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from microkernel.testing.loop import SimulatedLoop

__all__ = ["Complaints", "replayable"]


class Complaints(logging.Handler):
    """What was said while nobody could raise it: warnings, errors in finalisers, lines of the log."""

    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self.serious: list[str] = []
        self.lines: list[str] = []
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line of the log. An error that aiohttp has caught is a defect: no handler of ours may raise there."""
        if record.name.startswith("aiohttp") and record.exc_info is not None:
            self.serious.append(f"{record.getMessage()}: {record.exc_info[1]!r}")
        self.lines.append(f"{self._loop.time():10.4f} {record.levelname.lower()} {record.getMessage()}")

    def warned(self, message: Warning | str, category: type[Warning], *_: Any) -> None:
        """Take the place of `warnings.showwarning`."""
        self.serious.append(f"{category.__name__}: {message}")

    def unraisable(self, event: Any) -> None:
        """Take the place of `sys.unraisablehook`."""
        self.serious.append(f"{event.err_msg or 'ignored'}: {event.exc_value!r}")


@contextmanager
def replayable(seed: int, loop: SimulatedLoop, complaints: Complaints) -> Iterator[None]:
    """Let everything in the block come out the same for the same seed; one block at a time in a process.

    What is said in it goes to `complaints`.
    """
    chance = random.Random(f"{seed} secrets")  # noqa: S311 - a simulation's, no secret
    state = random.getstate()
    draw = _on_this_thread(chance.random, lambda: int.from_bytes(os.urandom(16)))

    class Seeded(random.Random):
        """A generator that is given no seed gets one."""

        def __init__(self, x: Any = None) -> None:
            super().__init__(draw() if x is None else x)

    with ExitStack() as stack:
        stack.callback(random.setstate, state)
        random.seed(f"{seed} chance")
        stack.enter_context(patch.object(random, "Random", Seeded))
        stack.enter_context(patch.object(sys, "unraisablehook", complaints.unraisable))
        for module, name, value in (
            (os, "urandom", chance.randbytes),
            (random, "_urandom", chance.randbytes),  # what `secrets` and `SystemRandom` draw from
            (time, "time", loop.wall),
            (time, "time_ns", lambda: int(loop.wall() * 1e9)),
            (time, "monotonic", loop.time),
            (time, "monotonic_ns", lambda: int(loop.time() * 1e9)),
            (time, "perf_counter", loop.time),
            (time, "perf_counter_ns", lambda: int(loop.time() * 1e9)),
            (time, "sleep", loop.block),
        ):
            replaced = _on_this_thread(value, getattr(module, name))
            stack.enter_context(patch.object(module, name, replaced))
        for name in ("microkernel", "aiohttp"):
            stack.enter_context(_log_to(complaints, name))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        warnings.showwarning = complaints.warned  # type: ignore[assignment] # its signature has options nobody uses
        with _garbage_kept():
            yield


def _on_this_thread(simulated: Callable[..., Any], real: Callable[..., Any]) -> Callable[..., Any]:
    """`simulated` for who calls it on the thread that runs now, `real` for all others."""
    mine, running = threading.get_ident(), threading.get_ident

    def either(*args: Any) -> Any:
        return simulated(*args) if running() == mine else real(*args)

    return either


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """No collection but one at the end: finalisers run at the same moment in every run.

    What there was before is left out of it, which makes it quick.
    """
    was_on = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
        gc.collect()
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


@contextmanager
def _log_to(complaints: Complaints, name: str) -> Iterator[None]:
    """Take a log: a crash that was wished for is no news to whoever runs the tests."""
    log = logging.getLogger(name)
    handlers, propagate, level = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [complaints], False
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
