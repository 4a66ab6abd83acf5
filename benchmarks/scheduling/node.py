"""Ours: a node with a scheduler, on which maps are run from inside of its process."""

from __future__ import annotations

from typing import Any, Literal

from benchmarks.scheduling import items
from microkernel.config import Config
from microkernel.cores import available_cores
from microkernel.executor import Executor
from microkernel.service import Service
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.scheduler.messages import Map, Range
from services.scheduler.service import Scheduler

__all__ = ["DEVICE", "MapNode", "Where", "map_of"]

DEVICE = "cpu0"
SETTINGS = {"devices": {"tune_after": 0.0}}  # nothing tunes itself while it is another one's turn to be measured

Where = Literal["threads", "processes"]


class MapNode:
    """As many workers as this machine has cores, or as many as a subclass says.

    More than there are cores are of use where items rest and do not compute: then a machine of two cores shows how work
    is spread over eight workers.
    """

    threads: int | None = None
    processes: int | None = None

    async def start(self) -> None:
        """Boot."""
        services: list[type[Service]] = [Scheduler] if self.threads is not None else [Devices, Scheduler]
        instances = {}
        if self.processes is not None:
            instances["worker"] = self.processes
        settings = SETTINGS if Devices in services else {}
        self.system = TestKernel(*services, config=Config(instances=instances), settings=settings)
        await self.system.__aenter__()
        if self.threads is None:
            await self.system.call("devices.list")  # it answers when all are there
        else:
            await self.equip(self.threads)

    async def stop(self) -> None:
        """Shut down."""
        await self.system.__aexit__(None, None, None)

    async def equip(self, threads: int) -> Executor:
        """Have a device with so many threads for work that takes one core, in place of the one there was."""
        executors = self.system.kernel.executors
        await executors.remove(DEVICE)
        executor = self.executor(threads)
        await executors.add(executor)
        await self.system.call("scheduler.set_policy", name="fair")  # of all devices there are
        return executor

    def executor(self, threads: int) -> Executor:
        """The device's threads."""
        return Executor(DEVICE, cores=threads)

    async def map(self, function: str, what: list[Any] | Range, **fields: Any) -> Any:
        """All values of a function of `items`."""
        return await self.system.call("scheduler.map", map_of(function, what, **fields))

    async def pids(self) -> list[int]:
        """Of all worker processes, once each has had something to do."""
        count = self.processes or available_cores()
        found: set[int] = set()
        for _ in range(20):
            some = list(range(4 * count))
            found |= set(await self.map("pid", some, tasks=len(some), workers="processes", arguments={"seconds": 0.05}))
            if len(found) >= count:
                return sorted(found)
        raise RuntimeError(f"only {len(found)} of {count} workers did anything")


def map_of(function: str, what: list[Any] | Range, **fields: Any) -> Map:
    """The message that asks for a map of a function of `items`."""
    return Map(function=f"{items.HERE}:{function}", items=what, **fields)
