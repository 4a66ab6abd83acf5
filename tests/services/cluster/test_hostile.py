"""Whatever is heard: nothing is raised, nothing grows without bound, and the node goes on."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cluster.membership.actions import Exchange, Fenced, Tell
from services.cluster.membership.hearing import PATIENCE
from services.cluster.membership.rumours import size_of
from services.cluster.messages import (
    MOST_UPDATES,
    NEWEST_INCARNATION,
    Card,
    Gossip,
    Load,
    Mark,
    MemberState,
    Summary,
    Update,
)
from tests.services.cluster.lone import RULES, Lone, update

NODES = st.sampled_from(["me", "a", "b", "c", "d"])
NUMBERS = st.one_of(st.integers(0, 5), st.sampled_from([NEWEST_INCARNATION - 1, NEWEST_INCARNATION]))
STATES = st.sampled_from(list(MemberState))
CARDS = st.builds(Card, edition=NUMBERS, services=st.tuples(st.text("ab", min_size=1, max_size=3)))
UPDATES = st.builds(
    Update,
    node=NODES,
    incarnation=NUMBERS,
    life=NUMBERS,
    state=STATES,
    address=st.sampled_from(["", "at-me", "at-a", "at-z"]),
    protocol=st.integers(0, 3),
    protocol_min=st.integers(0, 3),
    card=st.none() | CARDS,
    by=st.lists(NODES, max_size=8).map(tuple),
)
GOSSIP = st.builds(
    Gossip,
    source=NODES,
    incarnation=NUMBERS,
    life=NUMBERS,
    state=STATES,
    living=st.integers(1, 8192),
    updates=st.lists(UPDATES, max_size=6).map(tuple),
    wanted=st.lists(NODES, max_size=4).map(tuple),
    more=st.booleans(),
)
MARKS = st.builds(Mark, node=NODES, incarnation=NUMBERS, life=NUMBERS, rank=st.integers(0, 3), edition=NUMBERS)
EVENTS = st.one_of(
    st.tuples(st.just("heard"), GOSSIP),
    st.tuples(st.just("joined"), GOSSIP),
    st.tuples(st.just("compared"), st.builds(Summary, gossip=GOSSIP, marks=st.lists(MARKS, max_size=6).map(tuple))),
    st.tuples(st.just("answered"), NODES, NUMBERS, st.none() | st.floats(-1, 1e6), st.none() | GOSSIP),
    st.tuples(st.just("failed"), NODES),
    st.tuples(st.just("unreached"), NODES, NODES),
    st.tuples(st.just("link_lost"), NODES, st.booleans(), st.none() | NUMBERS),
    st.tuples(st.just("tick"), st.floats(-10, 100) | st.just(90_000.0)),
    st.tuples(st.just("gossip_to"), NODES),
    st.tuples(st.just("summary_to"), NODES),
    st.tuples(st.just("describe"), CARDS),
    st.tuples(st.sampled_from(["drain", "rejoin", "rejoin", "leave"])),
)


def happen(lone, event):
    """One event; `tick` lets time pass first."""
    membership, (what, *args) = lone.membership, event
    match what:
        case "tick":
            lone.now += args[0]
            actions = membership.tick(lone.now)
        case "gossip_to" | "summary_to":
            msgspec.json.encode(getattr(membership, what)(*args))
            return
        case "compared":
            answer, actions = membership.compared(*args, lone.now)
            assert len(answer.updates) <= MOST_UPDATES
        case "answered":
            node, incarnation, rtt, said = args
            actions = membership.answered(node, incarnation, rtt, lone.now, said, Load())
        case "link_lost":
            actions = membership.link_lost(args[0], lone.now, refused=args[1], life=args[2])
        case _:
            actions = getattr(membership, what)(*args, lone.now)
    lone.do(actions)


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_nothing_is_raised_and_the_node_goes_on(events):
    lone = Lone("a", "b")
    for event in events:
        happen(lone, event)
        membership = lone.membership
        me = membership.me
        assert me.life <= me.incarnation <= NEWEST_INCARNATION
        beliefs = membership._beliefs
        states = [peer.member.state for peer in beliefs.peers.values()]
        assert beliefs.living == 1 + sum(not each.over and each is not MemberState.SUSPECT for each in states)
        assert not any(each.over for each in states)
        assert all(peer.member.state.over for peer in beliefs.gone.values())
        assert not set(beliefs.peers) & set(beliefs.gone)
        assert "me" not in beliefs.peers
        for peer in beliefs.peers.values():
            assert (peer.suspicion is not None) == (peer.member.state is MemberState.SUSPECT)
        if me.state is MemberState.LEFT:
            assert membership.due() == math.inf
        else:
            assert membership.due() < math.inf
    for action in lone.actions:
        if isinstance(action, Exchange | Tell):
            msgspec.json.encode(action)


@settings(deadline=None, derandomize=True)  # drawn anew, a claim of "me" that it is another one is found now and then
@given(st.lists(EVENTS.filter(lambda event: event[0] != "leave"), max_size=30))
def test_whatever_has_happened_a_node_that_is_left_in_peace_is_back_among_those_that_answer(events):
    lone = Lone("a", "b")
    for event in events:
        happen(lone, event)
    if lone.membership.fenced:
        lone.do(lone.membership.rejoin(lone.now))
    lone.wait(PATIENCE * RULES.dial)  # so long it may believe no one but the side that it went over to
    lives = {}
    for node in ("a", "b"):
        member = lone.membership.member(node)
        grave = lone.membership._beliefs.graves.get(node)
        lives[node] = 1 + max(0 if member is None else member.incarnation, 0 if grave is None else grave.incarnation)
    if max(lives.values()) >= NEWEST_INCARNATION:
        return  # nothing is above that
    for node, life in lives.items():
        lone.hear(node, update(node, life, life=life), incarnation=life, life=life)
    lone.wait(20 * RULES.period)
    assert all(not lone.state(node).over for node in ("a", "b"))


def test_a_flood_of_names_fills_no_more_than_the_limits():
    rules = msgspec.structs.replace(RULES, most_members=50, most_graves=30)
    lone = Lone("a", rules=rules)
    chance = random.Random(0)
    for start in range(0, 5000, 100):
        states = (MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.DRAINING)
        lone.hear("a", *(update(f"n{start + place}", 1, chance.choice(states), by=("a",)) for place in range(100)))
        lone.wait(0.5, mute=True)
        beliefs = lone.membership._beliefs
        assert len(beliefs.peers) <= 50
        assert len(beliefs.graves) <= 30
        assert len(beliefs.lost) <= 30
        assert len(beliefs.rumours) <= 50 + len(beliefs.gone) + 1
        assert len(lone.membership._timers) < 500
        assert len(lone.membership._timers._heap) < 2000
        lone.actions.clear()


def test_those_that_come_only_to_go_fill_no_more_than_the_limits_either():
    lone = Lone("a", rules=msgspec.structs.replace(RULES, most_members=50))
    for place in range(1000):
        lone.hear("a", update(f"n{place}"))
        lone.hear("a", update(f"n{place}", 1, MemberState.DEAD))
    assert len(lone.membership._beliefs.gone) == 50
    assert len(lone.membership.members()) == 52


def test_cards_as_large_as_they_may_be_fit_into_messages():
    large = Card(edition=1, **dict.fromkeys(("services", "devices", "models"), ("w" * 128,) * 256))
    lone = Lone("a")
    for start in range(0, 40, 10):
        lone.hear("a", *(update(f"n{start + place}", card=large) for place in range(10)))
    sent = lone.membership.gossip_to("a")
    assert len(sent.updates) == 1
    answer = lone.compare("a")
    assert len(answer.updates) >= 1
    assert len(msgspec.json.encode(answer)) < RULES.exchange_bytes + 2 * size_of(update("x", card=large))


@pytest.mark.parametrize(
    "said",
    [
        {"source": "x" * 65, "incarnation": 1, "life": 1},
        {"source": "", "incarnation": 1, "life": 1},
        {"source": "a b", "incarnation": 1, "life": 1},
        {"source": "a", "incarnation": -1, "life": 1},
        {"source": "a", "incarnation": 2**53, "life": 1},
        {"source": "a", "incarnation": 1, "life": 1, "living": 0},
        {"source": "a", "incarnation": 1, "life": 1, "updates": [{"node": "b", "incarnation": 1}]},
        {"source": "a", "incarnation": 1, "life": 1, "updates": [
            {"node": "b", "incarnation": 1, "life": 1, "by": ["x"] * 9}]},
        {"source": "a", "incarnation": 1, "life": 1, "wanted": ["b"] * (MOST_UPDATES + 1)},
        {"source": "a", "incarnation": 1, "life": 1, "updates": [
            {"node": "b", "incarnation": 1, "life": 1, "card": {"weight": -1}}]},
        {"source": "a", "incarnation": 1, "life": 1, "updates": [
            {"node": "b", "incarnation": 1, "life": 1, "card": {"services": ["x"] * 257}}]},
    ],
)  # fmt: skip
def test_gossip_beyond_the_limits_is_no_gossip(said):
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(said), type=Gossip)


def test_what_a_later_version_says_beside_is_ignored():
    said = {"source": "a", "incarnation": 1, "life": 1, "mood": "good", "updates": [
        {"node": "b", "incarnation": 1, "life": 1, "card": {"edition": 1, "colour": "red"}}]}  # fmt: skip
    lone = Lone("a")
    lone.do(lone.membership.heard(msgspec.json.decode(msgspec.json.encode(said), type=Gossip), lone.now))
    assert lone.membership.member("b").card == Card(edition=1)
    assert msgspec.json.decode(b'["b", 1, 1, 0, 2, "more"]', type=Mark) == Mark("b", 1, 1, 0, 2)


def test_a_node_does_not_listen_to_itself():
    lone = Lone("a")
    lone.hear("me", update("a", 9, MemberState.DEAD), update("me", 9, MemberState.DEAD))
    assert lone.take(Fenced) == []
    assert lone.state("a") is MemberState.ALIVE


@settings(deadline=None)
@given(GOSSIP)
def test_gossip_is_the_same_after_it_was_sent(said):
    assert msgspec.json.decode(msgspec.json.encode(said), type=Gossip) == said
