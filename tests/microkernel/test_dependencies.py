"""Order, gaps, circles and dependents of what services need and use, against what they mean by definition."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.dependencies import circles, missing, start_order, with_dependents
from microkernel.errors import Invalid

NAMES = [f"s{number}" for number in range(7)]
GRAPHS = st.dictionaries(st.sampled_from(NAMES), st.lists(st.sampled_from(NAMES), max_size=3), max_size=7)


@st.composite
def acyclic(draw, count=8):
    names = [f"s{number}" for number in range(draw(st.integers(1, count)))]
    shuffled = draw(st.permutations(names))
    return {
        name: draw(st.lists(st.sampled_from(shuffled[:place]), max_size=3)) if place else []
        for place, name in enumerate(shuffled)
    }


def closure(edges):
    """Who reaches whom in one step or more, by Warshall's algorithm."""
    reach = {(name, other) for name, others in edges.items() for other in others if other in edges}
    for middle in edges:
        reach |= {
            (start, goal) for start in edges for goal in edges if (start, middle) in reach and (middle, goal) in reach
        }
    return reach


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


@given(acyclic(), st.data())
def test_uses_order_services_too_and_never_against_a_need(needs, data):
    uses = {name: data.draw(st.lists(st.sampled_from([*needs, "elsewhere", "*"]), max_size=3)) for name in needs}
    order = start_order(needs, uses)
    assert sorted(order) == sorted(needs)
    for name, needed in needs.items():
        assert all(order.index(need) < order.index(name) for need in needed)
    both = {name: {*needs[name], *uses[name]} for name in needs}
    reach = closure(both)
    if not any(name == other for name, other in reach):
        for name, used in uses.items():
            assert all(order.index(use) < order.index(name) for use in used if use in needs), "no circle forbids it"


@given(acyclic())
def test_who_uses_everything_comes_after_all_but_those_who_need_it(needs):
    first = min(needs)
    order = start_order(needs, {first: ("*",)})
    dependents = {name for name, other in closure(needs) if other == first}
    assert set(order[order.index(first) + 1 :]) == dependents


@given(GRAPHS)
def test_circles_are_named_for_those_in_them_and_for_those_who_need_them(needs):
    reach = closure(needs)
    inside = {name for name in needs if (name, name) in reach}
    reaching = {name for name in needs if any((name, other) in reach for other in inside)}
    found = circles(needs)
    assert set(found) == inside | reaching
    for why in found.values():
        circle = why.rpartition(": ")[2].split(" → ")
        assert circle[0] == circle[-1]
        assert all(later in needs[earlier] for earlier, later in pairwise(circle))


@given(GRAPHS)
def test_the_first_need_that_is_not_here_is_named(needs):
    assert missing(needs) == {
        name: next(need for need in needed if need not in needs)
        for name, needed in needs.items()
        if any(need not in needs for need in needed)
    }


@given(acyclic())
def test_dependents_are_all_that_need_a_service_through_whomever_in_the_order_they_start(needs):
    reach = closure(needs)
    order = start_order(needs)
    for name in needs:
        found = with_dependents(needs, name)
        assert set(found) == {name} | {other for other in needs if (other, name) in reach}
        for each in found:
            assert all(found.index(need) < found.index(each) for need in needs[each] if need in found)
    assert set(order) == set(needs)
