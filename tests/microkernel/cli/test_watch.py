"""What `mk watch` makes of an event."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.cli import make_parser
from microkernel.cli.watch import NARROWEST, VALUE_WIDTH, line

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def event(body: Any, subject: str = "kv.changed") -> dict[str, Any]:
    return {"offset": 7, "time": 0.0, "subject": subject, "body": body}


def shown(body: Any, width: int = 200) -> str:
    """The line without its offset and its time."""
    return line(event(body), width).split(maxsplit=2)[2]


def test_an_event_is_its_subject_and_its_fields():
    assert shown({"name": "kv", "size": 3}) == "kv.changed  name=kv size=3"


def test_a_value_that_is_no_single_word_is_json():
    body = {"why": "two words", "empty": "", "gone": None, "many": [1, {"a": "b"}]}
    assert shown(body) == 'kv.changed  why="two words" empty="" gone=null many=[1,{"a":"b"}]'


@pytest.mark.parametrize(("body", "told"), [(None, "kv.changed"), (5, "kv.changed  5"), ({}, "kv.changed")])
def test_a_body_without_fields_is_shown_as_it_is(body: Any, told: str):
    assert shown(body) == told


def test_a_long_value_leaves_room_for_those_after_it():
    assert shown({"text": "x" * 5000, "n": 1}, 1000).endswith("… n=1")
    assert len(shown({"text": "x" * 5000}, 1000)) < VALUE_WIDTH + 40


@given(JSON, st.integers(NARROWEST, 120), st.text(min_size=1))
def test_an_event_is_one_line_within_its_width_that_drives_no_terminal(body: Any, width: int, subject: str):
    told = line(event(body, subject), width)
    assert len(told) <= width
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in told)


@pytest.mark.parametrize("given", [("--count", "0"), ("--count", "x"), ("--since", "-1"), ("--since", "9" * 5000)])
def test_numbers_that_are_none_are_refused(given: tuple[str, str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(["watch", "a.>", *given])
    assert ended.value.code == 2
    assert "is no " in capsys.readouterr().err


def test_without_options_it_follows_from_now_on_and_for_good():
    args: argparse.Namespace = make_parser().parse_args(["watch", "a.>"])
    assert (args.pattern, args.since, args.count) == ("a.>", None, None)
