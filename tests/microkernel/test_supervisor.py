"""Who is restarted, when and how often: events in, decisions out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.service import Restart
from microkernel.supervisor import (
    Child,
    Ignore,
    Quarantine,
    RestartAll,
    Strategy,
    Supervisor,
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


def test_temporary_services_are_never_restarted_and_transient_ones_after_a_crash():
    made = Supervisor()
    made.add(Child("temporary", restart=Restart.TEMPORARY))
    made.add(Child("transient", restart=Restart.TRANSIENT))
    made.add(Child("permanent"))
    assert made.crashed("temporary", "why", now=0.0) == Ignore("temporary")
    assert isinstance(made.crashed("transient", "why", now=0.0), RestartAll)
    assert isinstance(made.crashed("permanent", "why", now=0.0), RestartAll)


def test_who_is_left_stopped_is_passed_by_when_others_are_restarted():
    made = Supervisor()
    for child in [Child("a"), Child("b", ("a",), Restart.TEMPORARY), Child("c", ("a",))]:
        made.add(child)
    made.crashed("b", "why", now=0.0)
    assert made.crashed("a", "why", now=0.0).names == ("a", "c")
    assert made.revive("a") == ("a", "c")
    assert made.revive("b") == ("b",), "by its own name it is restarted"
    assert made.revive("a") == ("a", "b", "c")


def test_a_quarantine_by_hand_lifted_lifts_that_of_those_that_were_stopped_with_it():
    made = supervisor(intensity=0)
    assert made.crashed("b", "why", now=0.0) == Quarantine(("b", "c"), "crashed 1 times in a row, last: why")
    assert made.revive("a") == ("a",)
    assert made.revive("b") == ("b", "c")
    made.crashed("c", "why", now=1.0)
    made.crashed("a", "why", now=2.0)
    assert made.revive("a") == ("a", "b"), "c is down for what it did itself"


NAMES = [f"s{number}" for number in range(5)]
EVENTS = st.one_of(
    st.tuples(st.just("crash"), st.sampled_from(NAMES), st.booleans(), st.floats(0, 20)),
    st.tuples(st.sampled_from(["revive", "started"]), st.sampled_from(NAMES)),
)


@given(
    st.sampled_from(list(Strategy)),
    st.lists(st.tuples(st.sets(st.integers(0, 4)), st.sampled_from(list(Restart))), min_size=5, max_size=5),
    st.lists(EVENTS, max_size=30),
)
def test_no_restart_touches_a_service_that_was_left_stopped_until_it_is_revived(strategy, made_of, events):
    made = Supervisor(strategy=strategy, intensity=1, chance=random.Random(1))
    for number, (needs, restart) in enumerate(made_of):
        made.add(Child(NAMES[number], tuple(NAMES[need] for need in needs if need < number), restart))
    now, stopped = 0.0, set()
    for event, name, *more in events:
        if event == "started":
            made.started(name)
        elif event == "revive":
            revived = made.revive(name)
            assert revived[0] == name or name in revived
            stopped = {each for each in NAMES if made.is_down(each)}
            assert not stopped.intersection(revived)
        elif name not in stopped:  # who is stopped cannot crash
            now += more[1]
            match made.crashed(name, "why", now=now, starting=more[0]):
                case RestartAll(names, delay):
                    assert name in names
                    assert not stopped.intersection(names)
                    assert 0 < delay <= 15.0
                case Quarantine(names, _):
                    assert name in names
                    assert not stopped.intersection(names)
                    stopped.update(names)
                case Ignore(ignored):
                    stopped.add(ignored)
        assert stopped == {each for each in NAMES if made.is_down(each)}
