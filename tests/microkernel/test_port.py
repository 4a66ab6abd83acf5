"""Calls and streams as their callers see them: admission under load, deadlines, restarts, stray ends."""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import weakref

import msgspec
import pytest

from microkernel import Message, Service, handles, streams
from microkernel.capability import Rights
from microkernel.errors import DeadlineExceeded, Deadlock, Internal, Invalid, Unavailable
from microkernel.message import current_call, invalid_from
from microkernel.testing import TestKernel


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_clients_that_wait_their_turn_at_a_door_for_one_are_no_deadlock():
    class Narrow(Service):
        name = "narrow"

        @handles(concurrency=1)
        async def go(self) -> None:
            await asyncio.sleep(0)

    async with TestKernel(Narrow) as system:

        async def client():
            for _ in range(50):
                await system.call("narrow.go")

        await asyncio.gather(*(client() for _ in range(4)))


async def test_a_call_that_arrives_between_a_grant_and_its_waking_waits_its_turn():
    class Narrow(Service):
        name = "narrow"

        @handles(concurrency=1)
        async def go(self) -> None:
            await asyncio.sleep(0.01)

    async with TestKernel(Narrow) as system:
        first = asyncio.create_task(system.call("narrow.go"))
        await turns()
        second = asyncio.create_task(system.call("narrow.go"))

        async def third():
            while not first.done():
                await asyncio.sleep(0)
            await system.call("narrow.go")

        await asyncio.gather(first, second, third())


async def test_a_service_that_waits_for_itself_is_told_by_which_way():
    class Narrow(Service):
        name = "narrow"

        @handles(concurrency=1)
        async def go(self) -> None:
            await self.call("narrow.go")

    async with TestKernel(Narrow) as system:
        with pytest.raises(Deadlock) as caught:
            await system.call("narrow.go")
        assert caught.value.message == "narrow.go waits for itself: narrow.go → narrow.go"


class Flow(Service):
    """One stream at a time, whose end takes as long as the test wants."""

    name = "flow"
    drain_timeout = 0.05

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.seen = None
        self.ended = []

    @streams(concurrency=1)
    async def numbers(self):
        try:
            for number in range(3):
                yield number
                await asyncio.sleep(0)
        finally:
            self.seen = current_call()
            try:
                await self.go_on.wait()
            finally:
                self.ended.append(True)


async def test_a_stream_that_is_being_closed_holds_its_place_and_is_no_deadlock_for_the_next():
    service = Flow()
    async with TestKernel(service) as system:
        first = system.stream("flow.numbers")
        await anext(first)
        closing = asyncio.create_task(first.aclose())
        await turns()
        second = asyncio.create_task(anext(system.stream("flow.numbers")))
        await turns()
        assert not second.done()
        service.go_on.set()
        await closing
        assert await second == 0
        gc.collect()  # the second stream was left to its fate: the loop closes it
        await turns()


async def test_a_stream_handed_to_another_task_is_no_deadlock_for_the_one_that_opened_it():
    service = Flow()
    service.go_on.set()
    async with TestKernel(service) as system:
        first = system.stream("flow.numbers")
        await anext(first)

        async def rest():
            return [number async for number in first]

        reader = asyncio.create_task(rest())
        await asyncio.sleep(0)
        assert [number async for number in system.stream("flow.numbers")] == [0, 1, 2]
        assert await reader == [1, 2]


async def test_the_finally_blocks_of_a_stream_belong_to_its_call():
    service = Flow()
    service.go_on.set()
    async with TestKernel(service) as system:
        async with system.stream("flow.numbers") as items:
            await anext(items)
        assert service.seen.chain == ("flow.numbers",)
        assert current_call() is None


async def test_a_stream_whose_end_hangs_is_ended_with_a_named_error(monkeypatch):
    monkeypatch.setattr("microkernel.suspended.CLOSE_TIMEOUT", 0.03)
    service = Flow()
    async with TestKernel(service) as system:
        items = system.stream("flow.numbers")
        await anext(items)
        with pytest.raises(DeadlineExceeded, match=r"flow\.numbers did not end within 0\.03 s of being closed"):
            await items.aclose()
        assert service.ended == [True]


async def test_a_stream_that_is_being_closed_is_reached_by_a_restart_of_its_service():
    service = Flow()
    async with TestKernel(service) as system:
        items = system.stream("flow.numbers")
        await anext(items)
        closing = asyncio.create_task(items.aclose())
        await turns()
        await system.restart("flow")
        with pytest.raises(Unavailable, match="is being restarted"):
            await closing
        assert service.ended == [True]


class Stray(Service):
    """Raises what ends a task or a process, on its own account."""

    name = "stray"

    @handles
    async def cancelled(self, message: dict) -> None:
        future = asyncio.get_running_loop().create_future()
        if message["late"]:
            await asyncio.sleep(0)
        future.cancel()
        await future

    @handles
    async def exits(self, message: dict) -> None:
        if message["late"]:
            await asyncio.sleep(0)
        sys.exit(3)

    @streams
    async def flow(self, message: dict):
        yield 1
        if message["end"] == "exit":
            sys.exit(3)
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future


