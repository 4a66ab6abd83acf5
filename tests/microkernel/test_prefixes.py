"""What begins as something before goes where that went, unless too much is there."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from microkernel.prefixes import REMEMBERED, SPARE, Prefixes, prefixes_of

IDLE = {1: 0.0, 2: 0.0}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


def test_a_conversation_stays_where_it_began() -> None:
    known = Prefixes()
    places = {}
    for turn in range(1, 6):
        for talk in range(8):
            asked = turns(*(f"talk {talk} turn {each}" for each in range(turn)))
            place = known.place(prefixes_of(asked, "ana"), IDLE)
            assert places.setdefault(talk, place) == place


def test_new_conversations_are_shared_out() -> None:
    known = Prefixes()
    went = [known.place(prefixes_of(turns(f"talk {talk}"), "ana"), IDLE) for talk in range(8)]
    assert sorted(went) == [1, 1, 1, 1, 2, 2, 2, 2]


def test_a_beginning_that_is_only_a_small_part_decides_nothing() -> None:
    known = Prefixes()
    first = known.place(prefixes_of(turns("Hello.", "a" * 1000), "ana"), IDLE)
    assert known.place(prefixes_of(turns("Hello.", "b" * 1000), "ana"), IDLE) != first


def test_a_long_common_beginning_goes_where_it_is_known() -> None:
    known = Prefixes()
    system = "You are a helpful assistant. " * 50
    first = known.place(prefixes_of(turns(system, "One?"), "ana"), IDLE)
    assert known.place(prefixes_of(turns(system, "Two?"), "ana"), IDLE) == first


def test_a_place_that_has_far_more_to_do_is_left() -> None:
    known = Prefixes()
    asked = prefixes_of(turns("a", "b"), "ana")
    first = known.place(asked, IDLE)
    other = 3 - first
    assert known.place(asked, {first: SPARE, other: 0.0}) == first
    assert known.place(asked, {first: SPARE + 1, other: 0.0}) == other
    assert known.place(asked, IDLE) == other  # by now it is known there


def test_a_place_that_is_gone_is_not_chosen() -> None:
    known = Prefixes()
    asked = prefixes_of(turns("a"), "ana")
    first = known.place(asked, IDLE)
    assert known.place(asked, {3 - first: 9.0}) == 3 - first


def test_two_users_share_no_beginning() -> None:
    one, other = (prefixes_of("the same text", owner)[0].key for owner in ("ana", "ben"))
    assert one != other


def test_a_text_and_tokens_are_cut_into_pieces() -> None:
    text = "x" * 1000
    assert [prefix.size for prefix in prefixes_of(text, "")] == [256, 512, 768, 1000]
    assert prefixes_of(list(range(100)), "")[0] == prefixes_of([*range(64), 5], "")[0]


def test_what_is_remembered_is_bounded() -> None:
    known = Prefixes()
    for talk in range(REMEMBERED // 200):
        known.place(prefixes_of("y" * 256 * 256 + str(talk), str(talk)), IDLE)
    assert len(known._had) <= REMEMBERED
    assert sum(known._counts.values()) == len(known._had)


@given(st.one_of(st.none(), st.text(), st.lists(st.integers()), st.lists(st.dictionaries(st.text(), st.text()))))
def test_any_value_has_beginnings_that_grow(value: Any) -> None:
    sizes = [prefix.size for prefix in prefixes_of(value, "ana")]
    assert sizes == sorted(sizes)
