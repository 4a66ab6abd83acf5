"""What is done when a server fails, and what its reader is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import (
    Aborted,
    Invalid,
    NotFound,
    Overloaded,
    PreconditionFailed,
    TooBig,
    Unavailable,
    Unimplemented,
)
from services.devices.failover import Given, broken_off, verdict, worth_another


@given(st.lists(st.text(max_size=5), max_size=8), st.integers(0, 40), st.integers(1, 6))
def test_a_reader_gets_each_character_once_wherever_the_first_server_broke_off(words, at, size):
    text = "".join(words)
    given_, got = Given(keep=True), ""
    for start in range(0, min(at, len(text)), size):
        got += given_.push(text[start : min(start + size, at)], 1, ended=False)
    given_.again()
    for word in words:
        got += given_.push(word, 1, ended=False)
    got += given_.push("", 0, ended=True)
    assert got == text


@pytest.mark.parametrize("said", ["Hello world", "", "He", "HELLO"])
def test_another_server_that_does_not_say_the_same_is_not_believed(said):
    given_ = Given(keep=True)
    given_.push("Hello,", 1, ended=False)
    given_.again()
    with pytest.raises(Aborted):
        given_.push(said, 1, ended=True)


def test_only_what_nobody_has_read_or_is_greedy_may_be_repeated():
    greedy, sampled = Given(keep=True), Given(keep=False)
    assert greedy.may_be_repeated
    assert sampled.may_be_repeated
    for each in (greedy, sampled):
        each.push("a", 1, ended=False)
    assert greedy.may_be_repeated
    assert not sampled.may_be_repeated


def test_a_very_long_answer_is_not_kept_and_not_repeated():
    given_ = Given(keep=True)
    given_.push("x" * (1 << 20), 1, ended=False)
    assert given_.may_be_repeated
    given_.push("x", 1, ended=False)
    assert not given_.may_be_repeated
    assert given_.text == ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unavailable("gone"), True),
        (Overloaded("full"), True),
        (PreconditionFailed("key"), True),
        (NotFound("model"), True),
        (Unimplemented("top_k"), True),
        (TooBig("prompt"), True),
        (Invalid("temperature"), False),
        (Aborted("else"), False),
    ],
)
def test_what_is_wrong_with_the_request_itself_is_not_asked_again(error, expected):
    assert worth_another(error) is expected


def test_where_all_are_overloaded_the_soonest_time_is_told():
    told = verdict("m", [("a", Overloaded("full", retry_after=9.0)), ("b", Overloaded("full", retry_after=2.0))])
    assert isinstance(told, Overloaded)
    assert told.retry_after == 2.0
    assert told.message == "no server could answer for 'm': a: full; b: full"


def test_where_one_may_come_back_that_is_told_and_whether_something_may_have_run():
    told = verdict("m", [("a", Unavailable("reset", may_have_run=True)), ("b", NotFound("no model"))])
    assert isinstance(told, Unavailable)
    assert told.may_have_run is True


def test_where_none_could_ever_answer_the_last_one_says_why():
    told = verdict("m", [("a", NotFound("no model")), ("b", Unimplemented("no top_k", field="top_k"))])
    assert isinstance(told, Unimplemented)
    assert told.field == "top_k"
    assert "a: no model" in told.message


def test_half_an_answer_ends_with_who_broke_off_after_how_much():
    given_ = Given(keep=False)
    given_.push("a", 3, ended=False)
    told = broken_off(given_, [("a", Unavailable("connection reset"))])
    assert told.message == "a broke off after 3 tokens: connection reset"
    assert told.may_have_run is True
