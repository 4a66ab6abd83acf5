"""The rungs of pressure: entered at a threshold, left a margin below it, and never by a way that depends on the past
more than that."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.memory.ladder import MARGIN, THRESHOLDS, Ladder
from services.memory.messages import Rung

LIMIT = 1000
# Just below and at each threshold, and at and just below where its rung is left; nothing, all, and more than all.
EDGES = sorted(
    {0, LIMIT, LIMIT + 50}
    | {round(1000 * share) + step for share in THRESHOLDS for step in (-1, 0)}
    | {round(1000 * (share - MARGIN)) + step for share in THRESHOLDS for step in (-1, 0)}
)


def entered(used: int) -> int:
    """The rung of a device that comes from the ground."""
    return sum(used >= round(1000 * share) for share in THRESHOLDS)


def kept(used: int) -> int:
    """The highest rung that is not left at so many bytes."""
    return sum(used >= round(1000 * (share - MARGIN)) for share in THRESHOLDS)


def test_from_every_rung_every_amount_leads_to_the_rung_that_it_should():
    for before, used in itertools.product(EDGES, EDGES):
        ladder = Ladder("cpu0")
        ladder.look(before, LIMIT)
        start = ladder.pressure.rung
        changed = ladder.look(used, LIMIT)
        expected = max(entered(used), min(start, kept(used)))
        assert ladder.pressure.rung == expected, (before, used)
        assert changed == (expected != start)


def test_all_ways_over_three_amounts_end_where_rungs_are_entered_and_left():
    for amounts in itertools.product(EDGES, repeat=3):
        ladder, rung = Ladder("cpu0"), 0
        for used in amounts:
            ladder.look(used, LIMIT)
            rung = max(entered(used), min(rung, kept(used)))
        assert ladder.pressure.rung == rung, amounts


@given(st.lists(st.integers(0, 1100), min_size=1))
def test_what_is_in_excess_brings_the_device_back_to_the_ground_when_it_goes(amounts):
    ladder = Ladder("cpu0")
    for used in amounts:
        ladder.look(used, LIMIT)
    pressure = ladder.pressure
    assert (pressure.excess > 0) >= (pressure.rung > Rung.CALM and pressure.used > 570)
    if pressure.rung > Rung.CALM:
        ladder.look(pressure.used - pressure.excess - 1, LIMIT)
        assert ladder.pressure.rung is Rung.CALM


def test_an_amount_that_trembles_at_a_threshold_changes_the_rung_once():
    ladder = Ladder("cpu0")
    changes = sum(ladder.look(used, LIMIT) for used in [599, 600, 599, 601, 590, 600, 571] * 20)
    assert (changes, ladder.pressure.rung) == (1, Rung.DROP)


def test_several_rungs_are_gone_at_once():
    ladder = Ladder("cpu0")
    assert ladder.look(990, LIMIT)
    assert ladder.pressure.rung is Rung.PAUSE
    assert ladder.look(100, LIMIT)
    assert (ladder.pressure.rung, ladder.pressure.excess) == (Rung.CALM, 0)


@pytest.mark.parametrize(("used", "rung"), [(0, Rung.CALM), (1, Rung.PAUSE)])
def test_a_device_that_has_nothing_to_give_is_full_as_soon_as_something_is_used(used, rung):
    ladder = Ladder("cpu0")
    ladder.look(used, 0)
    assert ladder.pressure.rung is rung


@pytest.mark.parametrize("rungs", [(0.7, 0.6, 0.8, 0.9), (0.1, 0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (0.0, 0.6, 0.7, 0.8)])
def test_rungs_that_do_not_rise_are_refused(rungs):
    with pytest.raises(Invalid, match="are no rungs"):
        Ladder("cpu0", rungs)


def test_a_margin_that_the_first_rung_is_never_left_by_is_refused():
    with pytest.raises(Invalid, match=r"margin of 0\.6"):
        Ladder("cpu0", margin=0.6)
