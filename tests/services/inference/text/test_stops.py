"""Stop strings: the cut does not depend on how the text arrives, and no part of a stop is shown too early."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.inference.text.stops import MAX_STOP_LENGTH, MAX_STOPS, StopMatcher

LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def cut_by_definition(text: str, stops: list[str]) -> tuple[str, bool]:
    """The first stop to be complete ends the text; of several complete at the same place, the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(chunks=st.lists(LETTERS, max_size=8), stops=STOPS)
@example(chunks=["aab"], stops=["ab"])
@example(chunks=["ab", "a", "b"], stops=["abab", "b\n"])
@settings(deadline=None)
def test_the_text_is_cut_at_the_first_stop_however_it_arrives(chunks, stops):
    matcher = StopMatcher(stops)
    shown, stopped = "", False
    for chunk in chunks:
        text, stopped = matcher.push(chunk)
        shown += text
        if stopped:
            break
    shown += matcher.flush()
    assert (shown, stopped) == cut_by_definition("".join(chunks), stops)


@given(text=LETTERS, stop=st.text("ab\n", min_size=1, max_size=5))
@settings(deadline=None)
def test_one_stop_cuts_where_it_first_occurs(text, stop):
    matcher = StopMatcher([stop])
    shown = "".join(matcher.push(character)[0] for character in text) + matcher.flush()
    assert shown == text.partition(stop)[0]


@given(text=LETTERS, stops=STOPS)
@settings(deadline=None)
def test_what_was_shown_is_never_taken_back_and_no_more_is_held_than_may_become_a_stop(text, stops):
    matcher = StopMatcher(stops)
    shown = ""
    for place, character in enumerate(text):
        piece, stopped = matcher.push(character)
        shown += piece
        if stopped:
            return
        seen = text[: place + 1]
        held = seen[len(shown) :]
        assert seen == shown + held
        assert not held or any(stop.startswith(held) for stop in stops)
        assert not any(stop.startswith(seen[at:]) for stop in stops for at in range(len(shown)))


def test_after_a_stop_there_is_no_more_text():
    matcher = StopMatcher(["END"])
    assert matcher.push("helloEN") == ("hello", False)
    assert matcher.push("D and more") == ("", True)
    assert matcher.push("again") == ("", True)
    assert matcher.flush() == ""


def test_a_beginning_that_does_not_become_a_stop_is_shown():
    matcher = StopMatcher(["\n\nUser:"])
    assert matcher.push("hi\n\nUs") == ("hi", False)
    assert matcher.push("ed") == ("\n\nUsed", False)
    assert matcher.push("\n") == ("", False)
    assert matcher.flush() == "\n"


def test_without_stops_text_passes():
    matcher = StopMatcher([])
    assert matcher.push("text") == ("text", False)
    assert matcher.flush() == ""


@pytest.mark.parametrize(
    ("stops", "says"),
    [
        ([""], "stop[0] is empty"),
        (["a", "b" * (MAX_STOP_LENGTH + 1)], "stop[1] has 257 characters, allowed are 256"),
        (["a"] * (MAX_STOPS + 1), "stop has 17 strings, allowed are 16"),
    ],
    ids=["empty", "long", "many"],
)
def test_stops_over_the_limits_are_refused_by_name(stops, says):
    with pytest.raises(Invalid) as refused:
        StopMatcher(stops)
    assert refused.value.field == "stop"
    assert says in refused.value.message


def test_stops_at_the_limits_are_taken():
    StopMatcher([str(number) * 100 + "x" * (MAX_STOP_LENGTH - 200) for number in range(10, 10 + MAX_STOPS)])
