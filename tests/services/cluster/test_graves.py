"""Who is over for good, and who is tried again."""

from __future__ import annotations

from services.cluster.membership.graves import Grave, Graves, Lost
from services.cluster.messages import MemberState


def grave(incarnation, since=0.0):
    return Grave(incarnation, MemberState.DEAD, "address", "somebody", since)


def test_a_grave_holds_every_life_that_began_with_its_incarnation_or_before():
    graves = Graves(10, 60.0)
    graves.dig("n1", grave(5))
    assert [graves.holds("n1", life) for life in (1, 5, 6)] == [True, True, False]
    assert not graves.holds("n2", 0)


def test_the_oldest_graves_go_when_there_are_too_many():
    graves = Graves(3, 60.0)
    for place in range(5):
        graves.dig(f"n{place}", grave(1))
    graves.dig("n2", grave(2))
    graves.dig("n5", grave(1))
    assert [f"n{place}" for place in range(6) if graves.get(f"n{place}")] == ["n2", "n4", "n5"]


def test_graves_go_when_they_were_kept_for_long_enough():
    graves = Graves(10, 60.0)
    graves.dig("old", grave(1, 0.0))
    graves.dig("new", grave(1, 30.0))
    graves.sweep(60.0)
    assert graves.get("old") is None
    assert graves.get("new") is not None
    assert len(graves) == 1


def test_the_lost_are_tried_for_a_time_and_no_longer_when_they_are_found():
    lost = Lost(10, 60.0)
    lost.add("a", "there", 0.0)
    lost.add("b", "there too", 10.0)
    lost.add("c", "nowhere", 10.0)
    lost.found("c")
    assert [node for node, _ in lost.nodes(30.0)] == ["a", "b"]
    assert [node for node, _ in lost.nodes(60.0)] == ["b"]
    assert lost.nodes(70.0) == []


def test_the_lost_have_a_limit():
    lost = Lost(3, 60.0)
    for place in range(10):
        lost.add(f"n{place}", "", 0.0)
    assert [node for node, _ in lost.nodes(1.0)] == ["n7", "n8", "n9"]
