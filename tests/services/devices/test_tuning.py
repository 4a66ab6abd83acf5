"""Numbers of threads that are chosen by measuring: how, when, for how long."""

from __future__ import annotations

import asyncio
import itertools
import sys

import msgspec
import pytest

import services.devices.service as module
from microkernel.capability import Rights
from microkernel.driver import DeviceFacts, Driver, DriverDevice
from microkernel.errors import Denied, NotFound, Overloaded, PreconditionFailed
from microkernel.executor import Executor
from microkernel.plugins import Plugin
from microkernel.testing import TestKernel
from services.devices import kept_tunings, others
from services.devices.service import Devices
from services.devices.tuner import choose_threads, worth_trying


class Loom(DriverDevice):
    """Says how long its work takes, without doing it: by two threads half as long, by four no less than that."""

    seconds = {1: 0.004, 2: 0.002, 4: 0.002}

    def __init__(self) -> None:
        self.spreads: list[int] = []
        self.facts = DeviceFacts(name="loom0", kind="loom", model="oak", cores=4, threads=1, memory_bytes=1 << 30)

    def executor(self) -> Executor:
        return Executor("loom0", cores=4)

    def free_memory(self) -> int:
        return 1 << 30

    def fault(self) -> str | None:
        return None

    def trials(self):
        return {"weave": self.seconds.__getitem__}

    def spread(self, threads: int) -> None:
        self.spreads.append(threads)


