"""Processes through the kernel."""

from __future__ import annotations

import asyncio

import pytest

from microkernel import Service, handles
from microkernel.capability import Rights
from microkernel.errors import Denied, NotFound
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
        process = await self.call("scheduler.spawn", kind="job", title="a job", owner="ana")
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


async def test_only_services_enter_processes_and_only_their_own_end_them():
    async with TestKernel(Scheduler, Worker) as system:
        pid = await system.call("worker.work")
        client = system.kernel.port.narrow(caller="session s1", rights=Rights(), user="root")
        for to, fields in [
            ("scheduler.spawn", {"kind": "job", "title": "forged"}),
            ("scheduler.exit", {"progress": {"pid": pid, "state": "done"}}),
            ("scheduler.report", {"entries": []}),
        ]:
            with pytest.raises(Denied):
                await client.call(to, **fields)
        await system.call("scheduler.exit", progress={"pid": pid, "state": "done"})
        assert [process.pid for process in await system.call("scheduler.list")] == [pid], "the kernel does not run it"


async def test_users_see_and_end_their_own_processes_and_root_all():
    async with TestKernel(Scheduler, Worker) as system:
        pid = await system.call("worker.work")
        ports = {
            user: system.kernel.port.narrow(caller=f"session {user}", rights=Rights(), user=user)
            for user in ("ana", "eve", "root")
        }
        seen = {user: [process.pid for process in await port.call("scheduler.list")] for user, port in ports.items()}
        assert seen == {"ana": [pid], "eve": [], "root": [pid]}
        with pytest.raises(NotFound):
            await ports["eve"].call("scheduler.kill", pid=pid)
        await ports["ana"].call("scheduler.kill", pid=pid)
