"""A life that was declared over is over: for those that said so, and for the node that hears it."""

from __future__ import annotations

import msgspec
import pytest

from services.cluster.membership.actions import Changed, Exchange, Fenced, Probe
from services.cluster.membership.hearing import PATIENCE
from services.cluster.membership.own import MOST_WAIT
from services.cluster.messages import NEWEST_INCARNATION, Mark, MemberState
from tests.services.cluster.lone import RULES, Lone, gossip, update

ALIVE, SUSPECT, QUARANTINED, DRAINING, DEAD, LEFT = MemberState


def own(incarnation=1, state=ALIVE, **fields):
    return update("me", incarnation, state, **{"address": "at-me", **fields})


# Others


def test_a_life_that_was_buried_is_never_believed_in_again_whatever_incarnation_it_takes():
    lone = Lone("a", "b")
    lone.hear("b", update("a", 1, DEAD, by=("b",)))
    for incarnation in (1, 2, 50):
        lone.hear("b", update("a", incarnation, life=1))
        lone.hear("a", incarnation=incarnation, life=1)
        assert lone.state("a") is DEAD
    lone.hear("b", update("a", 51, life=51))
    assert lone.state("a") is ALIVE


def test_a_grave_outlives_the_entry_in_the_table():
    lone = Lone("a", "b")
    lone.hear("b", update("a", 1, LEFT))
    lone.wait(RULES.shown + 1)
    lone.hear("b", update("a", 1), update("a", 7, life=1))
    assert lone.state("a") is None
    lone.hear("b", update("a", 8, life=8))
    assert lone.state("a") is ALIVE


def test_the_death_of_one_that_was_never_known_keeps_its_ghost_away():
    lone = Lone("b")
    lone.hear("b", update("a", 5, DEAD))
    lone.hear("b", update("a", 5, life=4))
    assert lone.state("a") is None
    assert "a" not in lone.told(), "its death is no news to those that know it"


def test_graves_have_a_limit_and_the_table_still_knows_who_died_a_moment_ago():
    lone = Lone("a", "b", rules=msgspec.structs.replace(RULES, most_graves=2))
    lone.hear("b", update("a", 1, DEAD), *(update(f"n{place}", 1, DEAD) for place in range(9)))
    assert len(lone.membership._beliefs.graves) == 2
    lone.hear("b", update("a", 1))
    assert lone.state("a") is DEAD


def test_who_was_buried_is_told_so_with_each_message_and_nobody_else_it_names_is_believed():
    lone = Lone("a", "b")
    lone.hear("b", update("a", 3, DEAD, by=("b",)))
    lone.hear("a", update("x"), update("b", 1, DEAD), incarnation=3)
    assert lone.state("b") is ALIVE
    assert lone.state("x") is None
    first = lone.membership.gossip_to("a").updates[0]
    assert (first.node, first.incarnation, first.state, first.by) == ("a", 3, DEAD, ("b",))


# This node


def test_a_suspicion_of_this_node_is_contradicted_by_a_higher_incarnation_of_the_same_life():
    lone = Lone("a", incarnation=4)
    lone.hear("a", own(4, SUSPECT, life=4, by=("a",)))
    (changed,) = lone.take(Changed)
    assert (changed.member.incarnation, changed.member.life) == (5, 4)
    assert lone.told("a")["me"].incarnation == 5
    lone.hear("a", own(4, SUSPECT, life=4, by=("b",)))
    assert lone.actions == [], "that was contradicted"


def test_a_node_that_hears_of_its_death_is_fenced_once_and_stops_probing():
    lone = Lone("a", "b", incarnation=4)
    lone.hear("a", own(4, DEAD, by=("b",)))
    lone.hear("b", own(4, DEAD, by=("b",)))
    assert lone.fenced() == [Fenced(4, "b", 0.0)]
    assert lone.membership.fenced
    lone.wait(60.0)
    assert lone.take(Probe) == []
    assert lone.membership.due() > lone.now


def test_who_is_fenced_does_not_probe_those_that_it_suspects_either_until_it_is_back():
    others = tuple("abcdefghijkl")
    lone = Lone(*others)
    lone.wait(20.0)
    while not any(each.state is SUSPECT for each in lone.membership.members()):
        lone.wait(0.01, silent=("a", "b", "c"))
    lone.hear("d", own(1, DEAD, by=("d",)))
    lone.actions.clear()
    lone.wait(60.0)
    assert lone.take(Probe) == []
    assert not any(each.state is DEAD for each in lone.membership.members())
    lone.do(lone.membership.rejoin(lone.now))
    lone.wait(25.0, silent=("a",))
    assert lone.state("a") is DEAD
    assert lone.state("b") is not DEAD


def test_the_death_of_any_incarnation_of_this_life_is_the_end_of_it():
    lone = Lone("a", incarnation=4)
    lone.hear("a", own(4, SUSPECT, life=4))
    lone.hear("a", own(4, DEAD))
    assert [each.incarnation for each in lone.fenced()] == [5]