@pytest.mark.parametrize("late", [False, True])
async def test_a_stray_cancellation_in_a_handler_is_a_named_error(late):
    async with TestKernel(Stray) as system:
        with pytest.raises(Internal, match=r"stray\.cancelled raised CancelledError, and nobody cancelled the call"):
            await system.call("stray.cancelled", late=late)
        assert system.calls_in_flight() == {}


@pytest.mark.parametrize("late", [False, True])
async def test_a_handler_that_exits_ends_its_call_and_not_the_node(late):
    async with TestKernel(Stray) as system:
        with pytest.raises(Internal, match="stray raised SystemExit: 3"):
            await system.call("stray.exits", late=late)
        assert system.state("stray") == "ready"


@pytest.mark.parametrize(("end", "why"), [("exit", "raised SystemExit"), ("cancel", "nobody cancelled the call")])
async def test_a_stream_that_exits_or_is_cancelled_by_nobody_ends_with_a_named_error(end, why):
    async with TestKernel(Stray) as system:
        items = system.stream("stray.flow", end=end)
        assert await anext(items) == 1
        with pytest.raises(Internal, match=why):
            await anext(items)
        assert system.calls_in_flight() == {}


async def test_a_callers_own_cancellation_and_timeout_pass_through_a_call_as_they_are():
    class Slow(Service):
        name = "slow"

        @handles
        async def wait(self) -> None:
            await asyncio.sleep(3600)

    async with TestKernel(Slow) as system:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await system.call("slow.wait")
        task = asyncio.create_task(system.call("slow.wait"))
        await turns()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


class Phased(Service):
    """Takes as long to start and to answer as the test wants."""

    name = "phased"
    drain_timeout = 0.0
    delay = 0.0

    async def start(self) -> None:
        self.answers = 0
        await asyncio.sleep(Phased.delay)

    @handles
    async def deadline(self) -> float:
        return current_call().deadline

    @handles(concurrency=1)
    async def count(self, message: dict) -> int:
        self.answers += 1
        await asyncio.sleep(3600 if message["hold"] else 0)
        return self.answers

    @streams(concurrency=1)
    async def flow(self, message: dict):
        self.answers += 1
        while True:
            yield self.answers
            await asyncio.sleep(3600 if message["hold"] else 0)


@pytest.fixture
def phased():
    yield Phased
    Phased.delay = 0.0


async def test_the_wait_for_a_restart_is_part_of_a_calls_deadline(phased):
    async with TestKernel(phased) as system:
        phased.delay = 0.1
        restart = asyncio.create_task(system.restart("phased"))
        await system.until("phased", "starting")
        call = asyncio.create_task(system.call("phased.deadline", deadline=5.0))
        await turns()
        called = asyncio.get_running_loop().time()
        assert await call <= called + 5.0
        await restart


async def test_calls_that_have_not_begun_when_their_service_restarts_are_answered_by_the_next_incarnation(phased):
    async with TestKernel(phased) as system:
        inside = asyncio.create_task(system.call("phased.count", hold=True))
        await turns()
        waiting = [asyncio.create_task(system.call("phased.count", hold=False)) for _ in range(3)]
        await turns()
        await system.restart("phased")
        with pytest.raises(Unavailable, match="is being restarted") as caught:
            await inside
        assert caught.value.may_have_run is True
        assert await asyncio.gather(*waiting) == [1, 2, 3]


async def test_a_stream_that_has_not_begun_when_its_service_restarts_is_answered_by_the_next_incarnation(phased):
    async with TestKernel(phased) as system:
        first = system.stream("phased.flow", hold=True)
        await anext(first)
        inside = asyncio.create_task(anext(first))
        second = system.stream("phased.flow", hold=False)
        waiting = asyncio.create_task(anext(second))
        await turns()
        await system.restart("phased")
        with pytest.raises(Unavailable, match="is being restarted"):
            await inside
        assert await waiting == 1
        await second.aclose()


async def test_a_call_that_waits_for_the_next_incarnation_ends_at_its_deadline(phased):
    async with TestKernel(phased) as system:
        inside = asyncio.create_task(system.call("phased.count", hold=True))
        await turns()
        waiting = asyncio.create_task(system.call("phased.count", hold=False, deadline=0.05))
        await turns()
        phased.delay = 0.3
        restart = asyncio.create_task(system.restart("phased"))
        with pytest.raises(DeadlineExceeded, match="was still (starting|restarting)") as caught:
            await waiting
        assert caught.value.may_have_run is False
        with pytest.raises(Unavailable):
            await inside
        await restart


async def test_a_call_that_waits_at_a_service_which_stops_for_good_is_told(phased):
    async with TestKernel(phased) as system:
        inside = asyncio.create_task(system.call("phased.count", hold=True))
        await turns()
        waiting = asyncio.create_task(system.call("phased.count", hold=False))
        await turns()
        await system.kernel.shutdown("the test is over")
        for task in (inside, waiting):
            with pytest.raises(Unavailable, match="the test is over"):
                await task


