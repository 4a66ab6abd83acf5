"""Runs tasks in processes of their own: what a task does to its process, it does to nobody else.

It is started when the first map asks for processes, one for each core, and is a service like any other: a process that
dies is replaced, and the call that it had ends with the cause.
"""

from __future__ import annotations

import os

from microkernel.balance import Balance
from microkernel.cores import available_cores
from microkernel.executor import Executor
from microkernel.isolation.guest import OwnExecutors
from microkernel.service import Isolation, Placement, Service, handles
from services.scheduler.mapping.work import Outcome, do
from services.scheduler.messages import RunTasks

__all__ = ["Worker"]

NICE = 10  # of a process of its own: the node, and what it computes for people, goes first


class Worker(Service):
    """One process that runs one task at a time."""

    name = "worker"
    placement = Placement.NODE
    isolation = Isolation.PROCESS
    instances = available_cores()
    balance = Balance.LEAST_BUSY

    async def start(self) -> None:
        if isinstance(self.executors, OwnExecutors):
            os.nice(NICE)
        self._executor = Executor("worker")
        await self._executor.start()

    async def stop(self) -> None:
        await self._executor.stop(timeout=0.2)

    @handles(concurrency=1, queue=64, deadline=None)
    async def run(self, message: RunTasks) -> list[Outcome]:
        """Call a function with each item of some tasks, as many of them as there is time for."""
        return await self._executor.run(do, message)
