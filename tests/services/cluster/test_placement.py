"""Placement: shares by weight, and nothing moves that need not."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cluster.messages import Card, Member, MemberState
from services.cluster.placement import MOST_REPLICAS, owners

NAMES = st.sampled_from([f"n{place}" for place in range(20)])
WEIGHTS = st.floats(0.01, 100.0)
THINGS = [f"thing-{place}" for place in range(100)]


def member(node, weight=1.0, state=MemberState.ALIVE):
    return Member(node=node, incarnation=1, life=1, state=state, address=node, card=Card(edition=1, weight=weight))


def cluster(weights):
    return [member(node, weight) for node, weight in weights.items()]


def placed(members, replicas=1):
    return {thing: owners(thing, members, replicas) for thing in THINGS}


@settings(deadline=None)
@given(st.dictionaries(NAMES, WEIGHTS, min_size=2, max_size=12), st.data())
def test_when_a_member_goes_only_what_it_had_moves(weights, data):
    gone = data.draw(st.sampled_from(sorted(weights)))
    before = placed(cluster(weights))
    after = placed([each for each in cluster(weights) if each.node != gone])
    assert {thing for thing in THINGS if before[thing] != after[thing]} == {
        thing for thing in THINGS if before[thing] == [gone]
    }


@settings(deadline=None)
@given(st.dictionaries(NAMES, WEIGHTS, min_size=1, max_size=12), WEIGHTS)
def test_when_a_member_comes_what_moves_moves_to_it(weights, weight):
    before, after = placed(cluster(weights)), placed([*cluster(weights), member("new", weight)])
    assert {after[thing][0] for thing in THINGS if before[thing] != after[thing]} <= {"new"}


@settings(deadline=None)
@given(st.dictionaries(NAMES, WEIGHTS, min_size=2, max_size=12), st.floats(1.0, 50.0), st.data())
def test_when_a_weight_grows_only_that_member_gains(weights, factor, data):
    grown = data.draw(st.sampled_from(sorted(weights)))
    before, after = placed(cluster(weights)), placed(cluster(weights | {grown: weights[grown] * factor}))
    assert {after[thing][0] for thing in THINGS if before[thing] != after[thing]} <= {grown}


@settings(deadline=None)
@given(st.dictionaries(NAMES, WEIGHTS, min_size=3, max_size=12), st.integers(2, 4), st.data())
def test_when_a_member_goes_the_other_replicas_stay_in_their_order(weights, replicas, data):
    gone = data.draw(st.sampled_from(sorted(weights)))
    members = cluster(weights)
    for thing in THINGS[:30]:
        stayed = [node for node in owners(thing, members, replicas) if node != gone]
        assert owners(thing, [each for each in members if each.node != gone], replicas)[: len(stayed)] == stayed


@settings(deadline=None)
@given(st.permutations([("a", 1.0), ("b", 2.0), ("c", 0.5), ("d", 1.0)]))
def test_the_order_in_which_members_are_told_does_not_matter(weights):
    assert placed(cluster(dict(weights)), 3) == placed(cluster({"a": 1.0, "b": 2.0, "c": 0.5, "d": 1.0}), 3)


def test_shares_are_those_of_the_weights():
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    count = 20_000
    shares = Counter(owners(f"thing {place}", cluster(weights))[0] for place in range(count))
    for node, weight in weights.items():
        share = weight / 8
        assert abs(shares[node] / count - share) < 5 * math.sqrt(share * (1 - share) / count), "five sigma"


@pytest.mark.parametrize("state", [each for each in MemberState if each is not MemberState.ALIVE])
def test_a_member_that_may_have_no_work_has_none(state):
    assert owners("thing", [member("a", 1e9, state), member("b", 0.001)], 2) == ["b"]


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_is_none_gets_nothing(weight):
    assert owners("thing", [member("a", weight), member("b")], 2) == ["b"]


def test_there_may_be_fewer_than_wanted_and_none_at_all():
    assert sorted(owners("thing", cluster({"a": 1.0, "b": 1.0}), 5)) == ["a", "b"]
    assert owners("thing", cluster({"a": 1.0}), 0) == []
    assert owners("thing", [], 3) == []


def test_replicas_have_a_limit():
    assert len(owners("thing", [member(f"n{place}") for place in range(100)], 10**9)) == MOST_REPLICAS


@settings(deadline=None)
@given(st.text())
def test_anything_may_be_placed_and_always_comes_to_the_same_place(thing):
    members = cluster({"a": 1.0, "b": 1.0, "c": 1.0})
    assert owners(thing, members, 2) == owners(thing, members[::-1], 2)


def test_a_place_is_what_it_was_in_versions_before():
    """Nodes of two versions have to agree, so this may only change with the protocol."""
    members = [member(f"n{place}", weight=1.0 + place % 3) for place in range(10)]
    assert owners("inference", members, 3) == FROZEN


FROZEN = ["n9", "n8", "n3"]


def test_the_load_of_a_member_moves_nothing():
    members = cluster({"a": 1.0, "b": 1.0})
    busy = [msgspec.structs.replace(each, incarnation=9, address="elsewhere") for each in members]
    assert placed(busy) == placed(members)
