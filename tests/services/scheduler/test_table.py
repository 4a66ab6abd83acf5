"""The process table."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import AlreadyExists, NotFound, Overloaded, PreconditionFailed
from services.scheduler.messages import ProcessState, Progress, Spawn
from services.scheduler.table import ENDED, ProcessTable

WORK = Spawn(kind="chat", title="hello")


def test_a_process_has_a_pid_of_its_own_and_an_age():
    table = ProcessTable()
    first, second = table.spawn(WORK, "inference", 10.0), table.spawn(WORK, "inference", 11.0)
    assert first.pid != second.pid
    assert [process.age for process in table.show(13.0, ended=False)] == [3.0, 2.0]


def test_pids_that_are_reserved_are_nobody_elses_and_show_nothing():
    table = ProcessTable()
    before = table.spawn(WORK, "inference", 0.0).pid
    reserved = table.reserve(3)
    after = table.spawn(WORK, "inference", 0.0).pid
    assert len({before, *reserved, after}) == 5
    assert [process.pid for process in table.show(0.0, ended=True)] == [before, after]


def test_progress_shows_and_an_end_moves_it_to_the_history():
    table = ProcessTable()
    pid = table.spawn(WORK, "inference", 0.0).pid
    table.update(Progress(pid=pid, state=ProcessState.RUNNING, tokens_out=3), 1.0)
    assert table.running(pid, 1.0).tokens_out == 3
    table.update(Progress(pid=pid, state=ProcessState.DONE, tokens_out=5), 2.0)
    assert table.show(9.0, ended=False) == []
    [ended] = table.show(9.0, ended=True)
    assert (ended.state, ended.tokens_out, ended.age) == (ProcessState.DONE, 5, 2.0)


def test_what_has_ended_or_never_was_cannot_be_killed_and_says_which():
    table = ProcessTable()
    pid = table.spawn(WORK, "inference", 0.0).pid
    table.update(Progress(pid=pid, state=ProcessState.DONE), 1.0)
    with pytest.raises(PreconditionFailed, match="is done already"):
        table.running(pid, 2.0)
    with pytest.raises(NotFound, match="no process -1"):
        table.running(-1, 2.0)


def test_a_full_table_is_told():
    table = ProcessTable(limit=2)
    table.spawn(WORK, "inference", 0.0)
    table.spawn(WORK, "inference", 0.0)
    with pytest.raises(Overloaded):
        table.spawn(WORK, "inference", 0.0)


def test_the_processes_of_a_service_that_is_gone_have_failed():
    table = ProcessTable()
    table.spawn(WORK, "inference", 0.0)
    other = table.spawn(Spawn(kind="run", title="x"), "training", 0.0)
    table.fail_service("inference", "it crashed", 1.0)
    assert [process.pid for process in table.show(1.0, ended=False)] == [other.pid]
    assert table.show(1.0, ended=True)[0].why == "it crashed"


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from(list(ProcessState)))))
def test_a_process_that_has_ended_never_comes_back_and_the_history_is_bounded(updates):
    table = ProcessTable(history=5, pids=itertools.count(1))
    for _ in range(20):
        table.spawn(WORK, "inference", 0.0)
    ended = set()
    for pid, state in updates:
        known = table.update(Progress(pid=pid, state=state), 1.0)
        assert (known is None) == (pid in ended or pid > 20)
        if known is not None and state in ENDED:
            ended.add(pid)
    assert {process.pid for process in table.show(1.0, ended=False)} == set(range(1, 21)) - ended
    assert len(table.show(1.0, ended=True)) == 20 - len(ended) + min(5, len(ended))


def test_a_pid_names_one_process_even_when_the_table_is_a_new_one():
    first, second = ProcessTable(), ProcessTable()
    before = first.spawn(WORK, "inference", 0.0)
    assert second.spawn(WORK, "inference", 0.0).pid != before.pid
    again = second.spawn(msgspec.structs.replace(WORK, pid=before.pid), "inference", 1.0)
    assert again.pid == before.pid
    with pytest.raises(AlreadyExists):
        second.spawn(msgspec.structs.replace(WORK, pid=before.pid), "inference", 1.0)
