"""The lives of services when things go wrong at the worst moment: in start, in ready, between two restarts, at last."""

from __future__ import annotations

import asyncio
import sys

import pytest

from microkernel import Service, every, handles, on
from microkernel.config import Config, Supervision
from microkernel.errors import AlreadyExists, Denied, Internal, Invalid, PreconditionFailed, Unavailable
from microkernel.kernel import Kernel
from microkernel.plugins import Plugin, load_file
from microkernel.supervisor import Strategy
from microkernel.testing import TestKernel


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Restarts come soon, and tasks that do not end are left soon."""
    monkeypatch.setattr("microkernel.supervisor.FIRST_DELAY", 0.01)
    monkeypatch.setattr("microkernel.nursery.ROUND", 0.05)


class Echo(Service):
    name = "echo"

    @handles
    async def say(self) -> str:
        return "here"


def supervised(**options):
    return Config(supervision=Supervision(**options))


def kernel_of(tmp_path, *kinds):
    return Kernel(Config(), tmp_path, [Plugin(kind.name, "test", kind=kind) for kind in kinds])


async def cancelled_by_nobody():
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def states(system, name, *, until):
    """The states that `name` goes through, as they are published."""
    seen = []
    async with system.subscribe(f"service.{name}.*") as changes, asyncio.timeout(20):
        async for change in changes:
            seen.append(change.body["state"])
            if seen[-1] in until:
                return seen
    return seen


# What raises other things than errors


@pytest.mark.parametrize("end", [cancelled_by_nobody, lambda: sys.exit(3)], ids=["CancelledError", "SystemExit"])
async def test_a_start_that_ends_in_an_odd_way_is_a_failed_start_and_the_boot_goes_on(end):
    class Odd(Service):
        name = "odd"
        restart_policy = "temporary"

        async def start(self) -> None:
            await end()

    async with TestKernel(Odd, Echo) as system:
        assert system.state("odd") == "stopped"
        assert await system.call("echo.say") == "here"


async def test_a_service_whose_making_calls_sys_exit_does_not_end_the_node():
    class Exits(Service):
        name = "exits"
        restart_policy = "temporary"

        def __init__(self) -> None:
            sys.exit(3)

    async with TestKernel(Exits, Echo) as system:
        assert system.state("exits") == "stopped"
        [why] = [status.why for status in await system.call("kernel.services") if status.name == "exits"]
        assert "sys.exit(3)" in why


async def test_a_ready_that_is_cancelled_by_nobody_ends_the_boot_of_an_essential_service():
    class Essential(Service):
        name = "essential"
        essential = True

        async def ready(self) -> None:
            await cancelled_by_nobody()

    with pytest.raises(Internal, match="was cancelled"):
        async with TestKernel(Essential):
            raise AssertionError("it must not come up")


async def test_an_event_whose_handling_is_cancelled_by_nobody_is_not_the_last_one():
    class Listener(Service):
        name = "listener"

        async def start(self) -> None:
            self.seen = 0

        @on("go")
        async def go(self, _event) -> None:
            self.seen += 1
            await cancelled_by_nobody()

    async with TestKernel(Listener) as system, asyncio.timeout(10):
        for _ in range(3):
            system.publish("go")
        while system.kernel.instance("listener").service.seen < 3:
            await asyncio.sleep(0.001)
        assert system.state("listener") == "ready"


@pytest.mark.parametrize("end", [cancelled_by_nobody, lambda: sys.exit(3)], ids=["CancelledError", "SystemExit"])
async def test_a_timer_that_ends_in_an_odd_way_is_a_crash(end):
    class Ticking(Service):
        name = "ticking"
        restart_policy = "temporary"

        @every(0.001)
        async def tick(self) -> None:
            await end()

    async with TestKernel(Ticking, wait_ready=False) as system, asyncio.timeout(10):
        await system.until("ticking", "stopped")


# Start


async def test_a_task_that_crashes_while_its_service_starts_is_a_failed_start():
    class Hasty(Service):
        name = "hasty"
        restart_policy = "temporary"

        async def start(self) -> None:
            task = self.spawn(self._work(), name="work")
            await asyncio.wait([task])

        async def _work(self) -> None:
            raise ValueError("the worker is dead")

    async with TestKernel(Hasty) as system:
        with pytest.raises(Unavailable, match=r"stopped.*the worker is dead"):
            await system.call("hasty.anything")


async def test_a_timeout_of_the_services_own_is_not_taken_for_the_limit_of_its_start():
    class Impatient(Service):
        name = "impatient"
        restart_policy = "temporary"

        async def start(self) -> None:
            raise TimeoutError("the database did not answer")

    async with TestKernel(Impatient) as system:
        with pytest.raises(Unavailable, match="the database did not answer"):
            await system.call("impatient.anything")


async def test_what_a_failed_start_has_begun_is_ended(monkeypatch):
    events = []

    class HalfWay(Service):
        name = "halfway"

        async def start(self) -> None:
            self.spawn(self._work(), name="work")
            await asyncio.sleep(0.01)

        async def stop(self) -> None:
            events.append("stopped")

        async def _work(self) -> None:
            events.append("works")
            try:
                await asyncio.sleep(3600)
            finally:
                events.append("ended")

        @on("go")
        async def go(self, event) -> None: ...

    def subscribe(*_, **__):
        raise Invalid("there is no room for a subscription")

    async with TestKernel() as system:
        monkeypatch.setattr(system.kernel.router.bus, "subscribe", subscribe)
        with pytest.raises(Invalid, match="no room for a subscription"):
            await system.kernel.add(Plugin("halfway", "test", kind=HalfWay))
    assert events == ["works", "ended", "stopped"]


@pytest.mark.parametrize("strategy", list(Strategy))
async def test_a_service_waits_for_a_need_that_fails_once_and_comes(strategy):
    class Flaps(Service):
        name = "a"
        starts = 0

        async def start(self) -> None:
            Flaps.starts += 1
            if Flaps.starts == 1:
                raise OSError("the port is busy")

    class Needs(Service):
        name = "b"
        needs = ("a",)

    async with TestKernel(Flaps, Needs, config=supervised(strategy=strategy), wait_ready=False) as system:
        async with asyncio.timeout(10):
            await system.until("b", "ready")
        assert system.state("a") == "ready"


async def test_a_service_whose_need_will_not_come_is_told_so_and_comes_with_it_when_it_is_restarted():
    class Doomed(Service):
        name = "a"
        dead = True

        async def start(self) -> None:
            if Doomed.dead:
                raise OSError("the port is busy")

    class Needs(Service):
        name = "b"
        needs = ("a",)

    async with TestKernel(Doomed, Needs, wait_ready=False) as system, asyncio.timeout(20):
        await system.until("a", "quarantined")
        await system.until("b", "quarantined")
        with pytest.raises(PreconditionFailed, match="needs 'a', which is quarantined"):
            await system.restart("b")
        Doomed.dead = False
        await system.restart("a")
        await system.until("b", "ready")


async def test_an_essential_service_that_waits_for_its_need_holds_up_the_boot():
    class Flaps(Service):
        name = "a"
        starts = 0

        async def start(self) -> None:
            Flaps.starts += 1
            if Flaps.starts == 1:
                raise OSError("the port is busy")

    class Essential(Service):
        name = "b"
        needs = ("a",)
        essential = True

    async with TestKernel(Flaps, Essential) as system:
        assert system.state("b") == "ready"


# Crash and restart


async def test_four_tasks_that_fail_of_one_cause_are_one_crash():
    class Four(Service):
        name = "four"

        async def start(self) -> None:
            if self.incarnation == 1:
                for number in range(4):
                    self.spawn(self._work(), name=f"work {number}")

        async def _work(self) -> None:
            await asyncio.sleep(0.01)
            raise ValueError("the line is down")

    async with TestKernel(Four, wait_ready=False) as system, asyncio.timeout(10):
        seen = await states(system, "four", until={"draining"})
        seen += await states(system, "four", until={"ready", "quarantined"})
        assert "quarantined" not in seen
        assert (await system.call("kernel.services"))[1].incarnation == 2


async def test_a_quarantine_is_not_undone_by_a_restart_that_was_pending():
    class Two(Service):
        name = "two"
        starts = 0

        async def start(self) -> None:
            Two.starts += 1
            for number in range(2):
                self.spawn(self._work(), name=f"work {number}")

        async def _work(self) -> None:
            await asyncio.sleep(0.002)
            raise ValueError("the line is down")

    async with TestKernel(Two, config=supervised(intensity=2), wait_ready=False) as system, asyncio.timeout(20):
        await system.until("two", "quarantined")
        starts = Two.starts
        await asyncio.sleep(0.2)
        assert starts == Two.starts == 3
        assert system.state("two") == "quarantined"


async def test_a_restart_by_hand_takes_the_place_of_one_that_is_pending(monkeypatch):
    monkeypatch.setattr("microkernel.supervisor.FIRST_DELAY", 0.1)

    class Fragile(Echo):
        name = "fragile"
        starts = 0

        async def start(self) -> None:
            Fragile.starts += 1

        @handles
        async def crash(self) -> None:
            self.spawn(self._crash(), name="crash")

        async def _crash(self) -> None:
            raise ValueError("it fell")

    async with TestKernel(Fragile) as system:
        await system.call("fragile.crash")
        await system.until("fragile", "restarting")
        await system.restart("fragile")
        assert await system.call("fragile.say") == "here"
        await asyncio.sleep(0.2)
        assert Fragile.starts == 2


async def test_draining_is_told_at_the_crash_and_restarting_once_the_old_incarnation_is_gone():
    told = []

    class Slow(Service):
        name = "slow"

        @handles
        async def crash(self) -> None:
            self.spawn(self._crash(), name="crash")

        async def _crash(self) -> None:
            raise ValueError("it fell")

        async def stop(self) -> None:
            await asyncio.sleep(0.02)
            told.append("the old one has let go")

    async with TestKernel(Slow) as system:
        async with system.subscribe("service.slow.*") as changes, asyncio.timeout(10):
            await system.call("slow.crash")
            async for change in changes:
                told.append((change.body["state"], change.body["incarnation"]))
                if change.body["state"] == "ready":
                    break
        assert told == [
            ("draining", 1),
            "the old one has let go",
            ("restarting", 1),
            ("starting", 2),
            ("running", 2),
            ("ready", 2),
        ]


async def test_a_temporary_service_that_crashed_is_not_revived_by_the_restart_of_its_need():
    class Temporary(Service):
        name = "temporary"
        needs = ("echo",)
        restart_policy = "temporary"

        @every(0.001)
        async def fall(self) -> None:
            raise ValueError("again")

    async with TestKernel(Echo, Temporary, wait_ready=False) as system, asyncio.timeout(10):
        await system.until("temporary", "stopped")
        await system.restart("echo")
        assert system.state("temporary") == "stopped"
        restart = asyncio.create_task(system.restart("temporary"))
        await system.until("temporary", "starting", "running", "ready")
        await asyncio.wait([restart])


async def test_failures_to_get_ready_are_counted_in_a_row_however_long_each_takes():
    class NeverReady(Service):
        name = "never"

        async def ready(self) -> None:
            await asyncio.sleep(0.05)
            raise ValueError("the model is broken")

    config = supervised(intensity=1, period=0.04)
    async with TestKernel(NeverReady, config=config, wait_ready=False) as system, asyncio.timeout(20):
        await system.until("never", "quarantined")
        assert (await system.call("kernel.services"))[1].incarnation == 2


async def test_the_old_ready_has_ended_before_the_service_stops_and_starts_again():
    events = []

    class Reading(Service):
        name = "reading"

        async def start(self) -> None:
            events.append("start")

        async def ready(self) -> None:
            events.append("ready")
            try:
                await asyncio.sleep(3600)
            finally:
                await asyncio.sleep(0.01)
                events.append("not ready")

        async def stop(self) -> None:
            events.append("stop")

    async with TestKernel(Reading, wait_ready=False) as system:
        await asyncio.sleep(0)
        await system.restart("reading")
        assert events[:4] == ["start", "ready", "not ready", "stop"]


async def test_a_stopped_incarnation_is_no_longer_known():
    async with TestKernel(Echo) as system:
        await system.call("echo.say")
        gates = {id(binding.gate) for binding in system.kernel.router.registry.entry("echo").bindings.values()}
        restart = asyncio.create_task(system.restart("echo"))
        await system.until("echo", "restarting")
        assert system.kernel.router.registry.entry("echo").bindings == {}
        await restart
        fresh = system.kernel.router.registry.entry("echo").bindings.values()
        assert not gates & {id(binding.gate) for binding in fresh}


# Broken, added and removed


async def test_a_broken_service_stays_broken_when_what_it_needs_is_restarted():
    class Broken(Service):
        name = "broken"
        needs = ("echo", "missing")

    async with TestKernel(Echo, Broken) as system:
        await system.restart("echo")
        assert system.state("broken") == "broken"
        with pytest.raises(Unavailable, match="needs 'missing', which is not installed"):
            await system.call("broken.anything")


async def test_a_service_that_could_not_be_added_leaves_its_name_free():
    class Needs(Service):
        name = "needs"
        needs = ("echo",)

    class Fails(Echo):
        name = "echo"

        async def start(self) -> None:
            raise OSError("the port is busy")

    needs, fails, good = (Plugin(kind.name, "test", kind=kind) for kind in (Needs, Fails, Echo))
    async with TestKernel() as system:
        with pytest.raises(PreconditionFailed, match="'echo', which is not installed"):
            await system.kernel.add(needs)
        with pytest.raises(Internal, match="the port is busy"):
            await system.kernel.add(fails)
        assert [status.name for status in await system.call("kernel.services")] == ["kernel"]
        await system.kernel.add(good)
        await system.kernel.add(needs)
        await asyncio.wait_for(system.until("needs", "ready"), 10)
        with pytest.raises(AlreadyExists):
            await system.kernel.add(good)


async def test_a_service_that_is_removed_while_its_quarantine_is_carried_out_is_gone():
    class Slow(Echo):
        name = "slow"

        @every(0.005)
        async def fall(self) -> None:
            raise ValueError("again")

        async def stop(self) -> None:
            await asyncio.sleep(0.01)

    async with TestKernel(Slow, config=supervised(intensity=0), wait_ready=False) as system:
        await system.until("slow", "draining")
        await asyncio.gather(system.kernel.remove("slow"), system.kernel.remove("slow"))
        assert [status.name for status in await system.call("kernel.services")] == ["kernel"]


# The end


async def test_a_task_that_does_not_heed_its_cancellation_does_not_keep_the_node(tmp_path, caplog):
    class Stubborn(Service):
        name = "stubborn"
        goes_on = True

        async def start(self) -> None:
            self.spawn(self._work(), name="deaf")

        async def _work(self) -> None:
            while self.goes_on:
                try:
                    await asyncio.sleep(0.01)
                except asyncio.CancelledError:
                    continue

    kernel = kernel_of(tmp_path, Stubborn)
    await kernel.boot()
    await asyncio.sleep(0)
    await asyncio.wait_for(kernel.shutdown(), 10)
    assert "stubborn:deaf" in caplog.text
    Stubborn.goes_on = False
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("phase", ["start", "stop"])
async def test_a_phase_that_does_not_heed_its_cancellation_does_not_keep_the_node(tmp_path, phase, monkeypatch):
    monkeypatch.setattr("microkernel.instance.STOP_TIMEOUT", 0.05)

    async def deaf(self) -> None:
        while Deaf.goes_on:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    class Deaf(Service):
        name = "deaf"
        goes_on = True
        start_timeout = 0.05
        restart_policy = "temporary"

    setattr(Deaf, phase, deaf)
    kernel = kernel_of(tmp_path, Deaf, Echo)
    await asyncio.wait_for(kernel.boot(), 10)
    assert await kernel.port.call("echo.say") == "here"
    await asyncio.wait_for(kernel.shutdown(), 10)
    Deaf.goes_on = False
    await asyncio.sleep(0.05)


async def test_a_service_that_is_removed_during_the_shutdown_does_not_spoil_it(tmp_path):
    class Slow(Service):
        async def stop(self) -> None:
            await asyncio.sleep(0.02)

    class First(Slow):
        name = "a"

    class Last(Slow):
        name = "z"

    kernel = kernel_of(tmp_path, First, Last)
    await kernel.boot()
    ended = await asyncio.gather(kernel.shutdown(), kernel.remove("a"), return_exceptions=True)
    assert ended == [None, None]
    assert not kernel.root.node_path.exists()
    async with TestKernel(Echo, root=tmp_path) as system:
        assert system.state("echo") == "ready", "the state folder was given back"


async def test_a_step_of_the_shutdown_that_raises_keeps_none_of_the_others_from_being_done(tmp_path, caplog):
    kernel = kernel_of(tmp_path, Echo)
    await kernel.boot()

    async def fails() -> None:
        raise RuntimeError("a thread is stuck")

    kernel.executors.close = fails
    await kernel.shutdown()
    assert "a thread is stuck" in caplog.text
    async with TestKernel(Echo, root=tmp_path) as system:
        assert system.state("echo") == "ready"


async def test_a_shutdown_during_the_boot_ends_the_boot(tmp_path):
    class Slow(Service):
        name = "a"

        async def start(self) -> None:
            await asyncio.sleep(0.05)

    class Needs(Service):
        name = "b"
        needs = ("a",)
        essential = True

    kernel = kernel_of(tmp_path, Slow, Needs)
    booting = asyncio.create_task(kernel.boot())
    await asyncio.sleep(0.01)
    await asyncio.wait_for(kernel.shutdown(), 10)
    with pytest.raises(Unavailable, match="shuts down"):
        await asyncio.wait_for(booting, 10)


# Plugins that are wrong, and events that are not theirs to tell


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("name = 'my kv'", "'my kv' is no name for a service"),
        ("name = 7", "name is not text: 7"),
        ("restart_policy = 'always'", "restart_policy is permanent, transient, temporary, not 'always'"),
        ("Settings = dict", "Settings is a subclass of Message"),
        ("needs = None", "needs is a tuple of names, not None"),
        ("needs = 'clock'", "needs is a tuple of names, not 'clock'"),
        ("uses = ('a b',)", "uses: 'a b' is no name of a service"),
        ("start_timeout = 'long'", "start_timeout is a number of seconds, not 'long'"),
        ("@on('bad subject')\n    async def go(self, event): ...", "X.go: @on: 'bad subject' is no subject"),
        ("@on('go')\n    def go(self, event): ...", "X.go: @on needs an async function"),
        ("@every(1)\n    def go(self): ...", "X.go: @every needs an async function"),
        ("@handles\n    async def go(self, message: 'msgspec.Nope'): ...", "X.go: module 'msgspec' has no attribute"),
    ],
)
async def test_a_plugin_that_says_something_wrong_about_itself_is_broken_and_stops_nobody(tmp_path, body, why):
    path = tmp_path / "my plugin.py"
    path.write_text(
        f"import msgspec\nfrom microkernel import Service, every, handles, on\nclass X(Service):\n    {body}\n"
    )
    [plugin] = await load_file(path)
    assert why in plugin.broken
    async with TestKernel(plugin, Echo) as system:
        assert await system.call("echo.say") == "here"
        assert system.state(plugin.name) == "broken"


async def test_a_file_whose_name_cannot_be_that_of_a_service_gets_the_nearest(tmp_path):
    path = tmp_path / "my plugin.py"
    path.write_text("def broken(:")
    [broken] = await load_file(path)
    assert (broken.name, broken.kind) == ("my-plugin", None)
    path.write_text("from microkernel import Service\nclass X(Service): ...\n")
    [good] = await load_file(path)
    async with TestKernel(good, Plugin("?", "test", broken="why not")) as system:
        assert system.state("my-plugin") == "ready"
        assert system.state("plugin") == "broken"


async def test_only_the_kernel_tells_of_services_and_of_itself():
    class Liar(Service):
        name = "liar"
        uses = ("*",)

        @handles
        async def lie(self, message: dict) -> None:
            self.publish(message["subject"], name="echo", state="stopped")

    async with TestKernel(Liar, Echo) as system:
        for subject in ("service.echo.stopped", "kernel.shutdown"):
            with pytest.raises(Denied, match=f"liar has no right to publish {subject}"):
                await system.call("liar.lie", subject=subject)
        await system.call("liar.lie", subject="liar.anything")
