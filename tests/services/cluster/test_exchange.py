"""Tables that are compared: both know afterwards what one of them knew, in messages that are not too long."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cluster.membership.actions import Changed, Exchange, Tell
from services.cluster.membership.beliefs import mark_of
from services.cluster.messages import MOST_UPDATES, Mark, MemberState
from tests.services.cluster.lone import RULES, Lone, card, update

ALIVE, SUSPECT, QUARANTINED, DRAINING, DEAD, LEFT = MemberState


def test_a_table_is_compared_with_somebody_now_and_then():
    lone = Lone("a", "b")
    lone.wait(10 * RULES.exchange)
    exchanges = lone.take(Exchange)
    assert 8 <= len(exchanges) <= 13
    assert {each.node for each in exchanges} == {"a", "b"}
    assert {mark.node for mark in exchanges[0].summary.marks} == {"me", "a", "b"}


def test_what_both_know_is_not_sent():
    lone = Lone("a", "b")
    answer = lone.compare("a", *(mark_of(each) for each in lone.membership.members()))
    assert (answer.updates, answer.wanted, answer.more) == ((), (), False)


def test_what_is_known_better_here_is_sent_and_what_is_not_is_wanted():
    lone = Lone("a", "b", "c", "d", "e", "f", "g")
    lone.hear(
        "a", update("b", 5), update("d", 1, DEAD), update("e", 1, SUSPECT, by=("a",)), update("g", card=card(2, "chat"))
    )
    lone.membership._beliefs.rumours.drop("b")
    answer = lone.compare(
        "a",
        Mark("me", 1, 1, 0, 1),
        Mark("a", 1, 1, 0),
        Mark("b", 3, 1, 2),  # it has contradicted that
        Mark("c", 3, 1, 0),  # has a higher incarnation
        Mark("d", 1, 1, 0),  # is dead
        Mark("e", 2, 1, 0),  # has contradicted
        Mark("f", 1, 1, 0, 4),  # another card
        Mark("g", 1, 1, 0, 1),
        Mark("h", 1, 1, 0),  # is new
    )
    assert {each.node for each in answer.updates} >= {"b", "d", "g"}
    assert set(answer.wanted) == {"c", "e", "f", "h"}


def test_a_card_of_which_only_its_edition_was_heard_is_asked_for_until_it_comes():
    lone = Lone("a", "b")
    lone.hear("a", edition=3)
    assert lone.membership.gossip_to("a").wanted == ("a",)
    assert lone.membership.gossip_to("b").wanted == ()
    lone.hear("a", update("a", card=card(3, "chat")), edition=3)
    assert lone.membership.gossip_to("a").wanted == ()


def test_who_is_asked_for_its_card_tells_it_whole():
    lone = Lone("a")
    lone.do(lone.membership.describe(card(2, "chat"), lone.now))
    assert lone.membership.gossip_to("a").edition == 2
    lone.membership._beliefs.rumours.drop("me")
    lone.hear("a", wanted=("me",))
    (told,) = lone.take(Tell)[-1].gossip.updates
    assert (told.node, told.card.services) == ("me", ("chat",))


def test_a_ghost_is_answered_with_its_grave_and_an_end_that_nobody_knew_is_not_asked_for():
    lone = Lone("a", "b")
    lone.hear("b", update("old", 4, DEAD, by=("b",)))
    answer = lone.compare("b", Mark("old", 4, 3, 0), Mark("older", 9, 1, 3))
    assert [each.state for each in answer.updates if each.node == "old"] == [DEAD]
    assert answer.wanted == ()


def test_one_that_comes_is_told_all_in_parts_and_asks_until_it_knows_all():
    others = [update(f"n{place}", card=card(1, "chat" * 30)) for place in range(1500)]
    seed = Lone("a", name="seed")
    for start in range(0, 1500, 500):
        seed.hear("a", *others[start : start + 500])
    new = Lone()
    summary, parts = new.membership.summary_to(), 0
    while summary is not None:
        answer, _ = seed.membership.compared(summary, seed.now)
        assert len(answer.updates) <= MOST_UPDATES
        assert sum(len(msgspec.json.encode(each)) for each in answer.updates) <= RULES.exchange_bytes + 1000
        parts += 1
        new.do(new.membership.joined(answer, new.now) if parts == 1 else new.membership.heard(answer, new.now))
        summary = next((each.summary for each in new.take(Exchange)), None)
    assert {each.node for each in new.membership.members()} == {each.node for each in seed.membership.members()}
    assert 2 < parts <= 6
    assert "n1" not in new.told(), "it is news to the one that comes alone"


def test_who_learns_nothing_from_a_part_does_not_ask_for_the_next():
    lone = Lone("a", "b")
    lone.hear("a", update("b"), more=True)
    assert lone.take(Exchange) == []
    lone.hear("a", update("c"), more=True)
    assert [each.node for each in lone.take(Exchange)] == ["a"]


def test_what_was_asked_for_is_told_within_the_room_there_is():
    lone = Lone("a", rules=msgspec.structs.replace(RULES, exchange_bytes=2000))
    lone.hear("a", *(update(f"n{place}", card=card(1, "x" * 100)) for place in range(50)))
    lone.hear("a", wanted=tuple(f"n{place}" for place in range(50)))
    (tell,) = lone.take(Tell)
    assert 1 < len(tell.gossip.updates) < 15


STATES = st.sampled_from([ALIVE, DRAINING, SUSPECT, DEAD, LEFT])


@st.composite
def facts(draw):
    """What somebody may have heard of a few members, each of which had three lives."""
    told = []
    for _ in range(draw(st.integers(0, 12))):
        incarnation = draw(st.integers(0, 4))
        state = draw(STATES)
        life = incarnation if state in {DEAD, LEFT} else incarnation - incarnation % 2
        edition = draw(st.integers(0, 3))
        told.append(
            update(
                draw(st.sampled_from("abcdef")),
                incarnation,
                state,
                life=life,
                card=card(edition, str(edition)) if edition and state in {ALIVE, DRAINING} else None,
            )
        )
    return told


def compare(asker, asked):
    """One compares its table with another's, and tells it what that wanted; as if each reached as many."""
    summary = asker.membership.summary_to(asked.membership.me.node)
    answer, actions = asked.membership.compared(
        msgspec.structs.replace(summary, gossip=alike(summary.gossip)), asked.now
    )
    asked.do(actions)
    asker.actions.clear()
    asker.do(asker.membership.heard(alike(answer), asker.now))
    for tell in asker.take(Tell):
        asked.do(asked.membership.heard(alike(tell.gossip), asked.now))


def alike(said):
    return msgspec.structs.replace(said, living=100)


def belief(lone):
    """Who is there, in which life and state, with which card."""
    return {
        each.node: (each.incarnation, each.life, each.state, each.card)
        for each in lone.membership.members()
        if not each.state.over
    }


@settings(deadline=None)
@given(facts(), facts())
def test_after_two_have_compared_their_tables_both_believe_the_same(one, other):
    left, right = Lone("right", name="left"), Lone("left", name="right")
    left.hear("right", *one)
    right.hear("left", *other)
    for asker, asked in ((left, right), (right, left)):
        compare(asker, asked)
    assert belief(left) == belief(right)


def test_a_change_that_is_heard_in_an_exchange_is_passed_on():
    lone = Lone("a", "b")
    lone.hear("b", update("c"))
    assert [each.member.node for each in lone.take(Changed)] == ["c"]
    assert "c" in lone.told("a")
