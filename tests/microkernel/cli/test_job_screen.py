"""What is shown of a training job: the live screen, the lines, the chart, and what is told at the end."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from microkernel.cli.job_follow import told_at_the_end
from microkernel.cli.job_screen import JobScreen, Known, step_line
from microkernel.cli.text_chart import LARGEST, chart


def job(**fields: Any) -> dict[str, Any]:
    usual = {
        "job": "tiny-1",
        "name": "tiny",
        "owner": "ana",
        "state": "running",
        "why": "",
        "pid": 3,
        "base": "small",
        "method": "lora",
        "device": "cpu0",
        "workers": 2,
        "step": 5,
        "steps": 20,
        "tokens": 640,
        "tokens_second": 128.0,
        "loss": 2.5,
        "evaluation_loss": None,
        "trained": 100,
        "saved_step": 0,
        "lost_workers": 0,
        "started": 1000.0,
        "ended": None,
        "seconds_left": 75.0,
        "result": "",
        "notes": [],
    }
    return usual | fields


def point(step: int, **fields: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("loss", "evaluation_loss", "rate", "norm", "seconds", "event"))
    return {"step": step, "at": 0.0, "tokens": 0} | empty | fields


def known(*points: dict[str, Any], **fields: Any) -> Known:
    made = Known(job(**fields))
    made.take(points)
    return made


def drawn(shown: Known) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(JobScreen(shown).draw(now=1061.0))
    return console.export_text()


def test_the_screen_says_how_far_a_job_is():
    text = drawn(known(point(4, loss=3.0), point(5, loss=2.5)))
    for told in (
        "tiny-1",
        "running",
        "lora of small",
        "1 min 01 s",
        " 25%",
        "step 5 of 20   loss 2.500   128 tokens/s",
    ):
        assert told in text


def test_the_screen_has_the_last_checkpoint_lost_workers_events_and_notes():
    event = point(3, event="worker 2 ended: SIGKILL")
    text = drawn(known(event, saved_step=4, lost_workers=1, notes=["no checkpoint of step 2: busy"]))
    told = ("last checkpoint: step 4", "1 worker was lost", "step 3: worker 2 ended: SIGKILL", "note: no checkpoint")
    assert [each for each in told if each not in text] == []


def test_what_a_job_is_called_does_not_drive_the_terminal():
    assert "\x1b" not in drawn(known(point(1, event="\x1b[2J"), job="\x1b[31mred", why="\x1b[0m", notes=["\x1b[1m"]))


def test_a_job_that_has_no_step_yet_has_no_line_of_steps():
    assert "step" not in drawn(known(step=0, steps=0, loss=None, state="preparing", why="3 % of the data"))


def test_a_line_leaves_out_what_is_not_known():
    assert step_line(job(loss=None, tokens_second=0.0, seconds_left=None)) == "step 5 of 20"


def test_steps_that_are_done_again_are_what_they_were_last():
    assert known(point(1, loss=3.0), point(1, loss=2.0)).losses == {1: 2.0}


def test_who_joins_late_hears_of_an_event_once():
    event = point(3, event="worker 2 ended: SIGKILL")
    assert len(known(event, event).events) == 1


# The end


def test_a_job_that_is_done_ends_with_how_to_talk_to_what_came_of_it():
    shown = known(
        point(5, evaluation_loss=3.0),
        point(20, evaluation_loss=1.5),
        state="done",
        step=20,
        result="poet",
        ended=1090.0,
    )
    assert told_at_the_end(shown) == [
        "tiny-1 is done: 20 steps, 640 tokens, in 1 min 30 s",
        "held-out loss 3.000 at step 5, 1.500 at step 20",
        "the result is the model poet: mk chat poet",
    ]


def test_a_job_that_failed_ends_with_the_reason_and_the_ways_on():
    told = told_at_the_end(known(state="failed", why="the disk is full (make room)"))
    assert told[0] == "tiny-1 is failed: the disk is full (make room)"
    assert "mk jobs resume tiny-1" in told[-1]


def test_a_job_whose_node_stops_goes_on_by_itself():
    assert "goes on" in told_at_the_end(known(state="interrupted"))[-1]


# The chart

losses = st.dictionaries(st.integers(0, 10_000), st.floats(), max_size=50)


@given(losses, losses, st.integers(2, 80), st.integers(2, 20))
def test_a_chart_has_its_height_whatever_the_numbers_are(values, held_out, width, height):
    lines = chart(values, held_out, width, height)
    there = any(abs(value) <= LARGEST for value in (*values.values(), *held_out.values()))
    assert len(lines) == (height + 1 if there else 0)


def test_a_falling_curve_begins_above_left_and_ends_below_right():
    lines = chart({step: 10.0 - step for step in range(11)}, {}, 10, 5)
    assert lines[0] == "10 ⠑⢄"
    assert lines[4].startswith(" 0 " + 8 * " ")


def test_what_is_held_out_is_marked_at_its_place():
    lines = chart({0: 4.0, 10: 1.0}, {10: 4.0}, 10, 4)
    assert lines[0].endswith("o")
    assert lines[-1].split() == ["step", "0", "10", "o", "held", "out"]
