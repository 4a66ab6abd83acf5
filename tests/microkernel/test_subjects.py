"""Which subscriptions match a subject."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid, PreconditionFailed
from microkernel.events import Bus
from microkernel.subjects import Subjects, check_pattern, check_subject

names = st.sampled_from(["a", "b", "c"])
subjects = st.lists(names, min_size=1, max_size=4)
patterns = st.tuples(st.lists(st.one_of(names, st.just("*")), max_size=4), st.booleans()).filter(
    lambda pattern: pattern[0] or pattern[1]
)


def matches(pattern, subject):
    """The rule, written as plainly as it can be."""
    if pattern and pattern[-1] == ">":
        return len(subject) >= len(pattern) and matches(pattern[:-1], subject[: len(pattern) - 1])
    return len(pattern) == len(subject) and all(p in {"*", s} for p, s in zip(pattern, subject, strict=True))


@given(st.lists(patterns, max_size=12), subjects, st.sets(st.integers(0, 11)))
def test_matching_follows_the_rule_whatever_was_added_and_removed(raw, subject, removed):
    trie: Subjects[int] = Subjects()
    wanted = set()
    for number, (head, rest) in enumerate(raw):
        pattern = [*head, ">"] if rest else head
        subscription = trie.add(".".join(pattern), number)
        if number in removed:
            trie.remove(subscription)
            trie.remove(subscription)
        elif matches(pattern, subject):
            wanted.add(number)
    found = trie.match(".".join(subject))
    assert sorted(found) == sorted(wanted)


@given(st.lists(patterns, max_size=12))
def test_nothing_is_left_of_subscriptions_taken_back(raw):
    trie: Subjects[int] = Subjects()
    taken = [trie.add(".".join([*head, ">"] if rest else head), 0) for head, rest in raw]
    for number in taken:
        trie.remove(number)
    assert len(trie) == 0
    assert not trie._root.children


def test_nothing_is_left_of_a_group_whose_last_member_has_gone():
    trie: Subjects[str] = Subjects()
    first, second = (trie.add(pattern, "member", group="workers") for pattern in ("work.*", "work.>"))
    trie.match("work.do")
    trie.remove(first)
    assert trie.match("work.do") == ["member"]
    trie.remove(second)
    trie.remove(second)
    assert not trie._groups


def test_of_a_group_one_member_gets_each_event_in_turn():
    trie: Subjects[str] = Subjects()
    for name in ("first", "second", "third"):
        trie.add("work.*", name, group="workers")
    trie.add("work.>", "witness")
    got = [trie.match("work.do") for _ in range(6)]
    assert all("witness" in each and len(each) == 2 for each in got)
    assert [each[1] for each in got] == ["first", "second", "third"] * 2


@pytest.mark.parametrize("subject", ["", ".", "a.", ".a", "a..b", "a.*", ">", "a b", "x" * 300, ".".join("a" * 17)])
def test_what_is_no_subject_is_refused(subject):
    with pytest.raises(Invalid):
        check_subject(subject)


@pytest.mark.parametrize("pattern", ["", "a.>.b", "a.**", "a.b*"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(Invalid):
        check_pattern(pattern)


async def test_a_reader_that_falls_behind_loses_the_oldest_events_and_the_loss_is_counted():
    bus = Bus()
    async with bus.subscribe("a", limit=3) as events:
        for number in range(10):
            bus.publish("a", number)
        assert [(await anext(events)).body for _ in range(3)] == [7, 8, 9]
        assert events.dropped == 7


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
