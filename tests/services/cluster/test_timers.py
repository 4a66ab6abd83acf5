"""What is due when."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from services.cluster.membership.timers import SPARE, Timers

KEYS = st.sampled_from("abcde")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.integers(0, 20)),
        st.tuples(st.just("drop"), KEYS, st.just(0)),
        st.tuples(st.just("due"), st.just(""), st.integers(0, 20)),
    ),
    max_size=60,
)


@given(STEPS)
def test_each_is_done_at_the_time_it_was_set_to_last_and_once(steps):
    timers, model = Timers(), {}
    for step, key, when in steps:
        if step == "set":
            timers.set(key, float(when))
            model[key] = float(when)
        elif step == "drop":
            timers.drop(key)
            model.pop(key, None)
        else:
            done = list(timers.due(float(when)))
            assert sorted(done) == sorted(each for each, at in model.items() if at <= when)
            times = [model.pop(each) for each in done]
            assert times == sorted(times)
        assert timers.first() == min(model.values(), default=math.inf)
        assert len(timers) == len(model)
        assert all((each in timers) == (each in model) for each in "abcde")


def test_they_come_in_the_order_of_their_times():
    timers = Timers()
    for key, when in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("late", 9.0)):
        timers.set(key, when)
    assert list(timers.due(5.0)) == ["a", "b", "c"]


def test_what_is_set_for_now_while_others_are_done_comes_too():
    timers = Timers()
    timers.set("first", 1.0)
    seen = []
    for key in timers.due(2.0):
        seen.append(key)
        if key == "first":
            timers.set("second", 1.5)
    assert seen == ["first", "second"]


def test_one_that_is_moved_for_ever_takes_no_more_room():
    timers = Timers()
    for place in range(10_000):
        timers.set("a", float(place))
    assert len(timers._heap) <= 2 + SPARE + 1