class Stone(Loom):
    """Leaves no choice."""

    def trials(self):
        return {}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No other process does anything."""
    monkeypatch.setattr(module, "others_seconds", lambda: 0.0)
    monkeypatch.setattr(others, "others_seconds", lambda: 0.0)


@pytest.fixture
def loom(monkeypatch):
    """The device that there is."""
    return use(monkeypatch, Loom())


def use(monkeypatch, device):
    class Found(Driver):
        name = "loom"

        def find(self):
            return [device]

    async def discover(**_):
        return [Plugin("loom", "a test", kind=Found)]

    monkeypatch.setattr(module, "discover_drivers", discover)
    return device


async def test_as_many_cores_as_are_worth_it_and_no_more_are_used_and_shown(loom):
    async with TestKernel(Devices) as system:
        assert (await system.call("devices.show", name="loom0")).spread == 4
        tuning = await system.call("devices.tune", name="loom0")
        assert tuning.chosen["spread"] == 2
        assert tuning.measured["weave on 2"] == 0.002
        assert loom.spreads[-1] == 2
        shown = await system.call("devices.show", name="loom0")
        assert (shown.spread, shown.core_threads) == (2, tuning.chosen["core_threads"])
        assert await system.call("devices.tunings") == [tuning]


async def test_what_was_chosen_is_used_after_a_restart_without_measuring(loom, tmp_path):
    async with TestKernel(Devices, root=tmp_path) as system:
        tuning = await system.call("devices.tune", name="loom0")
    loom.spreads.clear()
    async with TestKernel(Devices, root=tmp_path) as system:
        assert await system.call("devices.find_tuning", device="loom0") == tuning
        assert loom.spreads == [2]


async def test_what_was_measured_on_another_machine_does_not_hold_here(loom, tmp_path):
    async with TestKernel(Devices, root=tmp_path) as system:
        await system.call("devices.tune", name="loom0")
    loom.facts = msgspec.structs.replace(loom.facts, model="pine")
    async with TestKernel(Devices, root=tmp_path) as system:
        assert await system.call("devices.find_tuning", device="loom0") is None
        assert await system.call("devices.tunings") == []
        assert (await system.call("devices.show", name="loom0")).spread == 4


async def test_a_file_that_is_damaged_is_as_none_and_is_written_anew(loom, tmp_path):
    async with TestKernel(Devices, root=tmp_path) as system:
        tuning = await system.call("devices.tune", name="loom0")
    (path,) = tmp_path.rglob("tuning.json")
    path.write_bytes(path.read_bytes()[:-20])
    async with TestKernel(Devices, root=tmp_path) as system:
        assert await system.call("devices.tunings") == []
        await system.call("devices.tune", name="loom0")
    async with TestKernel(Devices, root=tmp_path) as system:
        (kept,) = await system.call("devices.tunings")
        assert kept.chosen["spread"] == tuning.chosen["spread"]


async def test_a_device_that_rests_is_tuned_once_by_itself(loom, tmp_path):
    settings = {"devices": {"tune_after": 0.1}}
    async with (
        TestKernel(Devices, root=tmp_path, settings=settings) as system,
        system.subscribe("devices.tuned") as tuned,
        asyncio.timeout(30),
    ):
        assert (await anext(tuned)).body.chosen["spread"] == 2
    async with (
        TestKernel(Devices, root=tmp_path, settings=settings) as system,
        system.subscribe("devices.tuning") as begun,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await anext(begun)


async def test_beside_others_nothing_is_begun_and_after_each_try_in_vain_it_is_longer_until_the_next(loom, monkeypatch):
    busy = itertools.count(step=100)  # seconds of others' work, more with each look
    async with TestKernel(Devices, settings={"devices": {"tune_after": 0.1}}) as system:
        service = system.kernel._slots["devices"].instance.service
        async with system.subscribe("devices.tuning") as begun:
            monkeypatch.setattr(others, "others_seconds", lambda: float(next(busy)))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.5):
                    await anext(begun)
            monkeypatch.setattr(others.Others, "quiet", property(lambda self: False))
            found = service._found["loom0"]
            pauses = []
            for _ in range(3):
                monkeypatch.setattr(service, "_is_idle", lambda found: True)
                await service.tune_idle()
                pauses.append(found.pause)
        assert pauses == [pytest.approx(0.2), pytest.approx(0.4), pytest.approx(0.8)]
        assert found.needs_tuning


async def test_cores_that_this_process_may_not_use_are_in_nobodys_way(loom):
    async with TestKernel(Devices) as system:
        before = msgspec.structs.replace(await system.call("devices.show", name="loom0"), machine_cores=10)
        for seconds, taken in ((12.0, 0.0), (14.0, 1.0), (20.0, 4.0)):  # of ten cores, six are not ours
            after = msgspec.structs.replace(before, others_seconds=before.others_seconds + seconds)
            assert after.others_since(before, 2.0) == taken


async def test_a_device_at_work_is_not_measured(loom):
    async with TestKernel(Devices) as system:
        go = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work() -> None:
            asyncio.run_coroutine_threadsafe(go.wait(), loop).result()

        working = asyncio.create_task(system.kernel.executors.get("loom0").run(work))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="loom0 is at work") as refused:
            await system.call("devices.tune", name="loom0")
        assert refused.value.retry_after
        go.set()
        await working
        assert await system.call("devices.tune", name="loom0")


async def test_of_two_measurements_at_a_time_one_is_refused(loom):
    async with TestKernel(Devices) as system:
        async with system.subscribe("devices.tuning") as begun:
            first = asyncio.create_task(system.call("devices.tune", name="loom0"))
            await anext(begun)
        with pytest.raises(PreconditionFailed, match="loom0 is being tuned"):
            await system.call("devices.tune", name="loom0")
        assert await first


async def test_where_there_is_no_choice_nothing_is_chosen(monkeypatch):
    use(monkeypatch, Stone())
    async with TestKernel(Devices) as system:
        assert await system.call("devices.tune", name="loom0") is None
        assert await system.call("devices.tunings") == []


async def test_a_trial_that_breaks_leaves_everything_as_it_was(loom):
    def breaks(threads: int) -> float:
        raise OSError("the thread tore")

    async with TestKernel(Devices) as system:
        loom.trials = lambda: {"weave": breaks}
        with pytest.raises(Exception, match="the thread tore"):
            await system.call("devices.tune", name="loom0")
        shown = await system.call("devices.show", name="loom0")
        assert (shown.spread, shown.core_threads, loom.spreads[-1]) == (4, 4, 4)
        del loom.trials
        assert await system.call("devices.tune", name="loom0")


async def test_a_trial_that_breaks_costs_no_device(loom):
    def breaks(threads: int) -> float:
        tried.append(threads)
        raise OSError("the thread tore")

    tried: list[int] = []
    loom.trials = lambda: {"weave": breaks}
    async with TestKernel(Devices, settings={"devices": {"tune_after": 0.1}}) as system, asyncio.timeout(30):
        while not tried:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.2)  # it is looked after again
        assert len(tried) == 1, "once is enough"
        assert system.state("devices") == "ready"
        assert await system.kernel.executors.get("loom0").run(lambda: 7) == 7


async def test_the_newest_are_kept_and_all_that_come_at_once(loom, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_tunings, "MOST", 5)
    async with TestKernel(Devices, root=tmp_path) as system:
        await asyncio.gather(
            *(
                system.call("devices.keep_tuning", device="loom0", subject=f"{number}", title="", chosen={})
                for number in range(9)
            )
        )
        kept = await system.call("devices.tunings")
        assert len(kept) == 5
    async with TestKernel(Devices, root=tmp_path) as system:
        assert await system.call("devices.tunings") == kept


async def test_only_root_tunes_and_keeps(loom):
    async with TestKernel(Devices) as system:
        ana = system.kernel.port.narrow(caller="session s1", rights=Rights(), user="ana")
        with pytest.raises(Denied):
            await ana.call("devices.tune", name="loom0")
        with pytest.raises(Denied):
            await ana.call("devices.keep_tuning", device="loom0", subject="", title="loom0", chosen={"spread": 1})


async def test_others_keep_what_they_chose_by_device_and_subject(loom):
    async with TestKernel(Devices) as system:
        kept = await system.call(
            "devices.keep_tuning", device="loom0", subject="a pattern", title="pattern", chosen={"rows": 7}
        )
        assert await system.call("devices.find_tuning", device="loom0", subject="a pattern") == kept
        assert await system.call("devices.find_tuning", device="loom0", subject="another") is None
        with pytest.raises(NotFound, match="devices here: loom0"):
            await system.call("devices.find_tuning", device="loom1", subject="a pattern")


async def test_beside_busy_processes_the_cpu_is_only_tuned_anyway(monkeypatch):
    monkeypatch.undo()  # the real devices, and the real count of what others do
    async with TestKernel(Devices) as system:
        (device,) = await system.call("devices.list")
        spin = (sys.executable, "-c", "while True: pass")
        busy = [await asyncio.create_subprocess_exec(*spin) for _ in range(device.cores)]
        try:
            with pytest.raises(Overloaded, match=f"of {device.cores} cores busy"):
                await system.call("devices.tune", name="cpu0", deadline=None)
            tuning = await system.call("devices.tune", name="cpu0", anyway=True, deadline=None)
        finally:
            for each in busy:
                each.kill()
                await each.wait()
        assert 1 <= tuning.chosen["spread"] <= device.cores
        assert 1 <= tuning.chosen["core_threads"] <= device.cores
        assert {f"read on {device.cores}", "multiply by 1"} <= tuning.measured.keys()


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 4.0, 2: 2.0, 4: 1.0}, 4),
        ({1: 4.0, 2: 2.0, 4: 1.95}, 2),
        ({1: 1.0, 2: 1.5, 4: 0.5}, 4),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 1),
        ({8: 3.0}, 8),
    ],
)
def test_more_threads_are_taken_only_where_they_are_worth_it(seconds, chosen):
    assert choose_threads({count: {"work": each} for count, each in seconds.items()}) == chosen


def test_kinds_of_work_count_alike_however_long_they_take():
    seconds = {1: {"short": 0.001, "long": 10.0}, 2: {"short": 0.002, "long": 9.0}}
    assert choose_threads(seconds) == 1


@pytest.mark.parametrize(("cores", "tried"), [(1, [1]), (2, [1, 2]), (6, [1, 3, 6]), (16, [1, 2, 4, 8, 16])])
def test_all_cores_are_tried_and_half_as_many_again_and_again(cores, tried):
    assert worth_trying(cores) == tried
