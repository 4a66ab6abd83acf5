"""Publishers that wait for their readers: in order, none lost, none twice, none stuck."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import events as events_module
from microkernel.capability import Rights
from microkernel.errors import DeadlineExceeded, Denied, Invalid, Overloaded
from microkernel.events import Bus, Overflow
from microkernel.testing import TestKernel


async def turns(count=5):
    """Let everybody who can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def bodies(subscription, count):
    return [(await anext(subscription)).body for _ in range(count)]


async def test_a_port_delivers_only_what_it_may_publish():
    async with TestKernel() as system:
        port = system.kernel.port.narrow(caller="session s", rights=Rights())
        async with system.subscribe("colour.*") as events, system.subscribe("kernel.*") as secret:
            with pytest.raises(Denied):
                await port.deliver("kernel.shutdown")
            with pytest.raises(Invalid, match="deadline"):
                await port.deliver("colour.red", deadline=-1.0)
            await port.deliver("colour.red", n=1)
            assert await bodies(events, 1) == [{"n": 1}]
            assert secret.pending == 0


async def test_a_delivery_waits_until_there_is_room_and_reaches_all_at_once():
    bus = Bus()
    async with bus.subscribe("a", limit=1, overflow=Overflow.WAIT) as slow, bus.subscribe("a") as other:
        await bus.deliver("a", 1)
        second = asyncio.create_task(bus.deliver("a", 2))
        await turns()
        assert not second.done()
        assert (slow.pending, other.pending) == (1, 1)
        assert await bodies(slow, 1) == [1]
        await second
        assert (slow.pending, other.pending) == (1, 2)


async def test_nothing_is_delivered_by_a_publisher_whose_time_ran_out():
    bus = Bus()
    async with bus.subscribe("a.>", limit=1, overflow=Overflow.WAIT) as slow, bus.subscribe("a.b") as other:
        await bus.deliver("a.b", 1)
        with pytest.raises(DeadlineExceeded, match=r"the subscription to a\.> had no room for a\.b within") as late:
            await bus.deliver("a.b", 2, patience=0.01)
        assert late.value.may_have_run is False
        assert (slow.pending, other.pending, bus.offset) == (1, 1, 1)
        await bodies(slow, 1)
        await bus.deliver("a.b", 3)
        assert await bodies(slow, 1) == [3]


async def test_publishers_get_room_in_the_order_in_which_they_came():
    bus = Bus()
    async with bus.subscribe("a", limit=1, overflow=Overflow.WAIT) as slow:
        publishers = [asyncio.create_task(bus.deliver("a", number)) for number in range(10)]
        await turns()
        got = await bodies(slow, 4)
        publishers.append(asyncio.create_task(bus.deliver("a", 10)))
        assert got + await bodies(slow, 7) == list(range(11))
        await asyncio.gather(*publishers)


async def test_a_publisher_that_is_cancelled_as_it_is_woken_leaves_its_room_to_the_next():
    bus = Bus()
    async with bus.subscribe("a", limit=1, overflow=Overflow.WAIT) as slow:
        await bus.deliver("a", 1)
        first, second = (asyncio.create_task(bus.deliver("a", number)) for number in (2, 3))
        await turns()
        assert await bodies(slow, 1) == [1]
        first.cancel()
        await second
        assert await bodies(slow, 1) == [3]
        assert first.cancelled()


async def test_a_publisher_woken_at_one_reader_that_must_wait_at_another_lets_the_next_have_the_room():
    bus = Bus()
    async with (
        bus.subscribe("a.>", limit=1, overflow=Overflow.WAIT) as one,
        bus.subscribe("a.b", limit=1, overflow=Overflow.WAIT) as two,
    ):
        await bus.deliver("a.b", 1)
        both, single = asyncio.create_task(bus.deliver("a.b", 2)), asyncio.create_task(bus.deliver("a.c", 3))
        await turns()
        assert await bodies(one, 1) == [1]  # `both` is woken, and has to wait at `two`
        await single
        assert await bodies(one, 1) == [3]
        assert await bodies(two, 1) == [1]
        await both
        assert (one.pending, two.pending) == (1, 1)


async def test_a_large_event_that_is_read_makes_room_for_several_publishers():
    bus = Bus()
    async with bus.subscribe("a", max_bytes=4, overflow=Overflow.WAIT) as slow:
        await bus.deliver("a", b"long")
        publishers = [asyncio.create_task(bus.deliver("a", body)) for body in (b"x", b"y")]
        await turns()
        assert await bodies(slow, 1) == [b"long"]
        await asyncio.gather(*publishers)
        assert await bodies(slow, 2) == [b"x", b"y"]


