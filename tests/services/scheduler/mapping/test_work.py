"""The work of tasks that a worker is given in one go."""

from __future__ import annotations

import time

import pytest

from services.scheduler.mapping.work import QUANTUM, do
from services.scheduler.messages import Range, RunTasks


def ended(work):
    """What it returns, once it has had all of its turns."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.fixture
def no_hurry(monkeypatch):
    """Tasks of a batch stay together, however slow this machine is now."""
    monkeypatch.setattr("services.scheduler.mapping.work.TOGETHER", 60.0)


def test_each_task_has_an_outcome_of_its_own(no_hurry):
    batch = RunTasks(function="mapped:odd_fails", tasks=[[0, 2], Range(1, 3), [4]])
    outcomes = ended(do(batch))
    assert [outcome.values for outcome in outcomes] == [[0, 2], [None, 2], [4]]
    assert [list(outcome.failed) for outcome in outcomes] == [[], [0], []]


def test_each_task_is_reduced_by_itself(no_hurry):
    outcomes = ended(do(RunTasks(function="mapped:square", tasks=[[1, 2], [3]], reduce="sum")))
    assert [(outcome.folded, outcome.count) for outcome in outcomes] == [(5, 2), (9, 1)]


def test_those_behind_one_that_takes_long_are_given_back_and_have_not_begun(tmp_path):
    arguments = {"folder": str(tmp_path), "seconds": 0.02}
    outcomes = ended(do(RunTasks(function="mapped:noted", tasks=[[1], [2], [3]], arguments=arguments)))
    assert [outcome.values for outcome in outcomes] == [[1]]
    assert len(list(tmp_path.iterdir())) == 1


def test_others_have_their_turn_between_two_items_of_a_long_task():
    work = do(RunTasks(function="time:sleep", tasks=[[2 * QUANTUM, 0.0]]))
    began = time.perf_counter()
    next(work)
    assert time.perf_counter() - began >= QUANTUM
    (outcome,) = ended(work)
    assert outcome.values == [None, None]
