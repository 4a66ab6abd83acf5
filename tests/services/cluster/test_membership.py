"""What a node believes, by what it hears and by what it finds itself."""

from __future__ import annotations

import math
import random

import msgspec
import pytest

from services.cluster.membership.actions import Changed, Exchange, Probe, ProbeThrough, Tell
from services.cluster.membership.membership import Membership
from services.cluster.messages import Card, Load, Member, MemberState
from tests.services.cluster.lone import RULES, Lone, card, update

ALIVE, SUSPECT, QUARANTINED, DRAINING, DEAD, LEFT = MemberState


# Hearsay


def test_a_member_that_is_told_of_is_believed_in_and_passed_on():
    lone = Lone("a")
    lone.hear("a", update("b", version="1.2", protocol=3, card=card(2, "chat")))
    (changed,) = lone.take(Changed)
    assert changed == Changed(
        Member(
            node="b",
            incarnation=1,
            life=1,
            state=ALIVE,
            address="at-b",
            version="1.2",
            protocol=3,
            card=card(2, "chat"),
        ),
        None,
    )
    assert lone.told()["b"].card == card(2, "chat")


def test_what_is_known_is_not_told_again():
    lone = Lone("a", "b")
    lone.hear("a", update("b"))
    assert lone.actions == []
    assert lone.told() == {}


@pytest.mark.parametrize(
    ("known", "told", "believed"),
    [
        (update("b", 2), update("b", 1, SUSPECT), (2, ALIVE)),
        (update("b", 2), update("b", 2, SUSPECT), (2, SUSPECT)),
        (update("b", 2), update("b", 3, SUSPECT), (3, SUSPECT)),
        (update("b", 2, SUSPECT), update("b", 2), (2, SUSPECT)),
        (update("b", 2, SUSPECT), update("b", 3), (3, ALIVE)),
        (update("b", 2, SUSPECT), update("b", 2, DRAINING), (2, SUSPECT)),
        (update("b", 2, SUSPECT), update("b", 3, DRAINING), (3, DRAINING)),
        (update("b", 2), update("b", 2, DRAINING), (2, DRAINING)),
        (update("b", 2, DRAINING), update("b", 2), (2, DRAINING)),
        (update("b", 2), update("b", 2, DEAD), (2, DEAD)),
        (update("b", 2), update("b", 1, DEAD), (2, DEAD)),
        (update("b", 2), update("b", 4, DEAD), (4, DEAD)),
        (update("b", 2, SUSPECT), update("b", 2, LEFT), (2, LEFT)),
        (update("b", 3, life=3), update("b", 2, DEAD), (3, ALIVE)),
        (update("b", 3, life=3), update("b", 4, life=1), (3, ALIVE)),
        (update("b", 1), update("b", 1, QUARANTINED), (1, ALIVE)),
    ],
)
def test_the_higher_incarnation_holds_of_equals_the_worse_state_and_death_for_the_whole_life(known, told, believed):
    lone = Lone("a")
    lone.hear("a", known)
    lone.hear("a", told)
    member = lone.membership.member("b")
    assert (member.incarnation, member.state) == believed


def test_an_update_that_contradicts_itself_is_ignored():
    lone = Lone("a")
    lone.hear("a", update("b", 1, life=2), update("c", 1, DEAD, life=2))
    assert lone.changes() == []
    assert len(lone.membership._beliefs.graves) == 0


def test_a_card_of_a_later_edition_needs_no_new_incarnation():
    lone = Lone("a")
    lone.hear("a", update("b", card=card(2, "chat")))
    lone.take(Changed)
    lone.hear("a", update("b", card=card(1, "old")))
    lone.hear("a", update("b"))
    assert lone.take(Changed) == []
    lone.hear("a", update("b", card=card(3, "chat", "map")))
    (changed,) = lone.take(Changed)
    assert (changed.before.card, changed.member.card) == (card(2, "chat"), card(3, "chat", "map"))
    assert lone.told()["b"].card == card(3, "chat", "map")


def test_a_card_outlives_a_suspicion_and_not_a_life():
    lone = Lone("a")
    lone.hear("a", update("b", card=card(5, "chat")))
    lone.hear("a", update("b", 1, SUSPECT))
    assert lone.membership.member("b").card == card(5, "chat")
    lone.hear("a", update("b", 2))
    assert lone.membership.member("b").card == card(5, "chat")
    lone.hear("a", update("b", 3, life=3, card=card(1, "map")))
    assert lone.membership.member("b").card == card(1, "map")


