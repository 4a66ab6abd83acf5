"""Events from publishers to readers: the bus and its subscriptions."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import events as events_module
from microkernel.capability import Rights
from microkernel.errors import Gone, Invalid, Overloaded, PreconditionFailed
from microkernel.events import Bus, Overflow
from microkernel.rings import RingLimits
from microkernel.testing import TestKernel


async def turns(count=5):
    """Let everybody who can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def bodies(subscription, count):
    return [(await anext(subscription)).body for _ in range(count)]


async def test_a_reader_that_falls_behind_loses_the_oldest_events_and_the_loss_is_counted():
    bus = Bus()
    async with bus.subscribe("a", limit=3) as events:
        for number in range(10):
            bus.publish("a", number)
        assert await bodies(events, 3) == [7, 8, 9]
        assert events.dropped == 7


async def test_bytes_are_a_limit_too():
    bus = Bus()
    async with bus.subscribe("a", max_bytes=10) as events:
        for number in range(5):
            bus.publish("a", bytes([number]) * 4)
        assert events.pending == 2
        assert await bodies(events, 2) == [b"\3" * 4, b"\4" * 4]
        bus.publish("a", b"x" * 11)  # one always fits: it is there anyhow
        assert await bodies(events, 1) == [b"x" * 11]
        assert events.dropped == 3


async def test_bytes_that_were_read_make_room():
    bus = Bus()
    async with bus.subscribe("a", max_bytes=10) as events:
        bus.publish("a", "0000")
        for number in range(1, 5):
            bus.publish("a", str(number) * 6)
            assert len(await bodies(events, 1)) == 1
            bus.publish("a", str(number) * 4)
            assert len(await bodies(events, 1)) == 1
        assert events.dropped == 0


async def test_who_wants_the_latest_gets_the_newest_only():
    bus = Bus()
    async with bus.subscribe("a", overflow="latest") as events:
        for number in range(10):
            bus.publish("a", number)
        assert await bodies(events, 1) == [9]
        assert events.pending == 0
        assert events.dropped == 9


async def test_a_subscription_that_is_cut_gives_what_it_has_and_then_says_why():
    bus = Bus()
    async with bus.subscribe("a", limit=2, overflow=Overflow.CUT) as events, bus.subscribe("a") as other:
        for number in range(4):
            bus.publish("a", number)
        assert len(bus.subjects) == 1
        assert await bodies(events, 2) == [0, 1]
        for _ in range(2):
            with pytest.raises(Overloaded, match="the subscription to a fell behind: 2 events"):
                await anext(events)
        with pytest.raises(Overloaded):
            await events.take()
        assert await bodies(other, 4) == [0, 1, 2, 3]
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_what_is_published_without_waiting_cuts_who_was_promised_no_gap():
    bus = Bus()
    async with bus.subscribe("a", limit=2, overflow=Overflow.WAIT) as events:
        for number in range(3):
            bus.publish("a", number)
        assert await bodies(events, 2) == [0, 1]
        with pytest.raises(Overloaded):
            await anext(events)


async def test_a_closed_subscription_ends_its_reader():
    bus = Bus()
    events = bus.subscribe("a")
    reader = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    await events.aclose()
    with pytest.raises(StopAsyncIteration):
        await reader
    bus.publish("a", 1)
    assert len(bus.subjects) == 0


async def test_a_second_reader_of_one_subscription_is_told_and_the_first_goes_on():
    bus = Bus()
    async with bus.subscribe("a.>") as events:
        first = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        with pytest.raises(PreconditionFailed, match=r"somebody reads this subscription of a\.> already"):
            await anext(events)
        bus.publish("a.b", 1)
        assert (await first).body == 1
        bus.publish("a.b", 2)
        assert (await anext(events)).body == 2, "readers may take turns"


