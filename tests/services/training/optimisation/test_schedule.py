"""The learning rate by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training.config import ScheduleConfig
from services.training.optimisation.schedule import rate_factor, warmup_steps

KINDS = st.sampled_from(["cosine", "linear", "constant"])


@pytest.mark.parametrize(("warmup", "steps", "expected"), [(0.03, 1000, 30), (7, 1000, 7), (7, 3, 3), (0.0, 10, 0)])
def test_a_warm_up_is_a_number_of_steps_or_a_part_of_all(warmup, steps, expected):
    assert warmup_steps(ScheduleConfig(warmup=warmup), steps) == expected


def test_the_rate_rises_evenly_to_its_height():
    schedule = ScheduleConfig(warmup=4)
    assert [rate_factor(schedule, step, 100) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


@given(decay=KINDS, warmup=st.floats(0, 50), steps=st.integers(2, 200), final=st.floats(0, 1))
def test_the_rate_stays_between_nothing_and_its_height(decay, warmup, steps, final):
    schedule = ScheduleConfig(decay=decay, warmup=warmup, final=final)
    assert all(0.0 <= rate_factor(schedule, step, steps) <= 1.0 for step in range(steps + 5))


@given(decay=st.sampled_from(["cosine", "linear"]), warmup=st.integers(1, 50), steps=st.integers(60, 200))
def test_behind_the_warm_up_the_rate_never_rises(decay, warmup, steps):
    schedule = ScheduleConfig(decay=decay, warmup=warmup)
    rates = [rate_factor(schedule, step, steps) for step in range(warmup - 1, steps + 3)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("decay", "last"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)])
def test_the_last_step_has_the_final_rate(decay, last):
    schedule = ScheduleConfig(decay=decay, warmup=5, final=0.1)
    assert rate_factor(schedule, 99, 100) == pytest.approx(last)


def test_a_cosine_is_half_way_down_in_the_middle():
    schedule = ScheduleConfig(decay="cosine", warmup=0, final=0.0)
    assert rate_factor(schedule, 49, 100) == pytest.approx(0.5)