def test_load_comes_with_answers_and_is_no_change():
    lone = Lone("a")
    load = Load(calls=3.0, cores=0.5)
    lone.do(lone.membership.answered("a", 1, 0.001, lone.now, load=load))
    assert lone.membership.member("a").load == load
    assert lone.actions == []


def test_a_member_says_itself_where_it_stands_with_every_message():
    lone = Lone("a")
    lone.hear("a", incarnation=3, state=DRAINING)
    member = lone.membership.member("a")
    assert (member.incarnation, member.state) == (3, DRAINING)
    lone.hear("a", incarnation=4, state=SUSPECT)
    assert lone.state("a") is DRAINING, "nobody says that of itself"
    lone.hear("a", incarnation=4, state=LEFT)
    assert lone.state("a") is LEFT


def test_of_a_stranger_more_is_asked():
    lone = Lone("a")
    lone.hear("b")
    assert lone.membership.gossip_to("b").wanted == ("b",)
    assert lone.membership.gossip_to("a").wanted == ()


def test_who_asks_is_told():
    lone = Lone("a", "b")
    lone.hear("a", wanted=("me", "b", "nobody"))
    (tell,) = lone.take(Tell)
    assert tell.node == "a"
    assert [each.node for each in tell.gossip.updates] == ["me", "b"]
    assert tell.gossip.updates[0].card == lone.membership.me.card


def test_a_member_that_has_a_new_life_is_asked_about_it():
    lone = Lone("a")
    lone.hear("a", incarnation=7, life=7)
    (exchange,) = lone.take(Exchange)
    assert (exchange.node, exchange.address) == ("a", "at-a")


def test_a_table_that_is_full_takes_nobody_and_goes_on():
    lone = Lone("a", rules=msgspec.structs.replace(RULES, most_members=3))
    lone.hear("a", *(update(f"n{place}") for place in range(10)))
    assert len(lone.membership) == 4
    lone.hear("a", update("n0", 1, DEAD))
    lone.hear("a", update("n9"))
    assert {each.node for each in lone.membership.members() if not each.state.over} == {"me", "a", "n1", "n9"}


def test_one_that_comes_has_news_of_itself():
    new = Membership("me", 1, "at-me", now=0.0, chance=random.Random(0))
    assert [each.node for each in new.gossip_to("anybody").updates] == ["me"]


# Probes and suspicion


def test_in_a_small_cluster_each_is_probed_once_a_period_in_the_same_order():
    others = tuple("abcdefg")
    lone = Lone(*others)
    lone.wait(1.0)
    lone.actions.clear()
    lone.wait(10 * RULES.period)
    probed = [each.node for each in lone.take(Probe)]
    assert len(probed) in {69, 70, 71}
    assert sorted(probed[:7]) == sorted(others)
    assert all(probed[start : start + 7] == probed[:7] for start in range(0, 63, 7))


def test_in_a_large_one_a_few_are_probed_a_period_and_each_once_in_a_drawn_order():
    others = [f"n{place}" for place in range(30)]
    lone = Lone(*others)
    lone.wait(20 * RULES.period + 1.0)
    probed = [each.node for each in lone.take(Probe)]
    assert 60 <= len(probed) <= 64
    assert sorted(probed[:30]) == sorted(probed[30:60]) == sorted(others)
    assert probed[:30] != probed[30:60]


def test_a_member_that_answers_is_not_suspect():
    lone = Lone("a", "b", "c")
    lone.wait(60.0)
    assert lone.changes() == []


def test_one_that_does_not_is_asked_again_and_through_others_before_it_is_suspect():
    lone = Lone("a", "b", "c", "d", "e")
    lone.wait(20.0)
    lone.actions.clear()
    while lone.state("a") is ALIVE:
        lone.wait(0.01, silent=("a",))
    asked = [each for each in lone.actions if getattr(each, "node", "") == "a"]
    assert [type(each) for each in asked] == [Probe, *[ProbeThrough] * 3, Probe, Probe]
    assert len({each.via for each in asked if isinstance(each, ProbeThrough)}) == 3


def test_a_helper_that_reaches_it_is_enough():
    lone = Lone("a", "b", "c")
    lone.wait(5.0)
    for _ in range(100):
        lone.actions.clear()
        lone.wait(0.1, silent=("a",))
        if lone.take(ProbeThrough):
            lone.answer("a", rtt=None)
    assert lone.state("a") is ALIVE


