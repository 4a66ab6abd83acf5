"""The one clock: monotonic seconds from the running loop, so that a simulated loop brings its own time."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Clock"]


class Clock:
    """Monotonic and wall time."""

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        """Monotonic seconds; deadlines are on this scale."""
        return self._loop.time()

    def wall(self) -> float:
        """Unix time in seconds: for people and for files, never for deadlines."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Let others run for `seconds`."""
        await asyncio.sleep(seconds)
