"""What a plugin computes, as processes of the node's table: shown, explained, paused, made nicer, ended."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from plug import Plug

from microkernel import Message, handles
from microkernel.capability import Rights
from microkernel.errors import CallCancelled, Denied, Invalid, NotFound
from microkernel.processes import ProcessService
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.scheduler.service import Scheduler


class Ask(Message, kw_only=True):
    title: str = "sums"
    quanta: int = 1
    nice: int = 0


class Sums(ProcessService):
    """Computes in quanta, each of which waits for a permit."""

    name = "sums"
    needs = ("devices",)
    uses = ("scheduler",)

    async def start(self) -> None:
        self.permits = threading.Semaphore(0)
        self.begun: list[str] = []
        self.closed: list[str] = []

    @handles(deadline=None)
    async def add(self, message: Ask) -> int:
        """As many quanta as are asked for."""
        async with self.process(message.title, nice=message.nice) as process:
            return await process.run("cpu0", self.quanta, message)

    @handles(deadline=None)
    async def fail(self) -> None:
        """Raises within its process."""
        async with self.process("bad luck"):
            raise Invalid("there is no seven")

    def quanta(self, message: Ask):
        try:
            for number in range(message.quanta):
                self.begun.append(message.title)
                assert self.permits.acquire(timeout=30)
                if number < message.quanta - 1:
                    yield
            return message.quanta
        finally:
            self.closed.append(threading.current_thread().name)


def node():
    return TestKernel(Devices, Scheduler, Sums)


def service_of(system) -> Sums:
    return system.kernel._slots["sums"].instance.service


async def process_of(system, title: str = "sums"):
    async with asyncio.timeout(30):
        while True:
            for process in await system.call("scheduler.list"):
                if process.title == title:
                    return process
            await asyncio.sleep(0.005)


async def ended(system, title: str = "sums"):
    (process,) = [each for each in await system.call("scheduler.list", ended=True) if each.title == title]
    return process


async def until(true) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


async def test_work_is_a_process_while_it_runs_and_in_the_history_afterwards():
    async with node() as system:
        sums = service_of(system)
        adding = asyncio.create_task(system.call("sums.add", quanta=3, nice=4))
        process = await process_of(system)
        assert (process.service, process.kind, process.process_class, process.nice) == ("sums", "job", "batch", 4)
        sums.permits.release(3)
        assert await adding == 3
        over = await ended(system)
        assert (over.pid, over.state) == (process.pid, "done")
        assert over.device_seconds > 0.0


async def test_one_that_is_killed_ends_its_call_and_cleans_up_on_its_thread():
    async with node() as system:
        sums = service_of(system)
        adding = asyncio.create_task(system.call("sums.add", quanta=100))
        process = await process_of(system)
        await until(lambda: sums.begun)
        await system.call("scheduler.kill", pid=process.pid, why="enough")
        with pytest.raises(CallCancelled, match="enough"):
            await adding
        assert sums.closed == [], "nobody waits for the quantum that runs"
        sums.permits.release(100)
        await until(lambda: sums.closed)
        assert sums.closed == ["cpu0.0"]
        assert len(sums.begun) < 100
        assert (await ended(system)).state == "killed"


async def test_one_that_rests_computes_nothing_until_it_goes_on():
    async with node() as system:
        sums = service_of(system)
        adding = asyncio.create_task(system.call("sums.add", quanta=5))
        process = await process_of(system)
        sums.permits.release(2)
        await until(lambda: len(sums.begun) == 3)
        await system.call("scheduler.pause", pid=process.pid)
        sums.permits.release(1)
        await asyncio.sleep(0.05)
        assert len(sums.begun) == 3
        assert (await process_of(system)).state == "paused"
        assert "is paused, until it is resumed" in await system.call("scheduler.why", pid=process.pid)
        await system.call("scheduler.resume", pid=process.pid)
        sums.permits.release(2)
        assert await adding == 5


async def test_one_that_is_killed_while_it_rests_cleans_up_too():
    async with node() as system:
        sums = service_of(system)
        adding = asyncio.create_task(system.call("sums.add", quanta=5))
        process = await process_of(system)
        await until(lambda: sums.begun)
        await system.call("scheduler.pause", pid=process.pid)
        sums.permits.release(1)
        await asyncio.sleep(0.05)
        await system.call("scheduler.kill", pid=process.pid)
        with pytest.raises(CallCancelled):
            await adding
        assert sums.closed == ["cpu0.0"]


async def test_one_that_is_killed_twice_ends_as_it_was_going_to():
    async with node() as system:
        sums, plug = service_of(system), Plug()
        adding = asyncio.create_task(system.call("sums.add", quanta=5))
        process = await process_of(system)
        await until(lambda: sums.begun)
        await system.call("scheduler.pause", pid=process.pid)
        sums.permits.release(1)
        await asyncio.sleep(0.05)
        busy = asyncio.create_task(system.kernel.executors.get("cpu0").run(plug))
        await plug.begun()
        await system.call("scheduler.kill", pid=process.pid, why="once")
        await asyncio.sleep(0.02)
        await system.call("scheduler.kill", pid=process.pid, why="twice")
        plug.pulled.set()
        with pytest.raises(CallCancelled, match="once"):
            await adding
        await busy


async def test_one_that_rests_and_is_killed_at_one_moment_cleans_up_on_its_thread():
    async with node() as system:
        sums = service_of(system)
        adding = asyncio.create_task(system.call("sums.add", quanta=5))
        await process_of(system)
        await until(lambda: sums.begun)
        (own,) = sums._processes()
        own.pause()
        sums.permits.release(1)
        time.sleep(0.05)  # noqa: ASYNC251 - the loop is late: it hears of the end of the quantum when it is killed
        own.kill("enough")
        with pytest.raises(CallCancelled):
            await adding
        await until(lambda: sums.closed)
        assert sums.closed == ["cpu0.0"]


async def test_its_user_makes_it_nicer_by_any_way_and_never_less_nice():
    async with node() as system:
        ann = system.kernel.port.narrow(caller="session ann", rights=Rights(), user="ann")
        adding = asyncio.create_task(ann.call("sums.add"))
        process = await process_of(system)
        for to in ("scheduler.nice", "sums.signal"):
            for nice in (-1, -5000, 20):
                with pytest.raises((Denied, Invalid)):
                    await ann.call(to, pid=process.pid, nice=nice, **({} if "nice" in to else {"signal": "nice"}))
        await ann.call("sums.signal", pid=process.pid, signal="nice", nice=3)
        await system.call("sums.signal", pid=process.pid, signal="nice", nice=-20)
        service_of(system).permits.release(1)
        await adding


async def test_one_that_becomes_nicer_has_its_next_quantum_after_others():
    async with node() as system:
        sums = service_of(system)
        first = asyncio.create_task(system.call("sums.add", title="first", quanta=3))
        await until(lambda: sums.begun == ["first"])
        second = asyncio.create_task(system.call("sums.add", title="second", quanta=3, nice=1))
        nicer = await process_of(system, "first")
        await process_of(system, "second")
        await system.call("scheduler.set_policy", name="priority")
        await system.call("scheduler.nice", pid=nicer.pid, nice=19)
        sums.permits.release(6)
        await asyncio.gather(first, second)
        assert sums.begun == ["first", *["second"] * 3, "first", "first"]


async def test_one_that_waits_for_the_device_says_behind_whom():
    async with node() as system:
        plug = Plug()
        busy = asyncio.create_task(system.kernel.executors.get("cpu0").run(plug))
        await plug.begun()
        adding = asyncio.create_task(system.call("sums.add"))
        process = await process_of(system)
        await asyncio.sleep(0.02)
        assert "waits for cpu0" in await system.call("scheduler.why", pid=process.pid)
        plug.pulled.set()
        service_of(system).permits.release(1)
        await asyncio.gather(busy, adding)


async def test_one_that_fails_says_why_in_the_table():
    async with node() as system:
        with pytest.raises(Invalid):
            await system.call("sums.fail")
        over = await ended(system, "bad luck")
        assert over.state == "failed"
        assert "there is no seven" in over.why


async def test_it_is_its_callers_and_no_other_user_touches_it():
    async with node() as system:
        ann, bob = (
            system.kernel.port.narrow(caller=f"session {user}", rights=Rights(), user=user) for user in ("ann", "bob")
        )
        adding = asyncio.create_task(ann.call("sums.add"))
        process = await process_of(system)
        assert process.owner == "ann"
        with pytest.raises((NotFound, Denied)):
            await bob.call("scheduler.kill", pid=process.pid)
        with pytest.raises((NotFound, Denied)):
            await bob.call("sums.signal", pid=process.pid, signal="kill")
        await ann.call("scheduler.kill", pid=process.pid)
        with pytest.raises(CallCancelled):
            await adding
        service_of(system).permits.release(1)


async def test_a_scheduler_that_comes_back_has_it_under_its_pid():
    async with node() as system:
        adding = asyncio.create_task(system.call("sums.add"))
        process = await process_of(system)
        await system.restart("scheduler")
        assert (await process_of(system)).pid == process.pid
        service_of(system).permits.release(1)
        await adding


async def test_without_a_scheduler_the_work_is_done_all_the_same():
    async with TestKernel(Devices, Sums) as system:
        service_of(system).permits.release(4)
        assert await asyncio.gather(*(system.call("sums.add", quanta=2) for _ in range(2))) == [2, 2]


def test_a_service_that_does_not_use_the_scheduler_is_told_so():
    with pytest.raises(Invalid, match="does not use the scheduler"):

        class Lonely(ProcessService):
            name = "lonely"
            uses = ()
