"""The name space of a cluster."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.cluster.messages import Card, Member, MemberState
from services.cluster.names import Kind, Names

WORDS = st.lists(st.sampled_from("abcdef"), max_size=4).map(tuple)
CARDS = st.builds(Card, services=WORDS, devices=WORDS, models=WORDS)
MEMBERS = st.builds(
    Member,
    node=st.sampled_from(["n1", "n2", "n3"]),
    incarnation=st.just(1),
    life=st.just(1),
    state=st.sampled_from(list(MemberState)),
    address=st.just(""),
    card=CARDS,
)


def member(node, *services, state=MemberState.ALIVE):
    return Member(node=node, incarnation=1, life=1, state=state, address=node, card=Card(services=services))


def test_a_name_is_found_at_all_that_have_it():
    names = Names()
    names.changed(member("n1", "chat", "map"))
    names.changed(member("n2", "chat"))
    assert [each.node for each in names.where(Kind.SERVICE, "chat")] == ["n1", "n2"]
    assert [each.node for each in names.where(Kind.SERVICE, "map")] == ["n1"]
    assert names.where(Kind.MODEL, "chat") == []
    assert names.names(Kind.SERVICE) == ["chat", "map"]


def test_a_suspect_is_still_found_and_told_as_such():
    names = Names()
    names.changed(member("n1", "chat"))
    names.changed(member("n1", "chat", state=MemberState.SUSPECT))
    assert [each.state for each in names.where(Kind.SERVICE, "chat")] == [MemberState.SUSPECT]


def test_nothing_is_found_at_a_member_that_is_gone():
    names = Names()
    names.changed(member("n1", "chat"))
    names.changed(member("n1", "chat", state=MemberState.DEAD))
    assert names.where(Kind.SERVICE, "chat") == []
    assert names.names(Kind.SERVICE) == []


@given(st.lists(MEMBERS, max_size=20))
def test_what_is_found_is_what_the_last_word_of_each_member_says(told):
    names = Names()
    for each in told:
        names.changed(each)
    last = {each.node: each for each in told}
    there = [each for each in last.values() if not each.state.over]
    for kind, field in ((Kind.SERVICE, "services"), (Kind.DEVICE, "devices"), (Kind.MODEL, "models")):
        for word in "abcdef":
            found = names.where(kind, word)
            assert sorted(each.node for each in found) == sorted(
                each.node for each in there if word in getattr(each.card, field)
            )
            assert all(each == last[each.node] for each in found)
        assert names.names(kind) == sorted({word for each in there for word in getattr(each.card, field)})