async def test_a_reader_that_is_cancelled_as_it_is_woken_leaves_the_event_to_the_next():
    bus = Bus()
    async with bus.subscribe("a") as events:
        reader = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        bus.publish("a", 1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await bodies(events, 1) == [1]


async def test_a_reader_that_is_cancelled_before_an_event_comes_does_not_keep_others_from_getting_it():
    bus = Bus()
    async with bus.subscribe("a") as events, bus.subscribe("a") as others:
        reader = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        reader.cancel()
        bus.publish("a", 1)
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert await bodies(events, 1) == await bodies(others, 1) == [1]


async def test_a_burst_is_taken_at_once_and_the_end_is_an_empty_one():
    bus = Bus()
    events = bus.subscribe("a")
    reader = asyncio.create_task(events.take())
    await asyncio.sleep(0)
    for number in range(5):
        bus.publish("a", number)
    assert [event.body for event in await reader] == [0, 1, 2, 3, 4]
    for number in range(5):
        bus.publish("a", number)
    assert [event.body for event in await events.take(2)] == [0, 1]
    await events.aclose()
    assert [event.body for event in await events.take()] == [2, 3, 4]
    assert await events.take() == []
    with pytest.raises(Invalid):
        await events.take(0)


async def test_offsets_count_all_events_of_the_node_also_those_that_nobody_hears():
    bus = Bus()
    async with bus.subscribe("b") as events:
        for subject in ("a", "b", "a", "b"):
            bus.publish(subject, None)
        assert [(await anext(events)).offset for _ in range(2)] == [2, 4]
    assert bus.offset == 4


async def test_a_subscription_that_comes_or_goes_is_heard_of_at_once():
    bus = Bus()
    async with bus.subscribe("a.b") as first:
        bus.publish("a.b", 1)
        async with bus.subscribe("a.*") as second:
            bus.publish("a.b", 2)
            assert await bodies(second, 1) == [2]
        bus.publish("a.b", 3)
        assert await bodies(first, 3) == [1, 2, 3]
        assert second.pending == 0


async def test_however_many_subjects_there_are_few_are_remembered(monkeypatch):
    monkeypatch.setattr(events_module, "MAX_ROUTES", 8)
    bus = Bus()
    async with bus.subscribe("a.>") as events:
        for number in range(100):
            bus.publish(f"a.{number}", number)
            assert len(bus._routes) <= 8
        assert events.pending == 100


async def test_a_node_takes_so_many_subscriptions_and_no_more(monkeypatch):
    monkeypatch.setattr(events_module, "MAX_SUBSCRIPTIONS", 2)
    bus = Bus()
    async with bus.subscribe("a"), bus.subscribe("b"):
        with pytest.raises(Overloaded, match="has 2 subscriptions") as refused:
            bus.subscribe("c")
        assert refused.value.retry_after is not None
    bus.subscribe("c").close()


# Queue groups


async def test_an_event_for_a_group_goes_to_a_member_with_room_before_one_loses_an_event():
    bus = Bus()
    async with bus.subscribe("a", group="g", limit=1) as small, bus.subscribe("a", group="g", limit=10) as large:
        for number in range(8):
            bus.publish("a", number)
        assert (small.pending, large.pending) == (1, 7)
        assert small.dropped == large.dropped == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40))
def test_members_that_keep_up_get_equal_shares(count, published):
    async def share():
        bus = Bus()
        members = [bus.subscribe("a", group="g") for _ in range(count)]
        for number in range(published):
            bus.publish("a", number)
        shares = [member.pending for member in members]
        assert sum(shares) == published
        assert max(shares) - min(shares) <= 1

    asyncio.run(share())


async def test_groups_of_different_owners_each_get_the_event():
    bus = Bus()
    with_owners = [bus.subscribe("a", group="g", owner=owner) for owner in ("ana", "ana", "ben")]
    bus.publish("a", 1)
    assert sorted(subscription.pending for subscription in with_owners) == [0, 1, 1]
    assert with_owners[2].pending == 1


