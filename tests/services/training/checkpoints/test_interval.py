from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.training.checkpoints.interval import LOSS, Costs, Faults, best_seconds, interval_steps, lost_share

seconds = st.floats(1e-4, 1e4)


@given(seconds, st.floats(1e5, 1e7))
def test_where_faults_are_rare_it_is_youngs_rule(cost, between):
    assert best_seconds(cost, between * 100) == pytest.approx(math.sqrt(2 * cost * between * 100), rel=0.05)


def test_dalys_example_comes_out():
    # A checkpoint of 5 minutes and a fault in 6 hours: his equation 37, in minutes.
    part = 5 / (2 * 360)
    expected = math.sqrt(2 * 5 * 360) * (1 + math.sqrt(part) / 3 + part / 9) - 5
    assert best_seconds(300, 21_600) == pytest.approx(60 * expected)


def test_a_checkpoint_that_costs_more_than_a_fault_is_as_rare_as_faults():
    assert best_seconds(1000, 400) == 400


@given(seconds, st.floats(1e-3, 10), st.floats(0, 100), st.integers(0, 100), st.floats(0, 1e7))
def test_no_neighbouring_interval_loses_much_less(step, blocked, slowed, seen, hours):
    costs, faults = Costs(step=step, blocked=blocked, written=0.0, slowed=slowed), Faults(seen, hours)
    if costs.cost > faults.between / 100:
        return  # of faults that are as frequent as checkpoints the share below knows too little
    best = best_seconds(costs.cost, faults.between)
    least = min(lost_share(costs, faults, best * factor) for factor in (0.5, 0.8, 1.25, 2.0))
    assert lost_share(costs, faults, best) < least * 1.01


@given(seconds, st.floats(0, 100), st.floats(0, 1e4), st.integers(0, 1000), st.floats(0, 1e7))
def test_checkpoints_never_cost_more_than_was_said(step, blocked, written, seen, hours):
    costs = Costs(step=step, blocked=blocked, written=written)
    steps = interval_steps(costs, Faults(seen, hours))
    assert costs.cost <= LOSS * steps * step * (1 + 1e-9)


@given(seconds, seconds, st.floats(0, 1e4))
def test_one_is_written_before_the_next_begins(step, blocked, written):
    assert interval_steps(Costs(step=step, blocked=blocked, written=written), Faults()) * step >= written * (1 - 1e-9)


@given(st.floats(1e-3, 1), st.floats(1e-4, 1))
def test_no_fault_takes_more_work_than_was_said(step, blocked):
    assert interval_steps(Costs(step=step, blocked=blocked, written=1.0), Faults(0, 1e9)) * step <= 1800 + step


def test_faults_that_were_seen_make_checkpoints_more_frequent():
    costs = Costs(step=0.1, blocked=0.01, written=1.0)
    assert interval_steps(costs, Faults(20, 3600)) < interval_steps(costs, Faults(0, 3600))


def test_without_faults_one_a_day_is_expected_at_first_and_less_with_time():
    assert Faults().between == 86_400
    assert Faults(0, 86_400).between == 2 * 86_400


@pytest.mark.parametrize("costs", [Costs(0, 1, 1), Costs(1, -1, 1), Costs(1, 1, math.nan), Costs(1, math.inf, 1)])
def test_costs_that_are_none_are_refused(costs):
    with pytest.raises(Invalid):
        interval_steps(costs, Faults())
