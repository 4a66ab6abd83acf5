"""How much of a prompt a step reads beside those that decode follows what steps take."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.pace import LEAST, Pace

WHOLE = 512


def takes(tokens: int, *, fixed: float = 0.006, each: float = 0.001) -> float:
    """Seconds of a step on the machine of these tests."""
    return fixed + each * tokens


def paced(*, slowdown: float = 2.0, decoding: int = 8, **machine: float) -> Pace:
    """One that has seen many steps of a machine."""
    pace = Pace(slowdown)
    for _ in range(50):
        pace.note(decoding, 0, takes(decoding, **machine))
        reading = pace.budget(decoding, WHOLE)
        pace.note(decoding, reading, takes(decoding + reading, **machine))
    return pace


def test_a_prompt_is_read_at_once_where_nobody_would_wait():
    assert Pace(2.0).budget(0, WHOLE) == WHOLE
    assert paced().budget(0, WHOLE) == WHOLE


@pytest.mark.parametrize("slowdown", [1.7, 2.0, 3.0])
def test_a_step_with_a_prompt_takes_as_much_longer_as_is_allowed(slowdown):
    reading = paced(slowdown=slowdown).budget(8, WHOLE)
    assert takes(8 + reading) == pytest.approx(slowdown * takes(8), rel=0.15)


@pytest.mark.parametrize(("waiting", "longer"), [(0, 1), (1, 1), (5, 1.5), (9, 2), (25, 4)])
def test_who_waits_for_a_first_token_counts_as_who_waits_for_the_next_one(waiting, longer):
    pace = paced()
    pace.note(0, WHOLE, takes(WHOLE))
    assert takes(pace.budget(8, WHOLE, waiting=waiting), fixed=0.0) == pytest.approx(longer * takes(8), rel=0.2)


def test_a_prompt_goes_on_however_dear_its_tokens_are():
    pace = paced()
    for _ in range(50):
        pace.note(8, 8, 60.0)
    assert pace.budget(8, WHOLE) == LEAST


def test_until_something_was_measured_steps_beside_others_are_short():
    assert Pace(2.0).budget(8, WHOLE) == LEAST


def test_what_reading_alone_took_is_enough_to_begin_with():
    pace = Pace(2.0)
    pace.note(0, WHOLE, takes(WHOLE))
    assert LEAST < pace.budget(8, WHOLE) <= 8


def test_it_follows_a_machine_that_becomes_slower_for_prompts():
    pace = paced()
    before = pace.budget(8, WHOLE)
    for _ in range(50):
        pace.note(8, 0, takes(8))
        pace.note(8, before, takes(8 + 3 * before))
    assert pace.budget(8, WHOLE) < before / 2


def test_prompts_of_many_that_came_together_are_read_at_a_pace_that_holds_while_ever_more_decode():
    """Of 32 the last is read before the first has its 96 tokens, on a machine whose speed comes and goes."""
    pace, chance = Pace(1.7), random.Random(7)
    decoding, unread, steps = 0, 32 * 60, 0
    while unread:
        waiting = 32 - decoding
        reading = min(unread, pace.budget(decoding, WHOLE, waiting=waiting))
        pace.note(decoding, reading, takes(decoding + reading) * chance.uniform(0.8, 1.7))
        unread -= reading
        steps += decoding > 0
        decoding = 32 - -(-unread // 60)
    assert steps < 64


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 600), st.floats(1e-6, 10.0))),
    st.integers(0, 40),
    st.integers(1, 600),
    st.integers(0, 100),
)
def test_whatever_was_measured_a_step_reads_something_and_no_more_than_it_may(steps, decoding, most, waiting):
    pace = Pace(1.5)
    for each in steps:
        if each[0] + each[1]:
            pace.note(*each)
    assert 1 <= pace.budget(decoding, most, waiting=waiting) <= max(1, most - decoding)
