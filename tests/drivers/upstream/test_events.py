"""A stream of events, however its bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.upstream.events import LONGEST, BadAnswer, EventReader

LINES = st.lists(
    st.sampled_from(
        [b"data: a", b"data:b", b"data", b"data:", b": c", b"event: x", b"database: y", b"\xff\xfe", b"", b""]
    ),
    max_size=12,
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def plainly(lines: list[bytes]) -> list[bytes]:
    """What the standard says of these lines, one by one; at the end what is not ended counts."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*lines, b""]:
        if line == b"":
            if data:
                events.append(b"\n".join(data))
            data = []
        elif line == b"data" or line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    return events


@given(LINES, ENDS, st.lists(st.integers(1, 9), max_size=30), st.booleans())
def test_events_are_those_of_the_standard_wherever_the_bytes_are_cut(lines, end, cuts, ended):
    stream = end.join(lines) + (end if ended else b"")
    reader, events, at = EventReader(), [], 0
    for size in cuts:
        events += reader.feed(stream[at : at + size])
        at += size
    events += reader.feed(stream[at:])
    events += reader.end()
    assert events == plainly(lines)


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_no_bytes_make_it_raise_anything_else(chunks):
    reader = EventReader()
    for chunk in chunks:
        reader.feed(chunk)
    reader.end()


def test_a_line_that_does_not_end_is_cut_at_the_limit():
    reader = EventReader()
    reader.feed(b"x" * LONGEST)
    with pytest.raises(BadAnswer):
        reader.feed(b"x")


def test_an_event_of_many_lines_is_cut_at_the_limit():
    reader = EventReader()
    line = b"data:" + b"x" * 1000 + b"\n"
    with pytest.raises(BadAnswer):
        reader.feed(line * (LONGEST // 1000 + 1))


def test_many_events_within_the_limit_are_no_long_one():
    reader = EventReader()
    for _ in range(3):
        assert len(reader.feed(b"data:" + b"x" * (LONGEST - 10) + b"\n\n")) == 1
