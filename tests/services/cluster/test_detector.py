"""How long a peer may take, and how far a node trusts itself."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from services.cluster.membership.detector import MOST_HEALTH, MOST_LAG, Health, RoundTrip

TIMES = st.lists(st.floats(0, 1000), max_size=30)
BOUNDS = (0.25, 0.2, 1.0)  # first, floor, ceiling


def trip(*seconds):
    each = RoundTrip()
    for one in seconds:
        each.took(one)
    return each


def test_the_first_round_trip_gives_the_mean_and_half_of_it_as_deviation():
    assert trip(0.4).timeout(9.0, 0.0, 99.0) == 0.4 + 4 * 0.2


def test_the_next_ones_move_the_mean_by_an_eighth_and_the_deviation_by_a_quarter():
    mean, deviation = 0.4, 0.2
    for seconds in (0.8, 0.1):
        deviation = 0.75 * deviation + 0.25 * abs(mean - seconds)
        mean = 0.875 * mean + 0.125 * seconds
    assert math.isclose(trip(0.4, 0.8, 0.1).timeout(9.0, 0.0, 99.0), mean + 4 * deviation)


def test_without_a_round_trip_the_first_time_to_wait_is_the_one_given():
    assert trip().timeout(*BOUNDS) == 0.25
    assert trip().mean is None


def test_a_steady_peer_is_given_the_floor_and_a_slow_one_the_ceiling():
    assert trip(*[0.001] * 50).timeout(*BOUNDS) == 0.2
    assert trip(*[3.0] * 50).timeout(*BOUNDS) == 1.0


def test_without_an_answer_the_time_doubles_until_one_comes():
    each = trip(*[0.001] * 50)
    each.missed()
    assert each.timeout(0.25, 0.2, 99.0) == 0.4
    each.missed()
    assert each.timeout(0.25, 0.2, 99.0) == 0.8
    assert each.usual(0.25, 0.2, 99.0) == 0.2
    each.took(0.001)
    assert each.timeout(0.25, 0.2, 99.0) == 0.2


@given(TIMES, st.integers(0, 100))
def test_the_time_to_wait_is_within_its_bounds_whatever_was_measured(seconds, missed):
    each = trip(*seconds)
    for _ in range(missed):
        each.missed()
    assert 0.2 <= each.usual(*BOUNDS) <= each.timeout(*BOUNDS) <= 1.0


@given(st.lists(st.one_of(st.just("better"), st.integers(0, 20), st.floats(0, 1e6))))
def test_health_stays_within_its_bounds(events):
    health = Health()
    for event in events:
        if event == "better":
            health.better()
        elif isinstance(event, int):
            health.worse(event)
        else:
            health.late(event)
        assert 1 <= health.multiplier <= MOST_HEALTH
        assert 0.0 <= health.lag <= MOST_LAG


def test_a_node_that_gets_well_trusts_itself_again():
    health = Health()
    health.worse(5)
    health.late(0.4)
    for _ in range(50):
        health.better()
    assert health.multiplier == 1
    assert health.lag < 0.01
