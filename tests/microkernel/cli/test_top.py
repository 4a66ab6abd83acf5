"""What `mk top` shows, and what its keys do."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from microkernel.cli.keys import DOWN, UP, parse_keys
from microkernel.cli.top_screen import Action, Snapshot, TopScreen


def process(pid: int, **fields: Any) -> dict[str, Any]:
    usual = {
        "pid": pid,
        "state": "running",
        "process_class": "interactive",
        "nice": 0,
        "kind": "chat",
        "title": f"title {pid}",
        "owner": "ana",
        "device": "cpu0",
        "age": 61.0,
        "device_seconds": 1.5,
        "tokens_in": 3,
        "tokens_out": 4,
        "why": "",
    }
    return usual | fields


def snapshot(*processes: dict[str, Any], busy: float = 0.5) -> Snapshot:
    device = {"name": "cpu0", "queued": 2, "quanta": 99, "state": "healthy"}
    account = {"device": "cpu0", "used_bytes": 1 << 30, "limit_bytes": 4 << 30}
    return Snapshot(policy="fair", devices=[device], accounts=[account], processes=list(processes), busy={"cpu0": busy})


def drawn(screen: TopScreen, shown: Snapshot) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(screen.draw(shown))
    return console.export_text()


def test_processes_devices_memory_and_queues_are_on_the_screen():
    screen, shown = TopScreen(), snapshot(process(7), process(8, state="waiting", why="for a place"))
    screen.update(shown)
    text = drawn(screen, shown)
    for told in ("2 processes, 1 running", "policy fair", "title 7", "for a place", "1 min 01 s", "3/4"):
        assert told in text
    assert "cpu0     [||||||||||          ]  50%   queue 2   quanta 99   memory 1.0 GiB of 4.0 GiB   healthy" in text


def test_keys_are_about_the_chosen_process():
    screen = TopScreen()
    screen.update(snapshot(process(7), process(8, nice=3)))
    assert screen.press("k") == Action("kill", {"pid": 7})
    assert screen.press(DOWN) is None
    assert [screen.press(key) for key in "nNprw"] == [
        Action("nice", {"pid": 8, "nice": 4}),
        Action("nice", {"pid": 8, "nice": 2}),
        Action("pause", {"pid": 8}),
        Action("resume", {"pid": 8}),
        Action("why", {"pid": 8}),
    ]
    screen.press(DOWN)
    assert screen.chosen["pid"] == 8, "the last one"
    screen.press(UP)
    screen.press(UP)
    assert screen.chosen["pid"] == 7
    assert screen.press("x") is None


@pytest.mark.parametrize(("nice", "key", "becomes"), [(19, "n", 19), (-20, "N", -20)])
def test_nice_stays_within_its_bounds(nice, key, becomes):
    screen = TopScreen()
    screen.update(snapshot(process(7, nice=nice)))
    assert screen.press(key).fields["nice"] == becomes


def test_the_choice_stays_with_its_process_and_goes_to_a_neighbour_when_that_has_ended():
    screen = TopScreen()
    screen.update(snapshot(*(process(pid) for pid in (1, 2, 3))))
    screen.press(DOWN)
    screen.update(snapshot(process(2), process(3)))
    assert screen.chosen["pid"] == 2
    screen.update(snapshot(process(3)))
    assert screen.chosen["pid"] == 3
    screen.update(snapshot())
    assert screen.chosen is None
    assert screen.press("k") is None


def test_what_drives_a_terminal_does_not_get_there():
    screen, shown = TopScreen(), snapshot(process(7, title="a\x1b[2Jb", why="\x07c"))
    screen.update(shown)
    assert "\x1b[2J" not in drawn(screen, shown)


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("k", ["k"]),
        ("\x1b[A", [UP]),
        ("\x1bOB", [DOWN]),
        ("k\x1b[Bq", ["k", DOWN, "q"]),
        ("\x1b[3~x", ["x"]),
        ("\x1b[1;5Cn", ["n"]),
        ("\x1b", []),
    ],
)
def test_keys_of_a_terminal_are_understood(typed, keys):
    assert parse_keys(typed) == keys


@given(st.text(alphabet="\x1b[OAB~k0;", max_size=40))
def test_no_key_is_made_of_the_middle_of_a_sequence_and_none_is_endless(typed):
    assert len(parse_keys(typed)) <= len(typed)
