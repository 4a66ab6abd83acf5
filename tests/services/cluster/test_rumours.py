"""News that goes along with messages."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.cluster.membership.rumours import MOST_TIMES, Rumours, size_of
from services.cluster.messages import Card, Update

FACTOR = 4.0


def update(node, incarnation=1, words=0):
    return Update(
        node=node, incarnation=incarnation, life=1, address=node, card=Card(edition=1, models=("m" * 100,) * words)
    )


def rumours(entries=3, room=10_000):
    return Rumours(FACTOR, entries, room)


def test_each_is_told_as_often_as_the_number_of_members_wants_it():
    for members, times in ((1, 2), (9, 4), (99, 8), (999, 12)):
        news = rumours()
        news.put(update("a"))
        told = [news.pick(members) for _ in range(100)]
        assert sum(map(len, told)) == times
        assert len(news) == 0


def test_what_was_told_least_goes_first_and_of_equals_the_newest():
    news = rumours(entries=2)
    for node in "abc":
        news.put(update(node))
    assert [each.node for each in news.pick(99)] == ["c", "b"]
    news.put(update("d"))
    assert [each.node for each in news.pick(99)] == ["d", "a"]


def test_newer_news_of_a_node_takes_the_place_of_what_was_told():
    news = rumours()
    news.put(update("a", 1))
    news.pick(9)
    news.put(update("a", 2))
    assert [[each.incarnation for each in news.pick(9)] for _ in range(5)] == [[2]] * 4 + [[]]


def test_a_message_takes_no_more_than_it_has_room_for_but_one_that_is_longer_goes_alone():
    small = size_of(update("a"))
    news = rumours(entries=10, room=2 * small)
    for node in "abc":
        news.put(update(node))
    assert len(news.pick(99)) == 2
    news.put(update("x", words=100))
    assert [each.node for each in news.pick(99)] == ["x"]


def test_nobody_is_told_of_itself_where_that_was_said_before():
    news = rumours()
    news.put(update("a"))
    news.put(update("b"))
    assert [each.node for each in news.pick(9, without="b")] == ["a"]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.sampled_from("abcdefgh"), st.integers(0, 3)),
            st.tuples(st.just("pick"), st.integers(1, 2000), st.just(0)),
            st.tuples(st.just("drop"), st.sampled_from("abcdefgh"), st.just(0)),
        ),
        max_size=80,
    )
)
def test_each_is_told_a_bounded_number_of_times_and_all_room_is_kept(steps):
    news, told, known = rumours(), Counter(), set()
    for step, what, words in steps:
        if step == "put":
            news.put(update(what, words=words))
            told[what] = 0
            known.add(what)
        elif step == "drop":
            news.drop(what)
            known.discard(what)
        else:
            picked = news.pick(what)
            nodes = [each.node for each in picked]
            assert len(nodes) == len(set(nodes)) <= 3
            assert set(nodes) <= known
            told.update(nodes)
        assert all(count <= MOST_TIMES for count in told.values())
        assert len(news) <= len(known)
