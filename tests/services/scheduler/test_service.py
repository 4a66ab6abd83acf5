"""Processes through the kernel."""

from __future__ import annotations

import asyncio
import time

import pytest

from microkernel import Message, Service, handles
from microkernel.capability import Rights
from microkernel.errors import Denied, Invalid, NotFound
from microkernel.policy import Claim, Ordered
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.scheduler.messages import Explain, Signal
from services.scheduler.policies import registry
from services.scheduler.service import Scheduler


class Begin(Message):
    owner: str


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


class Runs(Service):
    """Runs processes that it can tell about, as inference does."""

    name = "runs"
    uses = ("scheduler",)

    async def start(self) -> None:
        self.signals: list[tuple[str, int]] = []

    @handles
    async def work(self, message: Begin) -> int:
        process = await self.call("scheduler.spawn", kind="job", title="a job", owner=message.owner, due=10.0)
        return process.pid

    @handles
    async def signal(self, message: Signal) -> None:
        self.signals.append((message.signal, message.nice))

    @handles
    async def why(self, message: Explain) -> str:
        return f"waits for the bus, as number {message.pid}"

    @handles(name="signals")
    async def seen(self) -> list[tuple[str, int]]:
        return self.signals


async def test_pause_resume_and_nice_reach_the_service_that_runs_the_process():
    async with TestKernel(Scheduler, Runs) as system:
        pid = await system.call("runs.work", owner="ana")
        await system.call("scheduler.pause", pid=pid)
        await system.call("scheduler.resume", pid=pid)
        process = await system.call("scheduler.nice", pid=pid, nice=7)
        assert process.nice == 7
        assert [each.nice for each in await system.call("scheduler.list")] == [7]
        assert await system.call("runs.signals") == [("pause", 0), ("resume", 0), ("nice", 7)]


async def test_why_is_a_sentence_about_the_process_from_the_service_that_runs_it():
    async with TestKernel(Scheduler, Runs) as system:
        pid = await system.call("runs.work", owner="ana")
        assert await system.call("scheduler.why", pid=pid) == (
            f"process {pid} (job of ana) waits for the bus, as number {pid}"
        )


async def test_a_user_makes_its_own_processes_nicer_and_not_less_nice():
    async with TestKernel(Scheduler, Runs) as system:
        mine, theirs = await system.call("runs.work", owner="ana"), await system.call("runs.work", owner="bo")
        ana = system.kernel.port.narrow(caller="session s1", rights=Rights(), user="ana")
        assert (await ana.call("scheduler.nice", pid=mine, nice=5)).nice == 5
        with pytest.raises(Denied, match="less nice"):
            await ana.call("scheduler.nice", pid=mine, nice=4)
        assert (await system.call("scheduler.nice", pid=mine, nice=-20)).nice == -20
        with pytest.raises(Invalid, match="-20 to 19"):
            await system.call("scheduler.nice", pid=mine, nice=20)
        for method in ("nice", "pause", "resume", "why", "kill"):
            with pytest.raises(NotFound):
                await ana.call(f"scheduler.{method}", pid=theirs, **({"nice": 9} if method == "nice" else {}))


async def test_a_deadline_is_shown_as_what_is_left_of_it():
    async with TestKernel(Scheduler, Runs) as system:
        await system.call("runs.work", owner="ana")
        (process,) = await system.call("scheduler.list")
        assert process.due == pytest.approx(10.0 - process.age)


async def test_the_policy_of_every_device_is_the_scheduler_s_and_is_switched_while_it_runs():
    async with TestKernel(Devices, Scheduler, settings={"scheduler": {"policy": "priority"}}) as system:
        assert [device.policy for device in await system.call("devices.list")] == ["priority"]
        status = await system.call("scheduler.policy")
        assert (status.name, set(status.policies)) == ("priority", {"fair", "priority", "fifo", "deadline"})
        async with system.subscribe("scheduler.policy") as told:
            await system.call("scheduler.set_policy", name="fair")
            event = await asyncio.wait_for(anext(told), 10)
        assert (event.body["name"], event.body["before"]) == ("fair", "priority")
        assert [device.policy for device in await system.call("devices.list")] == ["fair"]
        with pytest.raises(NotFound, match="policies: fair"):
            await system.call("scheduler.set_policy", name="lottery")


async def test_weights_are_set_while_it_runs_and_shares_are_shown_to_whom_they_concern():
    async with TestKernel(Devices, Scheduler, settings={"scheduler": {"weights": {"ana": 2.0}}}) as system:
        await system.call("scheduler.set_weight", owner="bo", weight=3.0)
        await system.call("scheduler.set_weight", owner="ana", weight=None)
        executor = system.kernel.executors.get("cpu0")
        for owner in ("ana", "bo"):
            await executor.run(time.sleep, 0.002, claim=Claim(owner=owner))
        status = await system.call("scheduler.policy")
        assert status.weights == {"bo": 3.0}
        assert {"ana", "bo"} <= {share.owner for share in status.shares}
        ana = system.kernel.port.narrow(caller="session s1", rights=Rights(), user="ana")
        assert {share.owner for share in (await ana.call("scheduler.policy")).shares} == {"ana"}
        for call, fields in (("set_policy", {"name": "fifo"}), ("set_weight", {"owner": "ana", "weight": 9.0})):
            with pytest.raises(Denied, match="only root"):
                await ana.call(f"scheduler.{call}", **fields)
        with pytest.raises(Invalid, match="more than 0"):
            await system.call("scheduler.set_weight", owner="ana", weight=0.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"policy": "lottery"}, "no policy 'lottery'"), ({"aging": 0.0}, "aging"), ({"weights": {"ana": -1.0}}, "weight")],
)
async def test_settings_that_are_wrong_are_named_at_the_start(settings, told):
    async with TestKernel(Scheduler, settings={"scheduler": settings}) as system:
        whys = {service.name: service.why for service in await system.call("kernel.services")}
        assert told in whys["scheduler"]


async def test_policies_of_plugins_are_there_by_name_and_broken_ones_are_named(monkeypatch):
    class Point:
        def __init__(self, name: str, found: object) -> None:
            self.name, self._found = name, found

        def load(self) -> object:
            return self._found

    class Backwards(Ordered):
        name = "backwards"

        def key(self, claim: Claim) -> float:
            return -claim.came

    class Nameless(Ordered):
        def key(self, claim: Claim) -> float:
            return 0.0

    points = [Point("good", Backwards), Point("nameless", Nameless), Point("none", 5)]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points if group == "microkernel.policies" else [])
    policies = registry.Policies({}, aging=1.0)
    policies.discover()
    assert policies.make("backwards").name == "backwards"
    assert set(policies.broken) == {"nameless", "none"}
