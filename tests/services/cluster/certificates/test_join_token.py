"""The line that an operator pastes: read back as it was written, or refused with a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.capability import LONGEST_TOKEN
from microkernel.errors import Invalid
from microkernel.token import issue, make_block
from services.cluster.certificates.join_token import JoinToken, format_join_token, parse_join_token

TOKEN = issue(bytes(32), make_block(user="operator", allow=["cluster.join"], expires=2e9))
LINE = format_join_token(JoinToken(bytes(range(32)), TOKEN))


@given(st.none() | st.binary(min_size=32, max_size=32))
def test_a_join_token_is_read_back_as_it_was_written(fingerprint):
    join = JoinToken(fingerprint, TOKEN)
    line = format_join_token(join)
    assert parse_join_token(line) == join
    assert line.split() == [line]


def test_blanks_around_it_come_from_pasting():
    assert parse_join_token(f"  {LINE}\r\n") == parse_join_token(LINE)


def test_without_tls_a_dash_stands_for_the_fingerprint():
    assert format_join_token(JoinToken(None, TOKEN)) == f"mkjoin1.-.{TOKEN}"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "mkjoin1.",
        "mkjoin1.-",
        "mkjoin1.-.",
        "mkjoin2" + LINE[7:],
        TOKEN,
        LINE[:-1],
        LINE + "A",
        LINE[:60] + "\n" + LINE[60:],
        LINE[:60] + " " + LINE[60:],
        LINE.replace("mkjoin1.", "mkjoin1.A"),
        "mkjoin1.." + TOKEN,
        "mkjoin1.-.not-a-token-at-all",
        LINE + "." * LONGEST_TOKEN,
    ],
)
def test_a_damaged_line_is_invalid(line):
    with pytest.raises(Invalid):
        parse_join_token(line)


def test_a_fingerprint_is_written_in_one_way_only():
    """The last of its 43 characters has two bits that mean nothing: they are zero."""
    last = LINE.index(".", 8) - 1
    assert LINE[last] == "8"
    with pytest.raises(Invalid, match="fingerprint"):
        parse_join_token(LINE[:last] + "9" + LINE[last + 1 :])


@given(st.text(max_size=100))
def test_any_text_is_invalid(text):
    for line in (text, "mkjoin1." + text, f"mkjoin1.-.{text}"):
        with pytest.raises(Invalid):
            parse_join_token(line)


@given(st.integers(0, len(LINE) - 1), st.text(max_size=3), st.integers(0, 3))
def test_a_line_with_any_change_is_read_as_something_or_invalid(place, put, cut):
    line = LINE[:place] + put + LINE[place + cut :]
    try:
        join = parse_join_token(line)
    except Invalid:
        return
    assert format_join_token(join) == line.strip()


@pytest.mark.parametrize("fingerprint", [b"", bytes(31), bytes(33)])
def test_what_is_no_fingerprint_is_not_written(fingerprint):
    with pytest.raises(Invalid, match="32 bytes"):
        format_join_token(JoinToken(fingerprint, TOKEN))


def test_the_nodes_own_token_is_never_written_into_one():
    with pytest.raises(Invalid, match="no signed token"):
        format_join_token(JoinToken(None, "mk-the-token-of-the-node-itself"))


def test_the_secret_does_not_show_when_it_is_printed():
    assert TOKEN not in f"{JoinToken(None, TOKEN)!r} {JoinToken(None, TOKEN)}"