async def test_a_stream_is_told_from_a_call_even_when_the_other_was_used_before():
    class Both(Service):
        name = "both"

        @handles
        async def one(self) -> int:
            return 1

        @streams
        async def many(self):
            yield 1

    async with TestKernel(Both) as system:
        for _ in range(2):
            assert await system.call("both.one") == 1
            assert [item async for item in system.stream("both.many")] == [1]
            with pytest.raises(Invalid, match=r"reached by call\(\)"):
                await anext(system.stream("both.one"))
            with pytest.raises(Invalid, match=r"reached by stream\(\)"):
                await system.call("both.many")


async def test_a_port_that_has_called_a_service_does_not_keep_its_dead_incarnation(phased):
    async with TestKernel(phased) as system:
        assert await system.call("phased.count", hold=False) == 1
        old = weakref.ref(system.kernel.instance("phased").service)
        await system.restart("phased")
        await turns()
        gc.collect()
        assert old() is None


@pytest.mark.parametrize("deadline", [-1.0, -math.inf, math.nan])
async def test_a_deadline_that_is_no_time_from_now_is_refused(phased, deadline):
    async with TestKernel(phased) as system:
        with pytest.raises(Invalid, match="a deadline is in seconds from now") as caught:
            await system.call("phased.count", hold=False, deadline=deadline)
        assert caught.value.field == "deadline"
        with pytest.raises(Invalid):
            await anext(system.kernel.port.stream("phased.flow", {"hold": False}, deadline=deadline))


@pytest.mark.parametrize("deadline", [1e15, 1e300, math.inf])
async def test_no_deadline_is_later_than_a_day_from_now(phased, deadline):
    async with TestKernel(phased) as system:
        now = asyncio.get_running_loop().time()
        assert now < await system.call("phased.deadline", deadline=deadline) < now + 86_400 + 60


async def test_calls_that_ended_leave_no_heap_of_deadlines(phased):
    async with TestKernel(phased) as system:
        for number in range(1000):
            await system.call("phased.count", hold=False, deadline=1000.0 + number)
        deadlines = system.kernel.router.deadlines
        assert len(deadlines._buckets) < 200
        assert len(deadlines._order) == len(deadlines._buckets)


def test_what_does_not_fit_a_type_is_named_with_its_field():
    class Point(Message):
        x: int

    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"points": [{"x": "1"}]}, dict[str, list[Point]])
    error = invalid_from(caught.value, "map.draw")
    assert error.message == "map.draw: Expected `int`, got `str` in field '[...][0].x'"
    assert error.field == "[...][0].x"


class Urgent(Service):
    """Says how urgent its calls are."""

    name = "urgent"
    uses = ("urgent",)

    @handles
    async def priority(self) -> int:
        call = current_call()
        assert call is not None
        return call.priority

    @handles
    async def inner(self) -> int:
        return await self.call("urgent.priority")

    @streams
    async def priorities(self):
        call = current_call()
        assert call is not None
        yield call.priority


@pytest.mark.parametrize(("asked", "ceiling", "given"), [
    (None, 0, 5), (0, 0, 0), (9, 0, 9), (None, 3, 5), (0, 3, 3), (3, 3, 3), (None, 7, 7), (0, 7, 7), (8, 7, 8),
])  # fmt: skip
async def test_no_call_of_a_port_is_more_urgent_than_its_ceiling(asked, ceiling, given):
    async with TestKernel(Urgent) as system:
        port = system.kernel.port.narrow(caller="session s1", rights=Rights(), user="ana", top_priority=ceiling)
        for _ in range(2):  # the second one is bound already
            assert await port.call("urgent.priority", priority=asked) == given
            assert await port.call("urgent.inner", priority=asked) == given
            assert [each async for each in port.stream("urgent.priorities", priority=asked)] == [given]
        if asked is None:
            assert await port.method("urgent.priority")() == given


async def test_a_narrower_port_has_the_least_urgent_ceiling_of_all():
    async with TestKernel(Urgent) as system:
        port = system.kernel.port.narrow(caller="session s1", rights=Rights(), top_priority=6)
        for ceiling, given in ((0, 6), (4, 6), (8, 8)):
            narrower = port.narrow(caller="helper", rights=Rights(), top_priority=ceiling)
            assert await narrower.call("urgent.priority", priority=0) == given


async def test_a_port_that_was_narrowed_says_no_more_than_it_may_and_the_wider_one_does():
    async with TestKernel(Urgent) as system:
        rights = Rights(allow=(), publish=("colour.*",), subscribe=("sound.*",))
        port = system.kernel.port.narrow(caller="session s1", rights=rights)
        narrower = port.narrow(caller="helper", rights=Rights(publish=(">",), subscribe=("sound.loud",)))
        assert (port.may_publish("colour.red"), narrower.may_publish("colour.red")) == (True, True)
        assert (port.may_publish("sound.loud"), narrower.may_publish("sound.loud")) == (False, False)
        assert (port.may_hear("sound.low"), narrower.may_hear("sound.low")) == (True, False)
        assert not narrower.may_hear("sound.*")
        system.publish("sound.low")
