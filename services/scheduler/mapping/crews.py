"""Who does the tasks of a map: threads of a device's cores, or processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from microkernel.errors import MicrokernelError, Unavailable
from microkernel.executor import Executor
from microkernel.message import convert
from microkernel.policy import Claim
from microkernel.service import Service
from services.scheduler.mapping.work import Outcome, do
from services.scheduler.messages import RunTasks

__all__ = ["Crew", "Processes", "Threads", "WorkerLost"]


class WorkerLost(MicrokernelError):
    """A worker is gone, and the task with it; the message says how."""


class Crew(Protocol):
    """Some workers."""

    @property
    def size(self) -> int:
        """How many workers there are; each runs one task at a time."""
        ...

    async def run(self, batch: RunTasks, claim: Claim) -> list[Outcome]:
        """Have one of them do some tasks, or as many of the first as there is time for.

        Raises `WorkerLost`, or `Overloaded` where all have enough to do.
        """
        ...


class Threads:
    """The threads of a device that have one core each; they take turns with what else the device computes."""

    def __init__(self, find: Callable[[], Executor | None]) -> None:
        """`find` gives the executor as it is now: it is another one once the devices were found anew."""
        self._find = find
        executor = find()
        self._size = 1 if executor is None else max(1, executor.core_threads)

    @property
    def size(self) -> int:
        return self._size

    async def run(self, batch: RunTasks, claim: Claim) -> list[Outcome]:
        executor = self._find()
        if executor is None:
            raise Unavailable("no device has threads for single cores", retry_after=1.0, may_have_run=False)
        return await executor.run(do, batch, claim=claim, one_core=True)


class Processes:
    """The processes of the service `worker`."""

    def __init__(self, service: Service, size: int) -> None:
        self._service = service
        self._size = size
        self._reviving = False

    @property
    def size(self) -> int:
        return self._size

    async def run(self, batch: RunTasks, claim: Claim) -> list[Outcome]:  # noqa: ARG002 - the system's scheduler decides
        try:
            return [convert(each, Outcome) for each in await self._service.call("worker.run", batch)]
        except Unavailable as error:
            if error.may_have_run is False:
                await self._revive()
                raise
            raise WorkerLost(error.causes[0] if error.causes else error.message) from error

    async def _revive(self) -> None:
        """A task that kills its process again and again has the service given up: for a map that is no reason to be."""
        for service in await self._service.call("kernel.services"):
            if service.name == "worker" and service.state == "quarantined" and not self._reviving:
                self._reviving = True
                try:
                    await self._service.call("kernel.restart", name="worker")
                finally:
                    self._reviving = False