def test_the_death_of_an_earlier_life_is_none_of_this_one():
    lone = Lone("a", incarnation=4)
    lone.hear("a", own(3, DEAD))
    assert lone.fenced() == []


def test_a_node_comes_back_with_a_life_above_all_that_was_said_of_it_and_tells_who_had_told_it():
    lone = Lone("a", "b", incarnation=4)
    lone.hear("a", own(9, DEAD))
    lone.hear("a", own(12, DEAD))
    lone.actions.clear()
    lone.do(lone.membership.rejoin(lone.now))
    assert (lone.membership.me.incarnation, lone.membership.me.life) == (13, 13)
    (exchange,) = lone.take(Exchange)
    assert exchange.node == "a"
    assert exchange.summary.gossip.updates[0].life == 13
    lone.wait(5.0)
    assert lone.take(Probe) != []


def test_nobody_rejoins_who_was_not_fenced_or_has_left():
    lone = Lone("a")
    lone.do(lone.membership.rejoin(lone.now))
    assert lone.membership.me.incarnation == 1
    lone.hear("a", own(1, DEAD))
    lone.do(lone.membership.leave(lone.now))
    lone.do(lone.membership.rejoin(lone.now))
    assert lone.membership.me.state is LEFT


def test_a_node_that_was_fenced_forgets_whom_it_had_buried():
    lone = Lone("a", "b")
    lone.do(lone.membership.link_lost("b", lone.now, refused=True))
    lone.hear("a", own(1, DEAD))
    lone.do(lone.membership.rejoin(lone.now))
    assert lone.state("b") is None
    lone.hear("a", update("b"))
    assert lone.state("b") is ALIVE


def test_who_is_fenced_again_and_again_waits_longer_each_time():
    lone, waits = Lone("a"), []
    for _ in range(10):
        lone.hear("a", own(lone.membership.me.incarnation, DEAD))
        waits += [each.wait for each in lone.fenced()]
        lone.do(lone.membership.rejoin(lone.now))
        lone.hear("a", update("a"))
        lone.now += 1.0
    assert waits[:4] == [0.0, 0.5, 1.0, 2.0]
    assert waits == sorted(waits)
    assert waits[-1] == MOST_WAIT
    lone.now += 61.0
    lone.hear("a", own(lone.membership.me.incarnation, DEAD))
    assert [each.wait for each in lone.fenced()] == [0.0]


# Two that have one name


def test_of_two_processes_with_one_name_the_higher_incarnation_wins():
    loser, winner = Lone("a", incarnation=4), Lone("a", incarnation=5)
    loser.hear("a", own(5, life=5, address="elsewhere"))
    winner.hear("a", own(4, life=4, address="elsewhere"))
    assert loser.fenced() == [Fenced(4, "me", 0.0, rival="elsewhere")]
    assert winner.fenced() == []


@pytest.mark.parametrize(("address", "loses"), [("at-a", False), ("at-z", True)])
def test_of_equals_it_is_the_one_whose_address_is_greater_for_all_that_hear_of_both(address, loses):
    rival = own(1, address=address)
    lone = Lone("a")
    lone.hear("a", rival)
    assert (lone.fenced() != []) == loses
    for order in ((rival, own(1)), (own(1), rival)):
        third = Lone("a")
        third.hear("a", *(msgspec.structs.replace(each, node="other") for each in order))
        assert third.membership.member("other").address == max(address, "at-me")


def test_an_earlier_life_at_this_very_address_gives_way_although_its_count_was_lost():
    lone = Lone(incarnation=1)
    lone.do(lone.membership.joined(gossip("a", update("a"), own(7, life=5)), lone.now))
    assert lone.fenced() == []
    assert (lone.membership.me.incarnation, lone.membership.me.life) == (8, 8)


def test_a_node_whose_count_was_lost_and_that_is_known_as_dead_comes_back_above():
    lone = Lone(incarnation=1)
    lone.do(lone.membership.joined(gossip("a", update("a"), own(7, DEAD, by=("a",))), lone.now))
    assert lone.fenced() == [Fenced(1, "a", 0.0)]
    lone.do(lone.membership.rejoin(lone.now))
    assert lone.membership.me.life == 8


def test_an_incarnation_that_leaves_no_room_above_is_not_believed():
    lone = Lone("a")
    lone.hear("a", own(NEWEST_INCARNATION, SUSPECT), own(NEWEST_INCARNATION, DEAD))
    assert lone.fenced() == []
    assert lone.membership.me.incarnation == 1


# Two sides


def parted(living, *, side=2):
    """A node that has buried `a`, with so many that it reaches, itself included; it hears from `a` that it is dead."""
    lone = Lone("a", *(f"n{place}" for place in range(side - 1)))
    lone.do(lone.membership.link_lost("a", lone.now, refused=True))
    lone.actions.clear()
    lone.hear("a", own(1, DEAD, by=("a",)), living=living)
    return lone


