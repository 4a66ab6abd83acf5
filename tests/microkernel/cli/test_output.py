"""Tables, sizes, times and error lines."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.buffers import Array
from microkernel.cli.output import clean, duration, error_line, moment, plain, plain_table, print_table, size
from microkernel.errors import NotFound
from microkernel.wire.record import Record

# Marks that turn the order of letters around, https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Point(msgspec.Struct):
    x: int
    tags: tuple[str, ...] = ()


def test_sizes_are_read_in_powers_of_1024():
    assert [size(count) for count in (None, 0, 1023, 1024, 98_362_432, 3 << 30, 5 << 40)] == [
        "",
        "0 B",
        "1023 B",
        "1.0 KiB",
        "93.8 MiB",
        "3.0 GiB",
        "5.0 TiB",
    ]


def test_columns_without_names_have_no_row_for_them(capsys):
    assert plain_table(("", ""), [("size", "4"), ("path", "/a")]) == "size  4\npath  /a\n"
    assert plain_table(("", ""), []) == ""
    print_table(("", ""), [("size", 4)])
    assert capsys.readouterr().out == "size  4\n"


def test_durations_are_read_in_the_unit_that_fits():
    assert [duration(seconds) for seconds in (None, 0.04, 59.9, 61, 3600, 90061)] == [
        "",
        "0.0 s",
        "59.9 s",
        "1 min 01 s",
        "1 h 00 min",
        "1 d 1 h",
    ]


def test_short_times_are_read_in_the_unit_that_fits():
    times = (None, 0.0, 4.2e-6, 0.0009994, 0.0009996, 0.0123, 0.9996, 2.0)
    assert [moment(seconds) for seconds in times] == [
        "",
        "0 us",
        "4.2 us",
        "999 us",
        "1 ms",
        "12.3 ms",
        "1.0 s",
        "2.0 s",
    ]


def test_a_table_in_a_pipe_is_aligned_and_cuts_nothing_off(capsys: pytest.CaptureFixture[str]):
    long = "x" * 300
    print_table(("name", "why"), [("a", None), ("longer", f"{long}\nsecond line"), (3, "\x1b[31mred")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["name    why", "a", f"longer  {long} second line", "3       [31mred"]


@given(st.lists(st.tuples(st.text("ab ", max_size=9), st.text("cd ", max_size=9)), max_size=5))
def test_columns_of_a_table_begin_at_one_place(rows: list[tuple[str, str]]):
    rows = [(left.strip(), right.strip()) for left, right in rows]
    lines = plain_table(("left", "right"), rows).splitlines()
    begin = lines[0].index("right")
    assert [(line[:begin].rstrip(), line[begin:]) for line in lines[1:]] == rows


@given(st.text())
def test_clean_text_drives_no_terminal(text: str):
    cleaned = clean(text)
    assert not any(ord(letter) < 32 and letter not in "\t\n" for letter in cleaned)
    assert not any(0x7F <= ord(letter) < 0xA0 for letter in cleaned)
    assert not BIDI.intersection(cleaned)
    assert clean(cleaned) == cleaned


def test_clean_text_reads_in_the_order_it_is_written():
    assert clean("".join(f"a{mark}" for mark in sorted(BIDI))) == "a" * len(BIDI)
    assert error_line(NotFound("no model \u202egpj.exe")) == "error: no model gpj.exe"
    assert clean("שלום, عالم, naïve 👩\u200d👧") == "שלום, عالم, naïve 👩\u200d👧"


def test_a_result_is_plain_wherever_it_came_from():
    here = [Point(1, ("a",))]
    there = [Record({"x": 1, "tags": ["a"]})]
    assert plain(here) == plain(there) == [{"x": 1, "tags": ["a"]}]
    assert plain({"raw": b"ab"}) == {"raw": "YWI="}
    assert plain([Array(b"ab")]) == [{"dtype": "uint8", "shape": [2], "data": "YWI="}]
    assert plain(Record({"keys": {"keys": 1}})) == {"keys": {"keys": 1}}


def test_an_error_is_one_line_with_its_remedy():
    assert error_line(NotFound("no\nmodel", remedy="pull it")) == "error: no model (pull it)"
    assert error_line(OSError(28, "No space left on device", "/a")) == "error: No space left on device: /a"
    assert error_line(OSError(28, "No space left on device")) == "error: No space left on device"
    assert "TypeError: odd" in error_line(TypeError("odd"))
    assert "MICROKERNEL_DEBUG" in error_line(TypeError("odd"))
