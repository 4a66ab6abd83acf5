"""Events that are kept for those who come later: all of them, or none and the reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.backlog import size_of
from microkernel.config import Config, read_config
from microkernel.errors import Gone, Invalid, PreconditionFailed
from microkernel.events import Event
from microkernel.rings import DEFAULT_RINGS, Ring, RingLimits, replay, with_defaults


@given(
    st.lists(st.tuples(st.binary(max_size=5), st.integers(0, 4), st.integers(1, 3)), max_size=30),
    st.integers(1, 8),
    st.integers(0, 16),
    st.integers(1, 6),
    st.integers(0, 100),
    st.integers(0, 8),
)
def test_a_ring_replays_all_events_after_an_offset_or_says_that_it_cannot(
    history, limit, max_bytes, seconds, since, later
):
    ring = Ring(RingLimits("a.>", events=limit, bytes=max_bytes, seconds=seconds))
    now, offset, every = 0.0, 0, []
    for body, pause, gap in history:
        now, offset = now + pause, offset + gap  # other subjects take offsets too
        event = Event("a.b", body, offset)
        every.append((now, event))
        ring.keep(event, size_of(body), now)
        assert len(ring) <= limit
    now += later
    wanted = [event for _, event in every if event.offset > since]
    ends = [at + seconds for at, event in every if event.offset > since]
    fit = len(wanted) <= limit and sum(len(event.body) for event in wanted) <= max_bytes
    try:
        got = ring.since(since, now)
    except Gone:
        # Never without a reason: some wanted event was too old, too many or too large at some moment.
        assert any(end <= now for end in ends) or not fit
    else:
        assert got == wanted
        assert len(got) <= limit


def test_who_comes_too_late_is_told_the_oldest_offset_that_is_kept():
    ring = Ring(RingLimits("a", events=2))
    for offset in (3, 5, 9):
        ring.keep(Event("a", None, offset), 0, 0.0)
    with pytest.raises(Gone, match=r"of a after offset 2 are not all kept: the oldest kept is 5 .*since 3"):
        ring.since(2, 0.0)
    assert [event.offset for event in ring.since(3, 0.0)] == [5, 9]


def test_events_that_are_too_old_are_let_go_though_none_follows():
    ring = Ring(RingLimits("a", seconds=10))
    ring.keep(Event("a", None, 1), 0, 100.0)
    assert len(ring.since(0, 109.9)) == 1
    with pytest.raises(Gone, match="none is kept"):
        ring.since(0, 110.0)
    assert len(ring) == 0


def test_only_what_the_pattern_matches_is_replayed():
    ring = Ring(RingLimits("a.>"))
    for offset, subject in enumerate(("a.b", "a.c", "a.b.c"), 1):
        ring.keep(Event(subject, None, offset), 0, 0.0)
    assert [event.subject for event in replay([ring], "a.*", 0, 3, 0.0)] == ["a.b", "a.c"]


def test_of_two_rings_that_fit_the_one_that_reaches_further_is_read():
    short, long = Ring(RingLimits("a.>", events=1)), Ring(RingLimits(">", events=9))
    for offset in (1, 2, 3):
        for ring in (short, long):
            ring.keep(Event("a.b", None, offset), 0, 0.0)
    assert [event.offset for event in replay([short, long], "a.b", 0, 3, 0.0)] == [1, 2, 3]


def test_a_ring_whose_events_are_too_old_does_not_stand_before_one_that_has_them():
    short, long = Ring(RingLimits("a.>", seconds=10)), Ring(RingLimits(">", events=2))
    for offset in (1, 2, 3):
        for ring in (short, long):
            ring.keep(Event("a.b", None, offset), 0, 0.0)
    assert [event.offset for event in replay([short, long], "a.b", 1, 3, 20.0)] == [2, 3]


@pytest.mark.parametrize("pattern", [">", "a.>", "*.b", "c.b.d"])
def test_a_pattern_that_no_ring_covers_is_refused_with_the_remedy(pattern):
    rings = [Ring(RingLimits("a.b")), Ring(RingLimits("c.*"))]
    with pytest.raises(PreconditionFailed, match="are not kept") as refused:
        replay(rings, pattern, 0, 0, 0.0)
    assert f'pattern = "{pattern}"' in refused.value.remedy


def test_an_offset_of_another_epoch_is_gone():
    with pytest.raises(Gone, match="offset 8 is not of this epoch: its last event is 7"):
        replay([Ring(RingLimits(">"))], "a", 8, 7, 0.0)


def test_an_offset_below_the_first_is_refused():
    with pytest.raises(Invalid, match="not -1"):
        replay([Ring(RingLimits(">"))], "a", -1, 7, 0.0)


def test_a_configured_ring_replaces_the_default_of_its_pattern(tmp_path):
    file = tmp_path / "mk.toml"
    file.write_text('[[rings]]\npattern = "models.>"\nevents = 5\n\n[[rings]]\npattern = "dead.>"\nevents = 0\n')
    rings = {ring.pattern: ring.events for ring in with_defaults(read_config(file).rings)}
    assert rings == {"service.>": 1024, "kernel.>": 1024, "audit.>": 1024, "dead.>": 0, "models.>": 5}
    assert with_defaults(Config().rings) == DEFAULT_RINGS


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('pattern = "a b"', "rings.*'a b' is no subject"),
        ('pattern = "a"\nevents = -1', "rings.*events"),
        ('pattern = "a"\nevent = 1', "rings.*event"),
        ('pattern = "a"\nseconds = 0', "rings.*seconds"),
        ("events = 1", "rings.*pattern"),
    ],
)
def test_a_ring_that_cannot_be_is_refused_by_the_configuration(tmp_path, text, complaint):
    file = tmp_path / "mk.toml"
    file.write_text(f"[[rings]]\n{text}\n")
    with pytest.raises(Invalid, match=complaint) as refused:
        read_config(file)
    assert "mk.toml, line" in str(refused.value)
