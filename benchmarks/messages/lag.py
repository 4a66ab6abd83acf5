"""How late a loop is: a timer that is set again and again, and by how much it comes too late."""

from __future__ import annotations

import asyncio
import threading
import time

from benchmarks.messages.stopwatch import P99, percentile

__all__ = ["Hog", "Lag"]

BEAT = 0.005  # seconds; uvloop's timers have a grain of 1 ms, so that much lateness is nobody's fault


class Lag:
    """Measures the loop that it is started on, from `begin` to `end`."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start anew."""
        self._late = []
        self._task = asyncio.create_task(self._beat())

    async def end(self) -> dict[str, float]:
        """Seconds of lateness: `p99` and `max`."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        ordered = sorted(self._late) or [0.0]
        return {"p99": percentile(ordered, P99), "max": ordered[-1]}

    async def _beat(self) -> None:
        while True:
            due = time.perf_counter() + BEAT
            await asyncio.sleep(BEAT)
            self._late.append(max(0.0, time.perf_counter() - due))


class Hog:
    """A thread that computes in pure Python and never waits: it takes the interpreter whenever it is offered."""

    def __init__(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._compute, name="hog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stopping = True
        self._thread.join()

    def _compute(self) -> None:
        number = 0
        while not self._stopping:
            number = (number * 31 + 7) % 1_000_003
