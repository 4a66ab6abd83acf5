"""Why two nodes cannot work together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cluster.messages import Update
from services.cluster.protocol import disagreement, speak

RANGES = st.tuples(st.integers(0, 6), st.integers(0, 6))


def node(name, least, most, version=""):
    return Update(node=name, incarnation=1, life=1, version=version, protocol=most, protocol_min=least)


@given(RANGES, RANGES)
def test_two_work_together_exactly_if_some_protocol_is_in_both_ranges(one, other):
    both = set(range(one[0], one[1] + 1)) & set(range(other[0], other[1] + 1))
    first, second = node("a", *one), node("b", *other)
    assert speak(first, second) == bool(both)
    assert (disagreement(first, second) is None) == bool(both)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_reason_names_both_with_their_versions_and_says_which_to_update(swapped):
    old, new = node("old", 1, 2, "0.1.0"), node("new", 3, 3, "0.4.0")
    said = disagreement(new, old) if swapped else disagreement(old, new)
    assert said == (
        "old (version 0.1.0) speaks protocol 1 to 2, new (version 0.4.0) speaks 3: "
        "update old, or run an older version on new"
    )


def test_a_range_that_is_none_is_named():
    assert disagreement(node("a", 1, 1), node("b", 4, 3)) == "b says that it speaks protocols from 4 to 3: none"