def test_a_probe_that_fails_at_once_is_not_waited_for():
    lone = Lone("a", "b", "c")
    lone.do(lone.membership.link_lost("a", lone.now, refused=False))
    assert [each.node for each in lone.take(Probe)] == ["a"]
    lone.do(lone.membership.failed("a", lone.now))
    assert {each.via for each in lone.take(ProbeThrough)} == {"b", "c"}
    lone.do(lone.membership.failed("a", lone.now))
    assert lone.actions == []


def test_a_suspect_is_told_so_first_with_each_message_until_it_contradicts():
    lone = Lone("a", "b", "c")
    lone.hear("b", update("a", 1, SUSPECT, by=("b",)))
    for _ in range(50):
        assert lone.membership.gossip_to("a").updates[0] == update("a", 1, SUSPECT, by=("b",), card=None)
    lone.hear("a", incarnation=2)
    assert lone.state("a") is ALIVE
    assert "a" not in lone.told("a") or lone.told("a")["a"].state is ALIVE


def test_a_suspect_that_says_nothing_is_dead_after_its_time():
    lone = Lone("a")
    lone.wait(20.0)
    lone.wait(RULES.period + 0.7, silent=("a",))
    assert lone.changes() == [("a", SUSPECT)]
    lone.wait(RULES.suspicion * RULES.period, silent=("a",))
    assert lone.changes() == [("a", DEAD)]


def test_nobody_is_buried_by_hearsay_alone():
    lone = Lone("a", "b", "c", "d", "e")
    lone.wait(5.0)
    lone.hear("b", update("a", 1, SUSPECT, by=("b", "c", "d", "e")))
    lone.wait(30.0)
    assert lone.state("a") is SUSPECT, "it answers this node"
    lone.wait(10.0, silent=("a",))
    assert lone.state("a") is DEAD


def test_a_late_answer_tells_how_slow_the_member_is():
    lone = Lone("a", "b")
    lone.wait(5.0)

    def patience():
        lone.do(lone.membership.link_lost("a", lone.now, refused=False))
        began = lone.now
        while not any(isinstance(each, ProbeThrough) for each in lone.actions):
            lone.wait(0.01, silent=("a",))
        lone.answer("a")
        lone.actions.clear()
        return lone.now - began

    before = patience()
    for _ in range(5):
        lone.answer("a", rtt=0.9)
    assert patience() > 2 * before


def test_three_suspicions_within_a_minute_cost_a_member_its_work_until_it_was_quiet():
    lone = Lone("a", "b")
    for incarnation in (1, 2, 3):
        lone.hear("b", update("a", incarnation, SUSPECT, by=("b",)))
        lone.hear("a", incarnation=incarnation + 1)
        lone.wait(5.0)
    assert lone.state("a") is QUARANTINED
    assert not lone.membership.member("a").state.works
    assert lone.told("c").get("a", update("a")).state is ALIVE, "others count for themselves"
    lone.changes()
    lone.wait(RULES.quiet)
    assert lone.changes() == [("a", ALIVE)]


def test_a_member_with_no_protocol_in_common_is_known_and_not_probed():
    lone = Lone("a", protocol=2, protocol_min=2)
    lone.hear("a", update("a", 1, life=1), update("b", protocol=2, protocol_min=1), update("c", protocol=1))
    lone.wait(5.0)
    assert {each.node for each in lone.take(Probe)} == {"b"}
    assert lone.state("c") is ALIVE


# Links


def test_a_link_that_breaks_has_the_member_probed_at_once():
    lone = Lone("a", "b")
    lone.do(lone.membership.link_lost("a", lone.now, refused=False))
    assert [each.node for each in lone.take(Probe)] == ["a"]
    assert lone.state("a") is ALIVE


def test_a_refusal_is_death():
    lone = Lone("a", "b")
    lone.do(lone.membership.link_lost("a", lone.now, refused=True, life=1))
    assert lone.changes() == [("a", DEAD)]
    assert lone.told("b")["a"] == update("a", 1, DEAD, by=("me",), card=None)


def test_a_refusal_of_an_earlier_life_says_nothing_of_this_one():
    lone = Lone("a")
    lone.hear("a", update("a", 5, life=5), incarnation=5, life=5)
    lone.do(lone.membership.link_lost("a", lone.now, refused=True, life=1))
    assert lone.state("a") is ALIVE


