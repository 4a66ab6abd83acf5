"""What all accelerators do, with torch's CPU in the place of a vendor's library."""

from __future__ import annotations

import threading

import pytest
import torch

from drivers.accelerator import FRESH, SILENT, Accelerator, Memory
from microkernel.driver import DeviceFacts
from microkernel.testing import TestKernel
from services.devices.service import Devices

FACTS = DeviceFacts(name="card0", kind="card", model="a card", cores=1, threads=1, memory_bytes=1000)


class Card:
    """The few calls of a vendor."""

    def __init__(self) -> None:
        self.answer: Memory | Exception = Memory(800, 0)
        self.taken = 0
        self.asked = 0
        self.begun_on: list[str] = []

    def begin(self) -> None:
        self.begun_on.append(threading.current_thread().name)

    def memory(self) -> Memory:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def ours(self) -> int:
        return self.taken


class Watch:
    """A clock and threads that go on when they are told to."""

    def __init__(self, card: Card) -> None:
        self.time = 0.0
        self.started: list = []
        self.device = Accelerator(FACTS, card, now=lambda: self.time, begin_thread=self.started.append)

    def later(self, seconds: float = 2 * FRESH) -> None:
        self.time += seconds

    def answers(self) -> None:
        while self.started:
            self.started.pop()()

    def asked_again(self) -> None:
        self.later()
        self.device.fault()
        self.answers()


@pytest.fixture
def card() -> Card:
    return Card()


@pytest.fixture
def watch(card) -> Watch:
    return Watch(card)


def test_free_memory_is_told_without_asking_the_device(watch, card):
    assert watch.device.free_memory() == 800
    watch.later()
    card.answer = Memory(300, 0)
    assert watch.device.free_memory() == 800, "the new reading has not come yet"
    watch.answers()
    assert watch.device.free_memory() == 300


def test_what_we_took_since_the_last_reading_counts_at_once(watch, card):
    card.taken = 250
    assert watch.device.free_memory() == 550
    card.answer = Memory(550, 250)
    watch.asked_again()
    assert watch.device.free_memory() == 550
    card.taken = 0
    assert watch.device.free_memory() == 800, "and what was given back"


def test_free_memory_is_neither_negative_nor_more_than_there_is(watch, card):
    card.taken = 5000
    assert watch.device.free_memory() == 0
    card.answer, card.taken = Memory(900, 500), 0
    watch.asked_again()
    assert watch.device.free_memory() == 1000


def test_one_reading_is_under_way_at_a_time_and_a_fresh_one_is_not_repeated(watch, card):
    watch.device.fault()
    assert watch.started == []
    watch.later()
    for _ in range(5):
        watch.device.fault()
        watch.device.free_memory()
    assert len(watch.started) == 1
    watch.answers()
    watch.device.fault()
    assert watch.started == []


def test_an_error_makes_a_device_suspect_until_a_reading_succeeds(watch, card):
    card.answer = RuntimeError("driver is busy\nand a long trace")
    watch.asked_again()
    assert (watch.device.fault(), watch.device.lost()) == ("driver is busy", None)
    card.answer = Memory(700, 0)
    watch.asked_again()
    assert watch.device.fault() is None


@pytest.mark.parametrize(
    "told",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: unspecified launch failure",
        "Native API failed. Native API returns: 20 (UR_RESULT_ERROR_DEVICE_LOST): device lost",
    ],
)
def test_after_a_lasting_error_the_device_is_lost_and_not_asked_again(watch, card, told):
    card.answer = RuntimeError(told)
    watch.asked_again()
    assert watch.device.lost() == told
    assert watch.device.free_memory() == 0
    card.answer, asked = Memory(700, 0), card.asked
    watch.asked_again()
    assert watch.device.lost() == watch.device.fault() == told
    assert card.asked == asked


def test_a_device_that_never_answers_is_told_with_the_time_and_asked_only_once(watch, card):
    watch.later()
    watch.device.fault()
    watch.later(SILENT + 5)
    assert "has not answered for 35 s" in (watch.device.fault() or "")
    assert len(watch.started) == 1
    watch.answers()
    assert watch.device.fault() is None


def test_readings_are_taken_beside_the_caller(card):
    came, threads = threading.Event(), []
    time = [0.0]
    device = Accelerator(FACTS, card, now=lambda: time[0])
    ask = card.memory

    def memory() -> Memory:
        threads.append(threading.current_thread())
        came.set()
        return ask()

    card.memory = memory
    time[0] = 2 * FRESH
    device.free_memory()
    assert came.wait(10)
    assert threads != [threading.current_thread()]
    assert threads[0].daemon


async def test_the_compute_thread_is_made_ready_before_it_computes(card):
    executor = Accelerator(FACTS, card).executor()
    await executor.start()
    assert card.begun_on == ["card0.0"]
    assert await executor.run(lambda: torch.ones(2).sum().item()) == 2.0
    assert await executor.stop()


async def test_a_lost_device_is_quarantined_with_its_reason_and_the_others_serve(card, monkeypatch):
    import services.devices.service as module
    from microkernel.driver import Driver
    from microkernel.plugins import Plugin

    watch = Watch(card)

    class Cards(Driver):
        name = "card"

        def find(self):
            return (watch.device,)

    discover = module.discover_drivers

    async def with_a_card(**options):
        return [*await discover(**options), Plugin("card", "here", kind=Cards)]

    monkeypatch.setattr(module, "discover_drivers", with_a_card)
    devices = Devices()
    async with TestKernel(devices) as system, system.subscribe("devices.card0.*") as events:
        card.answer = RuntimeError("busy")
        watch.asked_again()
        await devices.check()
        assert ((event := await anext(events)).body["state"], event.body["why"]) == ("suspect", "busy")
        card.answer = RuntimeError("CUDA error: device-side assert triggered")
        watch.asked_again()
        await devices.check()
        assert (await anext(events)).subject == "devices.card0.quarantined"
        shown = {device.name: device for device in await system.call("devices.list")}
        assert shown["card0"].state == "quarantined"
        assert "assert" in shown["card0"].why
        assert (shown["cpu0"].state, shown["cpu0"].why) == ("healthy", "")
