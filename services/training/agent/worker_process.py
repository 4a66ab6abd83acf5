"""A worker as its agent sees it: a process, the line to it, and what it shows of itself."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Callable
from typing import Any

from microkernel.errors import DataLoss
from services.training.agent.forks import Forked, Forks
from services.training.agent.line import Line
from services.training.agent.liveness import Liveness
from services.training.beat import SIZE, Pulse, read_pulse, shared_memory
from services.training.orders import Order, Report

__all__ = ["WorkerProcess", "first_of", "line_to"]

Heard = Callable[["WorkerProcess", Report], None]
Defect = Callable[["WorkerProcess", DataLoss], None]


class WorkerProcess:
    """One worker. `generation` is that of the last group that it has formed with others, 0 for none."""

    def __init__(self, number: int, forked: Forked, line: Line, memory: mmap.mmap, now: float) -> None:
        self.number = number  # of all that the job ever had
        self.forked = forked
        self.generation = 0
        self.liveness = Liveness(now)
        self._line = line
        self._memory = memory

    @classmethod
    async def fork(cls, forks: Forks, number: int, now: float, heard: Heard, defect: Defect) -> WorkerProcess:
        """Have one forked of a template. Raises `Unavailable` where that has gone."""
        ours, theirs = socket.socketpair()
        handle = shared_memory()
        try:
            memory = mmap.mmap(handle, SIZE)
            with theirs:
                forked = await forks.fork([theirs.fileno(), handle])
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(handle)
        made: list[WorkerProcess] = []
        line = Line(ours, lambda report: heard(made[0], report), lambda error: defect(made[0], error))
        made.append(cls(number, forked, line, memory, now))
        return made[0]

    @property
    def pulse(self) -> Pulse:
        """What it shows now."""
        return read_pulse(self._memory)

    def tell(self, order: Order) -> None:
        """Give it an order."""
        self._line.tell(order)

    def close(self) -> None:
        """Let go of it; it ends once it notices."""
        self._line.close()


def line_to(heard: Callable[[Report], None], defect: Callable[[DataLoss], None]) -> tuple[Line, socket.socket]:
    """A line to a process that is yet to be forked, and the end that it is to have; that is to be closed here."""
    ours, theirs = socket.socketpair()
    return Line(ours, heard, defect), theirs


async def first_of(*waited: asyncio.Future[Any]) -> None:
    """Return when one of them is done."""
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
