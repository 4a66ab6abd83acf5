"""How much of a prompt a step reads beside those that decode follows what steps take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.pace import LEAST, Pace

WHOLE = 512


def paced(*, slowdown: float = 2.0, alone: float = 0.020, token: float = 0.0005, decoding: int = 8) -> Pace:
    """One that has seen many steps of a machine on which steps take that long."""
    pace = Pace(slowdown)
    for _ in range(50):
        pace.note(decoding, 0, alone)
        reading = pace.budget(decoding, WHOLE)
        pace.note(decoding, reading, alone + token * reading)
    return pace


def test_a_prompt_is_read_at_once_where_nobody_would_wait():
    assert Pace(2.0).budget(0, WHOLE) == WHOLE
    assert paced().budget(0, WHOLE) == WHOLE


@pytest.mark.parametrize("slowdown", [1.5, 2.0, 3.0])
def test_a_step_with_a_prompt_takes_as_much_longer_as_is_allowed(slowdown):
    reading = paced(slowdown=slowdown).budget(8, WHOLE)
    assert 0.020 + 0.0005 * reading == pytest.approx(slowdown * 0.020, rel=0.05)


@pytest.mark.parametrize(("waiting", "longer"), [(0, 1), (1, 1), (5, 1.5), (9, 2), (49, 7)])
def test_who_waits_for_a_first_token_counts_as_who_waits_for_the_next_one(waiting, longer):
    reading = paced().budget(8, WHOLE, waiting=waiting)
    assert 0.0005 * reading == pytest.approx(0.020 * longer, rel=0.1)


def test_a_prompt_goes_on_however_dear_its_tokens_are():
    assert paced(token=1.0).budget(8, WHOLE) == LEAST


def test_until_something_was_measured_steps_beside_others_are_short():
    assert Pace(2.0).budget(8, WHOLE) == LEAST


def test_it_follows_a_machine_that_becomes_slower():
    pace = paced()
    for _ in range(50):
        pace.note(8, 0, 0.020)
        pace.note(8, 16, 0.020 + 16 * 0.001)
    assert pace.budget(8, WHOLE) == pytest.approx(20, abs=2)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 600), st.floats(1e-6, 10.0))),
    st.integers(0, 40),
    st.integers(1, 600),
)
def test_whatever_steps_took_the_budget_is_kept_and_prompts_go_on(steps, decoding, most):
    pace = Pace(1.7)
    for decoded, read, seconds in steps:
        if decoded or read:
            pace.note(decoded, read, seconds)
    assert 1 <= pace.budget(decoding, most) <= max(1, most - decoding)


def test_while_prompts_keep_coming_they_are_not_read_by_the_least_for_ever():
    """Though no step comes in which nobody reads."""
    pace = Pace(2.0)
    pace.note(0, WHOLE, 0.0005 * WHOLE)
    for _ in range(20):
        reading = pace.budget(8, WHOLE)
        pace.note(8, reading, 0.020 + 0.0005 * reading)
    assert pace.budget(8, WHOLE) > 2 * LEAST
