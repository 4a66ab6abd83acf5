"""Processes through the kernel."""

from __future__ import annotations

import asyncio

import pytest

from microkernel import Service, handles
from microkernel.errors import NotFound
from microkernel.testing import TestKernel
from services.scheduler.messages import Signal
from services.scheduler.service import Scheduler


class Worker(Service):
    """Runs processes, as inference does."""

    name = "worker"
    uses = ("scheduler",)

    async def start(self) -> None:
        self.signals: list[Signal] = []

    @handles
    async def work(self) -> int:
        process = await self.call("scheduler.spawn", service="worker", kind="job", title="a job", owner="ana")
        return process.pid

    @handles
    async def signal(self, message: Signal) -> None:
        self.signals.append(message)

    @handles(name="signals")
    async def seen(self) -> list[Signal]:
        return self.signals

    @handles
    async def crash(self) -> None:
        async def crash() -> None:
            raise OSError("gone")

        self.spawn(crash(), name="crash")


async def test_a_kill_reaches_the_service_that_runs_the_process():
    async with TestKernel(Scheduler, Worker) as system:
        pid = await system.call("worker.work")
        await system.call("scheduler.kill", pid=pid, why="too slow")
        assert await system.call("worker.signals") == [Signal(pid=pid, signal="kill", why="too slow")]
        with pytest.raises(NotFound):
            await system.call("scheduler.kill", pid=pid + 1)


async def test_the_processes_of_a_crashed_service_have_failed_and_say_why():
    async with TestKernel(Scheduler, Worker) as system:
        pid = await system.call("worker.work")
        async with system.subscribe("process.ended") as ends:
            await system.call("worker.crash")
            end = (await asyncio.wait_for(anext(ends), 10)).body
        assert (end.pid, end.state) == (pid, "failed")
        assert "restarting" in end.why
        assert await system.call("scheduler.list") == []
