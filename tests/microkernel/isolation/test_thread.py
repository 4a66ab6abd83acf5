"""A service with a thread of its own: what blocks it blocks nobody else, and what does not end is left and named."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator

import pytest
from isolation_services import Partner, Secret, Store

from microkernel import Message, Service, handles, streams
from microkernel.config import Config
from microkernel.errors import DeadlineExceeded, MicrokernelError, Unavailable
from microkernel.isolation.mailbox import FULL, Mailbox
from microkernel.testing import TestKernel


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    """What does not end is left soon, and restarts come soon."""
    monkeypatch.setattr("microkernel.supervisor.FIRST_DELAY", 0.01)
    for name in ("host.STOP_TIMEOUT", "host.KILL_TIMEOUT", "host.ROUND", "host.START_GRACE", "own_thread.KILL_TIMEOUT"):
        monkeypatch.setattr(f"microkernel.isolation.{name}", 0.05)
    monkeypatch.setattr("microkernel.isolation.link.GRACE", 0.05)
    monkeypatch.setattr("microkernel.instance.KILL_TIMEOUT", 0.5)


class Blocked(Service):
    """Blocks its thread until the test lets it go."""

    name = "blocked"
    isolation = "thread"
    drain_timeout = 0.0
    start_timeout = 0.1
    inside = threading.Event()
    release = threading.Event()
    blocks_in_start = False

    async def start(self) -> None:
        if self.blocks_in_start:
            self.inside.set()
            self.release.wait(60)

    @handles(deadline=None)
    async def block(self) -> str:
        self.inside.set()
        self.release.wait(60)
        return "let go"

    @handles
    async def incarnation_number(self) -> int:
        return self.incarnation


class Box(Message):
    things: list[int]


class Keeper(Service):
    name = "keeper"
    isolation = "thread"

    @handles
    async def back(self, message: Box) -> Box:
        return message

    @streams
    async def twice(self, message: Box) -> AsyncIterator[Box]:
        yield message
        yield message


@pytest.fixture
def blocked():
    class OfThisTest(Blocked):
        inside = threading.Event()
        release = threading.Event()

    yield OfThisTest
    OfThisTest.release.set()
    for thread in threading.enumerate():
        if thread.name == "service blocked":
            thread.join(30)


async def until_inside(kind):
    while not kind.inside.is_set():
        await asyncio.sleep(0.001)


async def outcome(work):
    try:
        return await work
    except MicrokernelError as error:
        return error


async def test_a_handler_that_blocks_its_thread_does_not_hold_up_the_others(blocked):
    async with TestKernel(Partner, blocked) as system, asyncio.timeout(30):
        task = asyncio.create_task(system.call("blocked.block"))
        await until_inside(blocked)
        assert (await system.call("partner.double", to=1)).key == "2"
        assert not task.done()
        blocked.release.set()
        assert await task == "let go"


async def test_the_deadline_holds_for_a_handler_that_blocks(blocked):
    async with TestKernel(blocked) as system, asyncio.timeout(30):
        with pytest.raises(DeadlineExceeded):
            await system.call("blocked.block", deadline=0.02)
        blocked.release.set()


async def test_a_thread_that_does_not_end_is_left_and_named_and_the_service_goes_on(blocked, caplog):
    with caplog.at_level(logging.WARNING):
        async with TestKernel(blocked) as system, asyncio.timeout(30):
            task = asyncio.create_task(outcome(system.call("blocked.block")))
            await until_inside(blocked)
            await system.restart("blocked")
            error = await task
            assert isinstance(error, Unavailable)
            assert error.may_have_run
            assert await system.call("blocked.incarnation_number") == 2
            assert "thread 'service blocked' does not end and was left; it is at" in caplog.text
            assert "threading.py" in caplog.text
            blocked.release.set()
            for thread in threading.enumerate():
                if thread.name == "service blocked" and thread is not current_thread_of(system):
                    await asyncio.to_thread(thread.join, 30)


def current_thread_of(system):
    return system.kernel.instance("blocked")._dwelling._thread


async def test_a_start_that_blocks_its_thread_is_ended_and_the_node_boots(blocked):
    blocked.blocks_in_start = True
    blocked.restart_policy = "temporary"
    async with TestKernel(Partner, blocked) as system, asyncio.timeout(30):
        assert system.state("blocked") == "stopped"
        assert (await system.call("partner.double", to=1)).key == "2"
        blocked.release.set()
        for thread in threading.enumerate():
            if thread.name == "service blocked":
                await asyncio.to_thread(thread.join, 30)


async def test_a_message_in_a_thread_is_the_very_object():
    async with TestKernel(Keeper) as system:
        box = Box([1])
        assert await system.call("keeper.back", box) is box
        assert [item is box async for item in system.stream("keeper.twice", box)] == [True, True]


async def test_no_thread_and_no_object_of_an_old_incarnation_is_kept():
    config = Config(isolation={"store": "thread"})
    async with TestKernel(Partner, Secret, Store, config=config) as system:
        await system.call("store.who")
        old = weakref.ref(system.kernel.instance("store"))
        before = threading.active_count()
        for _ in range(5):
            await system.restart("store")
        assert threading.active_count() == before
        gc.collect()
        assert old() is None


# Hand-over between loops


class Receiver:
    """A loop in a thread of its own, with what has been delivered there."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.got = []
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def end(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    if not receiver.loop.is_closed():
        receiver.end()


async def test_frames_arrive_in_order_and_a_burst_wakes_the_receiver_once(receiver, monkeypatch):
    wakes = []
    gate = threading.Event()
    receiver.loop.call_soon_threadsafe(gate.wait)
    call = receiver.loop.call_soon_threadsafe
    monkeypatch.setattr(receiver.loop, "call_soon_threadsafe", lambda *a: (wakes.append(1), call(*a)))
    mailbox = Mailbox(receiver.loop, receiver.got.append)
    for number in range(1000):
        mailbox.post(number)
    gate.set()
    async with asyncio.timeout(30):
        while len(receiver.got) < 1000:
            await asyncio.sleep(0.001)
    assert receiver.got == list(range(1000))
    assert len(wakes) == 1


async def test_a_producer_waits_while_the_mailbox_is_full(receiver):
    gate = threading.Event()
    receiver.loop.call_soon_threadsafe(gate.wait)
    mailbox = Mailbox(receiver.loop, receiver.got.append)
    for number in range(FULL):
        mailbox.post(number)
    assert mailbox.is_full
    waits = asyncio.create_task(mailbox.room())
    await asyncio.sleep(0)
    assert not waits.done()
    gate.set()
    async with asyncio.timeout(30):
        await waits
    assert not mailbox.is_full


async def test_what_is_posted_to_a_loop_that_has_ended_goes_nowhere(receiver):
    mailbox = Mailbox(receiver.loop, receiver.got.append)
    receiver.end()
    mailbox.post(1)
    mailbox.post(2)
    await mailbox.room()
    assert receiver.got == []


async def test_closing_a_mailbox_frees_those_who_wait_for_room(receiver):
    gate = threading.Event()
    receiver.loop.call_soon_threadsafe(gate.wait)
    mailbox = Mailbox(receiver.loop, receiver.got.append)
    for number in range(FULL):
        mailbox.post(number)
    waits = asyncio.create_task(mailbox.room())
    await asyncio.sleep(0)
    mailbox.close()
    await waits
    gate.set()