def test_who_is_refused_again_and_again_is_only_suspect():
    """A wall between two nodes refuses for a node that is well; each death would fence it, for all others too."""
    lone = Lone("a", "b")
    for life in (1, 2, 3):
        lone.hear("b", update("a", life, life=life))
        assert not lone.state("a").over
        lone.do(lone.membership.link_lost("a", lone.now, refused=True))
        assert lone.state("a") is DEAD
    lone.hear("b", update("a", 4, life=4))
    assert lone.state("a") is QUARANTINED
    lone.actions.clear()
    lone.do(lone.membership.link_lost("a", lone.now, refused=True))
    assert lone.state("a") is QUARANTINED
    assert [each.via for each in lone.take(ProbeThrough)] == ["b"]


def test_a_link_to_nobody_is_no_event():
    lone = Lone("a")
    lone.do(lone.membership.link_lost("nobody", lone.now, refused=True))
    lone.do(lone.membership.failed("nobody", lone.now))
    lone.do(lone.membership.unreached("nobody", "a", lone.now))
    lone.do(lone.membership.answered("nobody", 1, 0.1, lone.now))
    assert lone.actions == []


# Time


def test_what_a_node_did_not_hear_because_it_was_away_is_held_against_nobody():
    lone = Lone("a", "b", "c")
    lone.wait(5.0)
    lone.hear("b", update("a", 1, SUSPECT, by=("b", "c")))
    lone.wait(0.3, mute=True)
    lone.now += 3600.0
    lone.do(lone.membership.failed("a", lone.now))
    lone.do(lone.membership.tick(lone.now))
    assert {lone.state(node) for node in "bc"} == {ALIVE}
    assert lone.state("a") is SUSPECT


def test_who_was_away_for_longer_than_graves_are_kept_for_certain_ends_its_life_itself():
    lone = Lone("a")
    lone.now += RULES.buried / 2 + 60
    lone.do(lone.membership.tick(lone.now))
    assert len(lone.fenced()) == 1


def test_a_clock_that_goes_back_is_one_that_stands():
    lone = Lone("a")
    lone.do(lone.membership.tick(lone.now - 50.0))
    lone.hear("a", update("b"))
    assert lone.membership.due() > lone.now


# This node


def test_who_drains_says_so_and_stays():
    lone = Lone("a")
    lone.do(lone.membership.drain(lone.now))
    lone.do(lone.membership.drain(lone.now))
    assert [each.member.state for each in lone.take(Changed)] == [DRAINING]
    assert lone.told("a")["me"].state is DRAINING
    assert lone.membership.gossip_to("a").state is DRAINING


def test_a_drain_survives_a_suspicion():
    lone = Lone("a")
    lone.do(lone.membership.drain(lone.now))
    lone.hear("a", update("me", 1, SUSPECT, address="at-me", by=("a",)))
    assert (lone.membership.me.incarnation, lone.membership.me.state) == (2, DRAINING)


def test_who_leaves_tells_some_and_does_nothing_any_more():
    lone = Lone("a", "b", "c")
    lone.do(lone.membership.leave(lone.now))
    farewells = lone.take(Probe)
    assert {each.node for each in farewells} == {"a", "b", "c"}
    assert all(each.gossip.updates[0].state is LEFT and each.gossip.state is LEFT for each in farewells)
    assert lone.membership.due() == math.inf
    lone.do(lone.membership.tick(lone.now + 1000))
    lone.do(lone.membership.leave(lone.now))
    lone.do(lone.membership.drain(lone.now))
    lone.hear("a", update("me", 1, DEAD), update("x"))
    assert lone.actions == []


def test_the_edition_of_its_own_card_is_counted_here():
    lone = Lone("a", card=Card(edition=77, services=("chat",)))
    assert lone.membership.me.card == card(1, "chat")
    lone.do(lone.membership.describe(Card(services=("map",)), lone.now))
    assert lone.membership.me.card == card(2, "map")
    assert lone.told("a")["me"].card == card(2, "map")


def test_a_member_that_is_gone_is_shown_for_a_while_and_then_not():
    lone = Lone("a", "b")
    lone.hear("b", update("a", 1, LEFT))
    assert lone.state("a") is LEFT
    assert len(lone.membership) == 2
    lone.wait(RULES.shown + 1)
    assert lone.state("a") is None


def test_all_it_says_names_it_and_how_many_it_reaches():
    lone = Lone("a", "b", "c", incarnation=4)
    lone.hear("b", update("a", 1, SUSPECT, by=("b",)))
    said = lone.membership.gossip_to("b")
    assert (said.source, said.incarnation, said.life, said.living) == ("me", 4, 4, 3)
