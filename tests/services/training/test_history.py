"""The jobs of a node on its disk."""

from __future__ import annotations

import pytest

from microkernel.errors import NotFound
from services.training.history import History, thinned
from services.training.messages import Job, JobState, Point


def loss(step: int, at: float = 0.0, value: float = 1.0) -> Point:
    return Point(step=step, at=at, loss=value)


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "jobs")


def test_jobs_of_one_name_are_counted(history):
    assert [history.begin("a", "x") for _ in range(3)] == ["a-1", "a-2", "a-3"]
    assert history.begin("a-1", "x") == "a-1-1"
    history.forget("a-2")
    assert history.begin("a", "x") == "a-4"


def test_a_record_is_as_it_was_written_last(history):
    name = history.begin("a", "text")
    for step in (1, 2):
        history.record(Job(job=name, name="a", owner="ann", state=JobState.RUNNING, step=step))
    jobs, broken = history.all()
    assert [job.step for job in jobs] == [2]
    assert broken == []
    assert history.config(name) == "text"


def test_a_record_that_cannot_be_read_is_named_and_the_others_stay(history):
    for _ in range(2):
        history.record(Job(job=history.begin("a", ""), name="a", owner="ann", state=JobState.DONE))
    (history.folder("a-1") / "job.json").write_text("{")
    jobs, broken = history.all()
    assert ([job.job for job in jobs], broken) == (["a-2"], ["a-1"])


def test_steps_that_were_done_again_are_in_the_curve_once_as_they_were_done_last(history):
    name = history.begin("a", "")
    history.append(name, [loss(1), loss(2), loss(3), Point(step=2, at=0.5, evaluation_loss=5.0)])
    history.append(name, [loss(2, 9.0, 2.0), loss(3, 9.1, 2.0), Point(step=3, at=9.2, event="a worker ended")])
    points = history.curve(name)
    assert [(point.step, point.loss) for point in points if point.loss is not None] == [(1, 1.0), (2, 2.0), (3, 2.0)]
    assert [point.event for point in points if point.event] == ["a worker ended"]


def test_half_a_line_of_a_crash_is_passed_over(history):
    name = history.begin("a", "")
    history.append(name, [loss(1)])
    with (history.folder(name) / "curve.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "at"')
    assert [point.step for point in history.curve(name)] == [1]


@pytest.mark.parametrize("name", ["nothing-1", "../etc", "", "a/b", "."])
def test_what_is_no_job_is_not_found(history, name):
    for ask in (history.curve, history.config, history.forget):
        with pytest.raises(NotFound):
            ask(name)


def test_a_long_curve_is_thinned_evenly_and_keeps_its_ends_and_events():
    points = [loss(step) for step in range(10_000)] + [Point(step=5, at=0, event="x")]
    kept = thinned(points, 100)
    steps = [point.step for point in kept if point.loss is not None]
    assert (len(steps), steps[0], steps[-1]) == (100, 0, 9_999)
    assert [point.event for point in kept if point.event] == ["x"]