async def test_users_of_a_node_do_not_share_a_group_by_its_name():
    async with TestKernel() as system:
        ports = [
            system.kernel.port.narrow(caller=f"session {n}", rights=Rights(), user=n) for n in ("ana", "ana", "ben")
        ]
        subscriptions = [port.subscribe("colour.*", group="g") for port in ports]
        system.publish("colour.red")
        assert [subscription.pending for subscription in subscriptions] in ([1, 0, 1], [0, 1, 1])


# Replay


async def test_a_late_comer_gets_the_past_and_then_the_present_without_a_gap():
    bus = Bus([RingLimits("a.>")])
    for number in range(1, 6):
        bus.publish("a.b", number)
    async with bus.subscribe("a.*", since=2) as events:
        bus.publish("a.b", 6)
        assert await bodies(events, 4) == [3, 4, 5, 6]
        bus.publish("a.b", 7)
        assert await bodies(events, 1) == [7]


async def test_once_the_past_is_read_the_limit_holds_again():
    bus = Bus([RingLimits("a")])
    for number in range(5):
        bus.publish("a", number)
    async with bus.subscribe("a", since=0, limit=2) as events:
        assert await bodies(events, 5) == [0, 1, 2, 3, 4]
        reader = asyncio.create_task(anext(events))
        await turns()
        bus.publish("a", 5)
        assert (await reader).body == 5
        for number in range(6, 9):
            bus.publish("a", number)
        assert await bodies(events, 2) == [7, 8]


async def test_who_has_seen_all_gets_only_what_is_new():
    bus = Bus([RingLimits("a.>")])
    bus.publish("a.b", 1)
    async with bus.subscribe("a.>", since=bus.offset) as events:
        assert events.pending == 0
        bus.publish("a.b", 2)
        assert await bodies(events, 1) == [2]


async def test_what_is_gone_is_said_and_no_subscription_is_left():
    bus = Bus([RingLimits("a", events=2)])
    for number in range(5):
        bus.publish("a", number)
    with pytest.raises(Gone, match="the oldest kept is 4"):
        bus.subscribe("a", since=2)
    with pytest.raises(Gone, match="not of this epoch"):
        bus.subscribe("a", since=6)
    with pytest.raises(PreconditionFailed):
        bus.subscribe("b", since=0)
    with pytest.raises(Invalid, match="members of a group"):
        bus.subscribe("a", since=5, group="g")
    assert len(bus.subjects) == 0


async def test_a_ring_of_no_events_keeps_none():
    bus = Bus([RingLimits("a", events=0)])
    with pytest.raises(PreconditionFailed):
        bus.subscribe("a", since=0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["a.b", "a.c", "other"]), max_size=30),
    st.lists(st.sampled_from(["a.b", "a.c", "other"]), max_size=30),
    st.integers(1, 10),
    st.integers(0, 30),
    st.sampled_from(["a.b", "a.*", "a.>"]),
)
def test_replay_and_present_together_are_the_log_of_all_events(past, present, kept, since, pattern):
    async def follow():
        bus = Bus([RingLimits("a.>", events=kept)])
        log = [*enumerate([*past, *present], 1)]
        for subject in past:
            bus.publish(subject, None)
        in_ring = [offset for offset, subject in log[: len(past)] if subject != "other"]
        lost = in_ring[-kept - 1] if len(in_ring) > kept else 0
        if since > len(past) or since < lost:
            with pytest.raises(Gone):
                bus.subscribe(pattern, since=since)
            return
        async with bus.subscribe(pattern, since=since) as events:
            for subject in present:
                bus.publish(subject, None)
            wanted = [
                offset
                for offset, subject in log
                if offset > since and subject != "other" and (pattern != "a.b" or subject == "a.b")
            ]
            assert [(await anext(events)).offset for _ in range(events.pending)] == wanted

    asyncio.run(follow())