def test_where_each_side_has_buried_the_other_the_smaller_gives_way():
    assert parted(living=3).fenced() == [Fenced(1, "a", 0.0)]
    assert parted(living=1).fenced() == []


def test_of_two_sides_that_are_equal_the_first_name_stays():
    assert [each.by for each in parted(living=2).fenced()] == ["a"], "as `a` comes before `me`"


def test_a_side_that_stays_still_tells_the_other_that_it_is_buried():
    lone = parted(living=1)
    assert lone.membership.gossip_to("a").updates[0].state is DEAD


def test_a_summary_of_one_that_was_buried_is_answered_with_that_alone():
    lone = Lone("a", "b")
    lone.do(lone.membership.link_lost("a", lone.now, refused=True))
    lone.actions.clear()
    answer = lone.compare("a", Mark("x", 1, 1, 0), living=1)
    assert (answer.updates[0].node, answer.updates[0].state, answer.wanted) == ("a", DEAD, ())
    assert lone.state("x") is None


def test_whoever_reaches_far_fewer_is_not_believed_in_who_is_dead():
    lone = Lone(*(f"n{place}" for place in range(9)))
    lone.hear("n0", update("n1", 1, DEAD, by=("n0",)), living=6)
    assert lone.state("n1") is ALIVE
    lone.hear("n0", update("n1", 1, LEFT), living=6)
    assert lone.state("n1") is LEFT, "that was its own word"
    lone.hear("n0", update("n2", 1, DEAD, by=("n0",)), living=7)
    assert lone.state("n2") is DEAD


def test_and_when_it_says_that_this_node_is_it_has_to_come_back_anew_itself():
    lone = Lone(*(f"n{place}" for place in range(9)))
    lone.hear("n0", own(1, DEAD, by=("n0",)), update("n1", 1, SUSPECT, by=("n0",)), living=6)
    assert lone.fenced() == []
    assert lone.state("n0") is DEAD
    assert lone.state("n1") is ALIVE, "nor is it believed in anything else"
    lone.hear("n1", own(1, DEAD, by=("n0",)), living=7)
    assert len(lone.fenced()) == 1


def test_in_a_small_cluster_two_more_or_less_make_no_difference():
    lone = Lone("a", "b", "c")
    lone.hear("a", update("b", 1, DEAD, by=("a",)), living=2)
    assert lone.state("b") is DEAD


def gone_over(*others):
    """A node that `a` has fenced, and that is back."""
    lone = Lone("a", *others)
    lone.hear("a", own(1, DEAD, by=("a",)))
    lone.actions.clear()
    lone.do(lone.membership.rejoin(lone.now))
    return lone


def test_a_node_that_goes_over_believes_nobody_before_it_has_the_table_of_the_other_side():
    lone = gone_over("b", "c")
    assert [each.node for each in lone.take(Exchange)] == ["a"]
    lone.hear("b", update("a", 1, DEAD), update("x"))
    lone.hear("a", update("y"))
    assert (lone.state("a"), lone.state("x"), lone.state("y")) == (ALIVE, None, ALIVE)
    lone.hear("a", update("b", 1, DEAD), compared=True)
    lone.hear("b", update("a", 1, DEAD))
    lone.hear("c", update("z"))
    assert (lone.state("a"), lone.state("b"), lone.state("z")) == (ALIVE, DEAD, ALIVE)


def test_it_asks_again_and_when_no_answer_comes_believes_the_others():
    lone = gone_over("b")
    lone.actions.clear()
    lone.wait(3 * RULES.dial)
    assert {each.node for each in lone.take(Exchange)} == {"a"}
    lone.wait(PATIENCE * RULES.dial)
    lone.hear("b", update("x"))
    assert lone.state("x") is ALIVE


def test_as_long_as_it_has_no_table_it_gives_none():
    lone = gone_over("b")
    assert not lone.compare("b").compared
    lone.hear("a", compared=True)
    assert lone.compare("b").compared


def test_it_asks_for_all_that_it_knew_so_that_it_hears_whom_the_other_side_has_buried():
    lone = Lone("a", "b", "c")
    lone.do(lone.membership.link_lost("b", lone.now, refused=True))
    lone.hear("a", own(1, DEAD, by=("a",)))
    lone.actions.clear()
    lone.do(lone.membership.rejoin(lone.now))
    (exchange,) = lone.take(Exchange)
    assert {(each.node, each.life) for each in exchange.summary.marks} == {("me", 2), ("a", 1), ("c", 1), ("b", 0)}
    other = Lone("b", name="a")
    other.do(other.membership.link_lost("b", other.now, refused=True))
    answer, _ = other.membership.compared(exchange.summary, other.now)
    assert [(each.node, each.state) for each in answer.updates if each.node == "b"] == [("b", DEAD)]