async def test_publishers_that_wait_do_not_keep_each_other_awake(monkeypatch):
    bus = Bus()
    waits: list[object] = []
    wait_at = bus._wait_at
    monkeypatch.setattr(bus, "_wait_at", lambda *of: waits.append(of) or wait_at(*of))
    async with bus.subscribe("a", max_bytes=4, overflow=Overflow.WAIT) as slow:
        await bus.deliver("a", b"x")
        await bus.deliver("a", b"yy")
        publishers = [asyncio.create_task(bus.deliver("a", body)) for body in (b"long", b"next")]
        await turns()
        assert await bodies(slow, 1) == [b"x"]
        await turns(100)
        assert len(waits) <= 4
        assert await bodies(slow, 3) == [b"yy", b"long", b"next"]
        await asyncio.gather(*publishers)


async def test_a_large_event_that_waits_is_not_overtaken_by_small_ones():
    bus = Bus()
    async with bus.subscribe("a", max_bytes=4, overflow=Overflow.WAIT) as slow:
        for _ in range(4):
            await bus.deliver("a", b"x")
        publishers = [asyncio.create_task(bus.deliver("a", body)) for body in (b"large", b"y")]
        await turns()
        assert await bodies(slow, 3) == [b"x"] * 3
        await turns()
        assert slow.pending == 1
        assert await bodies(slow, 3) == [b"x", b"large", b"y"]
        await asyncio.gather(*publishers)


async def test_a_reader_that_leaves_lets_its_publishers_go_on():
    bus = Bus()
    slow = bus.subscribe("a", limit=1, overflow=Overflow.WAIT)
    await bus.deliver("a", 1)
    waiting = [asyncio.create_task(bus.deliver("a", number)) for number in (2, 3)]
    await turns()
    await slow.aclose()
    await asyncio.gather(*waiting)
    assert bus.offset == 3


async def test_publishers_of_a_group_wait_for_any_member():
    bus = Bus()
    async with (
        bus.subscribe("a", group="g", limit=1, overflow=Overflow.WAIT) as one,
        bus.subscribe("a", group="g", limit=1, overflow=Overflow.WAIT) as two,
    ):
        await bus.deliver("a", 1)
        await bus.deliver("a", 2)
        third = asyncio.create_task(bus.deliver("a", 3))
        await turns()
        assert not third.done()
        assert await bodies(two, 1) == [2]
        await third
        assert await bodies(one, 1) + await bodies(two, 1) == [1, 3]


async def test_only_so_many_publishers_wait(monkeypatch):
    monkeypatch.setattr(events_module, "MAX_PUBLISHERS", 2)
    bus = Bus()
    async with bus.subscribe("a", limit=1, overflow=Overflow.WAIT) as slow:
        await bus.deliver("a", 0)
        waiting = [asyncio.create_task(bus.deliver("a", number)) for number in (1, 2)]
        await turns()
        with pytest.raises(Overloaded, match="2 publishers wait") as refused:
            await bus.deliver("a", 3)
        assert refused.value.retry_after is not None
        assert await bodies(slow, 3) == [0, 1, 2]
        await asyncio.gather(*waiting)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("pppprrc"), max_size=60), st.integers(1, 3), st.integers(1, 3))
def test_whatever_publishers_readers_and_cancellations_do_nothing_is_lost_doubled_or_stuck(steps, limit, readers):
    async def play():
        bus = Bus()
        subscriptions = [
            bus.subscribe(pattern, limit=limit, max_bytes=6, overflow=Overflow.WAIT)
            for pattern in ("a.*", "a.b", "a.>")[:readers]
        ]
        got: list[list[str]] = [[] for _ in subscriptions]
        publishers: list[asyncio.Task[None]] = []
        for step, what in enumerate(steps):
            if what == "p":
                publishers.append(asyncio.create_task(bus.deliver("a.b", f"{step:02}" + "." * (step % 6))))
            elif what == "c" and publishers:
                publishers[step % len(publishers)].cancel()
            elif what == "r":
                where = step % readers
                if subscriptions[where].pending:
                    got[where] += await bodies(subscriptions[where], 1)
            if step % 3:
                await turns(1)
        while not all(publisher.done() for publisher in publishers):
            before = bus.offset, [len(each) for each in got]
            for where, subscription in enumerate(subscriptions):
                while subscription.pending:
                    got[where] += await bodies(subscription, 1)
            await turns()
            assert before != (bus.offset, [len(each) for each in got]), "somebody is stuck"
        for where, subscription in enumerate(subscriptions):
            got[where] += await bodies(subscription, subscription.pending)
        assert all(each == got[0] for each in got)
        assert max(Counter(got[0]).values(), default=1) == 1
        ended_well = sum(not publisher.cancelled() for publisher in publishers)
        assert len(got[0]) == bus.offset == ended_well
        assert got[0] == sorted(got[0])
        assert not any(subscription._backlog.publishers for subscription in subscriptions)

    asyncio.run(play())
