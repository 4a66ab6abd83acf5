"""Which subscriptions match a subject, and whose turn it is in a group."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid
from microkernel.subjects import Subjects, check_pattern, check_subject, covers

names = st.sampled_from(["a", "b", "c"])
subjects = st.lists(names, min_size=1, max_size=4)
patterns = st.tuples(st.lists(st.one_of(names, st.just("*")), max_size=4), st.booleans()).filter(
    lambda pattern: pattern[0] or pattern[1]
)
two_names = st.tuples(st.lists(st.sampled_from(["a", "b", "*"]), max_size=3), st.booleans()).filter(any)


def spelled(pattern):
    return [*pattern[0], ">"] if pattern[1] else pattern[0]


def matches(pattern, subject):
    """The rule, written as plainly as it can be."""
    if pattern and pattern[-1] == ">":
        return len(subject) >= len(pattern) and matches(pattern[:-1], subject[: len(pattern) - 1])
    return len(pattern) == len(subject) and all(p in {"*", s} for p, s in zip(pattern, subject, strict=True))


def match(trie, subject, has_room=None):
    """All who get an event."""
    found = trie.matches(subject)
    return [*found.everyone, *(trie.choose(members, has_room) for members in found.groups)]


@given(st.lists(patterns, max_size=12), subjects, st.sets(st.integers(0, 11)))
def test_matching_follows_the_rule_whatever_was_added_and_removed(raw, subject, removed):
    trie: Subjects[int] = Subjects()
    wanted = set()
    for number, pattern in enumerate(map(spelled, raw)):
        subscription = trie.add(".".join(pattern), number)
        if number in removed:
            trie.remove(subscription)
            trie.remove(subscription)
        elif matches(pattern, subject):
            wanted.add(number)
    found = match(trie, ".".join(subject))
    assert sorted(found) == sorted(wanted)


@given(st.lists(patterns, max_size=12))
def test_nothing_is_left_of_subscriptions_taken_back(raw):
    trie: Subjects[int] = Subjects()
    taken = [trie.add(".".join(spelled(pattern)), 0, group="g") for pattern in raw]
    for number in taken:
        trie.remove(number)
    assert len(trie) == 0
    assert not trie._root.children


@given(two_names, two_names)
def test_a_pattern_covers_another_when_it_matches_all_that_the_other_does(wide, narrow):
    wide, narrow = spelled(wide), spelled(narrow)
    # "z" is in no pattern; subjects one name longer than the longest pattern tell all of them apart
    every = [list(subject) for length in range(1, 6) for subject in itertools.product("abz", repeat=length)]
    heard = [subject for subject in every if matches(narrow, subject)]
    assert covers(tuple(wide), tuple(narrow)) == all(matches(wide, subject) for subject in heard)


@given(patterns, subjects)
def test_a_pattern_covers_a_subject_when_it_matches_it(pattern, subject):
    assert covers(tuple(spelled(pattern)), tuple(subject)) == matches(spelled(pattern), subject)


def test_of_a_group_one_member_gets_each_event_in_turn():
    trie: Subjects[str] = Subjects()
    for name in ("first", "second", "third"):
        trie.add("work.*", name, group="workers")
    trie.add("work.>", "witness")
    got = [match(trie, "work.do") for _ in range(6)]
    assert all("witness" in each and len(each) == 2 for each in got)
    assert [each[1] for each in got] == ["first", "second", "third"] * 2


def test_a_group_goes_on_with_the_members_that_are_left():
    trie: Subjects[str] = Subjects()
    first, second = (trie.add(pattern, pattern, group="workers") for pattern in ("work.*", "work.>"))
    assert {match(trie, "work.do")[0], match(trie, "work.do")[0]} == {"work.*", "work.>"}
    trie.remove(first)
    assert match(trie, "work.do") == ["work.>"]
    trie.remove(second)
    assert match(trie, "work.do") == []


def test_a_member_that_hears_less_is_not_starved_by_the_rhythm_of_others():
    trie: Subjects[str] = Subjects()
    trie.add("work.>", "all", group="workers")
    trie.add("work.hard", "hard", group="workers")
    got = Counter((subject, *match(trie, subject)) for _ in range(10) for subject in ("work.hard", "work.easy"))
    assert got["work.easy", "all"] == 10
    assert got["work.hard", "hard"] >= 9


def test_groups_of_one_name_and_different_owners_do_not_share():
    trie: Subjects[str] = Subjects()
    for owner in ("ana", "ben", None):
        trie.add("work.do", f"{owner}'s", group="workers", owner=owner)
    assert sorted(match(trie, "work.do")) == ["None's", "ana's", "ben's"]


@given(
    st.integers(1, 5),
    st.lists(st.sets(st.integers(0, 4)), min_size=1, max_size=40),
)
def test_a_group_gives_to_who_has_room_and_of_those_to_who_has_waited_longest(count, full):
    trie: Subjects[int] = Subjects()
    for number in range(count):
        trie.add("a", number, group="g")
    last = dict.fromkeys(range(count), -1)
    for turn, crowded in enumerate(full):
        roomy = [number for number in range(count) if number not in crowded] or list(range(count))
        [got] = match(trie, "a", lambda number, crowded=crowded: number not in crowded)
        assert got in roomy
        assert last[got] == min(last[number] for number in roomy)
        last[got] = turn


@pytest.mark.parametrize("subject", ["", ".", "a.", ".a", "a..b", "a.*", ">", "a b", "x" * 300, ".".join("a" * 17)])
def test_what_is_no_subject_is_refused(subject):
    with pytest.raises(Invalid):
        check_subject(subject)


@pytest.mark.parametrize("pattern", ["", "a.>.b", "a.**", "a.b*"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(Invalid):
        check_pattern(pattern)
