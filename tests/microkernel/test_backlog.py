"""What becomes of events when their reader falls behind: each policy against a model."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.backlog import Backlog, Overflow, overflow_of, size_of
from microkernel.errors import Invalid, Overloaded
from microkernel.events import Event

bodies = st.one_of(
    st.binary(max_size=6), st.text(max_size=6), st.binary(max_size=6).map(msgspec.Raw), st.just({"a": 1})
)
# what is done, in order: an event comes, or the reader takes so many
steps = st.lists(st.one_of(bodies, st.integers(1, 4)), max_size=40)


def fits(waiting, body, limit, max_bytes):
    sizes = sum(size_of(each) for each in waiting)
    return not waiting or (len(waiting) < limit and sizes + size_of(body) <= max_bytes)


@given(steps, st.integers(1, 5), st.integers(1, 12), st.sampled_from(Overflow))
def test_a_backlog_does_what_its_policy_says(steps, limit, max_bytes, overflow):
    backlog = Backlog("a.>", limit, max_bytes, overflow)
    limit = 1 if overflow is Overflow.LATEST else limit
    waiting, dropped, cut = [], 0, False
    for offset, step in enumerate(steps, 1):
        if isinstance(step, int):
            taken = [event.body for event in backlog.take(step)]
            assert taken == waiting[:step]
            del waiting[:step]
            continue
        if cut:
            continue  # the bus delivers no more
        backlog.put(Event("a.b", step, offset), size_of(step))
        if not fits(waiting, step, limit, max_bytes) and overflow in {Overflow.CUT, Overflow.WAIT}:
            cut = True
        else:
            while not fits(waiting, step, limit, max_bytes):
                waiting.pop(0)
                dropped += 1
            waiting.append(step)
        assert [event.body for event in backlog.events] == waiting
        assert (backlog.dropped, backlog.cut is not None) == (dropped, cut)
        assert backlog.bytes == sum(size_of(body) for body in waiting)
        assert len(waiting) <= limit
        assert backlog.bytes <= max_bytes or len(waiting) == 1


@given(st.lists(bodies, max_size=20), st.lists(bodies, max_size=20), st.integers(1, 5), st.integers(1, 12))
def test_what_is_replayed_leaves_as_much_room_as_there_is_without_it(past, live, limit, max_bytes):
    backlog, fresh = (Backlog("a.>", limit, max_bytes, Overflow.CUT) for _ in range(2))
    backlog.replay([Event("a.b", body, offset) for offset, body in enumerate(past, 1)])
    for offset, body in enumerate(live, 100):
        if fresh.cut is None:
            fresh.put(Event("a.b", body, offset), size_of(body))
            backlog.put(Event("a.b", body, offset), size_of(body))
    # An event that is larger than the limit fits an empty backlog only, and one with a past is not empty.
    if all(size_of(body) <= max_bytes for body in live):
        assert (backlog.cut is None) == (fresh.cut is None)
        assert [event.body for event in backlog.take(100)] == past + [event.body for event in fresh.events]
    backlog.take(100)
    backlog.emptied()
    assert (backlog.limit, backlog.max_bytes, backlog.bytes) == (limit, max_bytes, 0)


def test_only_the_newest_of_the_past_is_replayed_to_who_wants_the_latest():
    backlog = Backlog("a", 10, 100, Overflow.LATEST)
    backlog.replay([Event("a", number, number) for number in (1, 2, 3)])
    assert [event.body for event in backlog.take(10)] == [3]
    assert backlog.dropped == 2


def test_who_is_cut_is_told_the_numbers():
    backlog = Backlog("a.>", 2, 100, Overflow.CUT)
    for offset in (1, 2, 3):
        backlog.put(Event("a.b", b"four", offset), 4)
    failure = backlog.failure()
    assert isinstance(failure, Overloaded)
    assert str(failure).startswith(
        "the subscription to a.> fell behind: 2 events and 8 bytes wait, its limits are 2 and 100"
    )
    assert failure.retry_after is not None


def test_a_policy_that_there_is_not_is_refused_with_those_that_there_are():
    with pytest.raises(Invalid, match=r"no overflow policy is named 'drop'.*wait, drop_oldest, latest, cut"):
        overflow_of("drop")
    assert overflow_of("latest") is Overflow.LATEST


@pytest.mark.parametrize(("limit", "max_bytes"), [(0, 1), (1, 0), (-1, 5)])
def test_a_backlog_that_could_hold_nothing_is_refused(limit, max_bytes):
    with pytest.raises(Invalid, match="at least 1 event and 1 byte"):
        Backlog("a", limit, max_bytes, Overflow.CUT)
