"""Who is restarted, when and how often: events in, decisions out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid
from microkernel.service import Restart
from microkernel.supervisor import (
    Child,
    Ignore,
    Quarantine,
    RestartAll,
    Strategy,
    Supervisor,
    start_order,
)


def supervisor(strategy=Strategy.REST_FOR_ONE, **options):
    made = Supervisor(strategy=strategy, chance=random.Random(1), **options)
    for child in [Child("a"), Child("b", ("a",)), Child("c", ("b",)), Child("d")]:
        made.add(child)
    return made


@pytest.mark.parametrize(
    ("strategy", "names"),
    [
        (Strategy.ONE_FOR_ONE, ("b",)),
        (Strategy.REST_FOR_ONE, ("b", "c")),
        (Strategy.ONE_FOR_ALL, ("a", "b", "c", "d")),
    ],
)
def test_the_strategy_says_who_is_restarted_with_a_crashed_service(strategy, names):
    decision = supervisor(strategy).crashed("b", "why", now=0.0)
    assert isinstance(decision, RestartAll)
    assert decision.names == names


def test_crashes_past_the_intensity_within_the_period_quarantine_the_subtree():
    made = supervisor(intensity=3, period=30.0)
    assert all(isinstance(made.crashed("b", "why", now=now), RestartAll) for now in (0.0, 1.0, 2.0))
    decision = made.crashed("b", "the last straw", now=3.0)
    assert isinstance(decision, Quarantine)
    assert decision.names == ("b", "c")
    assert "the last straw" in decision.why


def test_crashes_that_are_far_apart_are_forgiven():
    made = supervisor(intensity=3, period=30.0)
    assert all(isinstance(made.crashed("b", "why", now=now * 31.0), RestartAll) for now in range(50))


def test_starts_that_fail_in_a_row_are_counted_however_long_each_takes():
    made = supervisor(intensity=3, period=30.0)
    decisions = [made.crashed("b", "why", now=now * 100.0, starting=True) for now in range(4)]
    assert [type(decision) for decision in decisions] == [RestartAll, RestartAll, RestartAll, Quarantine]


def test_a_start_that_succeeds_ends_the_row():
    made = supervisor(intensity=3, period=30.0)
    for now in range(20):
        assert isinstance(made.crashed("b", "why", now=now * 100.0, starting=True), RestartAll)
        made.started("b")


def test_a_restart_by_hand_begins_the_count_anew():
    made = supervisor(intensity=1)
    made.crashed("b", "why", now=0.0)
    made.forgive("b")
    assert isinstance(made.crashed("b", "why", now=0.1), RestartAll)


def test_the_delay_grows_and_has_an_end():
    made = supervisor(intensity=100, period=1e9)
    delays = [made.crashed("d", "why", now=float(now)).delay for now in range(20)]
    assert delays[0] < 0.2
    assert delays[5] > delays[0] * 4
    assert max(delays) <= 15.0


def test_temporary_services_are_never_and_transient_ones_only_after_a_crash_restarted():
    made = Supervisor()
    made.add(Child("temporary", restart=Restart.TEMPORARY))
    made.add(Child("transient", restart=Restart.TRANSIENT))
    made.add(Child("permanent"))
    assert made.crashed("temporary", "why", now=0.0) == Ignore("temporary")
    assert isinstance(made.crashed("transient", "why", now=0.0), RestartAll)
    assert made.ended("transient", now=0.0) == Ignore("transient")
    assert isinstance(made.ended("permanent", now=0.0), RestartAll)


def test_a_circle_is_shown():
    with pytest.raises(Invalid, match="a → b → c → a"):
        start_order({"a": ["b"], "b": ["c"], "c": ["a"]})


@given(st.integers(1, 12), st.data())
def test_every_service_comes_after_what_it_needs(count, data):
    needs = {
        f"s{number}": data.draw(st.lists(st.sampled_from([f"s{lower}" for lower in range(number)]), max_size=4))
        if number
        else []
        for number in range(count)
    }
    order = start_order(needs)
    assert sorted(order) == sorted(needs)
    for name, needed in needs.items():
        assert all(order.index(need) < order.index(name) for need in needed)
