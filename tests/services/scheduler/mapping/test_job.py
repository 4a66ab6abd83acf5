"""A map's tasks in random lives: assigned, done, lost, copied; each item counts once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.mapping.fold import Fold, InOrder
from services.scheduler.mapping.job import MOST_TOGETHER, Job
from services.scheduler.mapping.partition import TARGET, Equal, Guided


def job_of(items: int, tasks: int | None = None, *, workers: int = 3, **options) -> Job:
    partition = Guided() if tasks is None else Equal(items, tasks)
    return Job(items, partition, workers, **{"window": items + 1} | options)


@given(items=st.integers(1, 5000), tasks=st.integers(1, 5000))
def test_tasks_of_equal_size_differ_by_one_at_most_and_cover_all_items_once(items, tasks):
    tasks = min(tasks, items)
    job, sizes, place = job_of(items, tasks), [], 0
    while (attempt := job.assign(0.0)) is not None:
        assert attempt.task.start == place
        place = attempt.task.stop
        sizes.append(len(attempt.task))
    assert (place, len(sizes)) == (items, tasks)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(each=st.floats(1e-7, 0.5), items=st.integers(1, 200_000), workers=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_guided_tasks_come_to_take_a_tenth_of_a_second_and_end_small(each, items, workers):
    job, sizes, now = job_of(items, workers=workers), [], 0.0
    while (attempt := job.assign(now)) is not None:
        sizes.append(len(attempt.task))
        now += each * len(attempt.task)
        assert job.commit(attempt, each * len(attempt.task))
    assert sum(sizes) == items
    assert job.finished
    assert max(sizes) * each <= max(TARGET * 1.01, each)
    assert sizes[-1] <= max(1, items // workers)


def test_no_task_begins_too_far_ahead_of_what_was_taken():
    job = job_of(100, 100, window=20)
    begun = list(iter(lambda: job.assign(0.0), None))
    assert len(begun) == 20
    job.taken = 5
    assert len(list(iter(lambda: job.assign(0.0), None))) == 5


def test_large_tasks_are_as_far_ahead_as_four_for_each_worker():
    job = job_of(100_000, 100, window=10)
    assert len(list(iter(lambda: job.assign(0.0), None))) == 12


def test_what_a_journal_has_is_not_done_again():
    job = job_of(100, 10, done=[(0, 10), (30, 40), (95, 100)])
    assert job.done_items == 25
    spans = []
    while (attempt := job.assign(0.0)) is not None:
        spans.append((attempt.task.start, attempt.task.stop))
        job.commit(attempt, 0.0)
    assert spans == [(10, 20), (20, 30), (40, 50), (50, 60), (60, 70), (70, 80), (80, 90), (90, 95)]
    assert job.finished


def test_a_task_whose_worker_was_lost_is_done_by_another():
    job = job_of(2, 1)
    first = job.assign(0.0)
    assert job.lose(first) is None
    second = job.assign(0.0)
    assert (second.task.start, second.task.stop) == (0, 2)
    assert not job.commit(first, 1.0), "the fence keeps out what comes too late"
    assert job.commit(second, 1.0)
    assert job.finished


def test_the_item_that_costs_workers_is_found_and_fails_alone():
    job, poison, failed, lost = job_of(100, 4), 37, [], 0
    while not job.finished:
        attempt = job.assign(0.0)
        if poison in range(attempt.task.start, attempt.task.stop):
            lost += 1
            at_fault = job.lose(attempt)
            failed += [] if at_fault is None else [(at_fault.start, at_fault.stop)]
        else:
            job.commit(attempt, 0.0)
    assert failed == [(37, 38)]
    assert lost <= 2 + 6 + 1, "twice the whole, once for each halving, and once alone"


def test_nobody_is_blamed_for_what_ended_while_others_ran_too():
    job = job_of(3, 3, workers=3)
    guilty, innocent, other = job.assign(0.0), job.assign(0.0), job.assign(0.0)
    for _ in range(2):
        assert job.lose(guilty) is None
        assert job.lose(innocent) is None
        if job.has_more:
            guilty, innocent = job.assign(0.0), job.assign(0.0)
    assert job.assign(0.0) is None, "a suspect is done alone"
    assert job.commit(other, 0.1)
    guilty = job.assign(0.0)
    assert job.assign(0.0) is None, "a suspect is done alone"
    at_fault = job.lose(guilty)
    assert (at_fault.start, at_fault.stop) == (0, 1)
    assert job.commit(job.assign(0.0), 0.1)
    assert job.finished


def test_a_worker_that_is_lost_once_puts_nothing_off():
    job = job_of(100, 100, workers=2)
    first, second = job.assign(0.0), job.assign(0.0)
    assert job.lose(first) is None
    assert job.commit(second, 0.1)
    assert job.assign(0.0).task is first.task, "it is the next, beside others"
    assert job.assign(0.0).task.start == 2


def test_a_suspect_whose_result_is_waited_for_is_done_before_all_that_follow():
    job = job_of(100, 100, workers=2)
    suspect, other = job.assign(0.0), job.assign(0.0)
    for _ in range(2):
        assert job.lose(suspect) is None
        if job.has_more and suspect.task.killed < 2:
            suspect = job.assign(0.0)
    assert job.assign(0.0) is None, "first what runs has to end"
    assert job.commit(other, 0.1)
    alone = job.assign(0.0)
    assert alone.task is suspect.task
    assert job.assign(0.0) is None
    assert job.commit(alone, 0.1)
    assert job.assign(0.0).task.start == 2


def test_a_suspect_whose_result_can_wait_is_done_last():
    job = job_of(4, 4, workers=2)
    first, suspect = job.assign(0.0), job.assign(0.0)
    assert job.lose(suspect) is None
    suspect = job.assign(0.0)
    assert job.lose(suspect) is None
    rest = [job.assign(0.0), job.assign(0.0)]
    assert [attempt.task.start for attempt in rest] == [2, 3]
    assert job.assign(0.0) is None
    for attempt in (first, *rest):
        assert job.commit(attempt, 0.1)
    assert job.assign(0.0).task is suspect.task


def test_a_task_that_cannot_be_cut_fails_as_a_whole_after_two_workers():
    job = job_of(10, 1, divisible=False)
    assert job.lose(job.assign(0.0)) is None
    at_fault = job.lose(job.assign(0.0))
    assert (at_fault.start, at_fault.stop) == (0, 10)
    assert job.finished


def test_a_slow_task_is_copied_once_nothing_else_is_left_and_the_first_to_end_counts():
    job = job_of(4, 4, workers=2)
    slow = job.assign(0.0)
    for _ in range(3):
        job.commit(job.assign(0.0), 0.1)
    assert job.assign(0.1) is None, "not slow yet"
    copy = job.assign(1.0)
    assert copy.task is slow.task
    assert job.assign(1.0) is None, "one copy is enough"
    assert job.commit(copy, 1.1)
    assert not job.commit(slow, 1.2)
    assert (job.finished, job.copied) == (True, 1)


def test_where_the_copy_is_slow_too_there_is_another_one_later():
    job = job_of(4, 4, workers=3)
    first = job.assign(0.0)
    for _ in range(3):
        job.commit(job.assign(0.0), 0.1)
    assert job.assign(0.3).task is first.task
    assert job.assign(0.6) is None, "the copy has not had its time"
    last = job.assign(0.8)
    assert last.task is first.task
    assert job.commit(last, 0.9)
    assert job.finished


def test_what_workers_have_ahead_is_no_reason_to_copy_what_waits_behind_it():
    job = job_of(4, 4, workers=2)
    first = job.assign(0.0)
    for _ in range(3):
        job.commit(job.assign(0.0), 0.1)
    assert job.assign(0.3, ahead=1) is None
    assert job.assign(0.5, ahead=1).task is first.task


def test_a_task_that_has_cost_a_worker_is_not_given_to_a_second_one_as_well():
    job = job_of(8, 4, workers=2)
    job.lose(job.assign(0.0))
    assert job.assign(0.0).task.killed == 1
    for _ in range(3):
        job.commit(job.assign(0.0), 0.1)
    assert job.assign(10.0) is None


def test_a_copy_that_is_lost_does_not_bring_the_task_back_while_the_first_runs():
    job = job_of(4, 4, workers=2)
    slow = job.assign(0.0)
    for _ in range(3):
        job.commit(job.assign(0.0), 0.1)
    copy = job.assign(1.0)
    job.lose(copy)
    assert not job.has_more
    assert job.commit(slow, 2.0)
    assert job.finished


def spans(attempts) -> list[tuple[int, int]]:
    return [(attempt.task.start, attempt.task.stop) for attempt in attempts]


def test_tasks_that_take_no_time_are_assigned_as_many_at_once_as_fill_the_time():
    job = job_of(1000, 1000)
    assert len(job.assign_some(0.0, 0.001)) == 1, "nobody knows yet what they take"
    job.commit(job.assign(0.0), 0.0001)
    assert spans(job.assign_some(0.0, 0.001)) == [(item, item + 1) for item in range(2, 12)]
    assert len(job.assign_some(0.0, 10.0)) == MOST_TOGETHER


def test_a_task_that_takes_as_long_is_assigned_by_itself():
    job = job_of(1000, 1000)
    job.commit(job.assign(0.0), 0.1)
    assert len(job.assign_some(0.0, 0.001)) == 1


def test_nobody_is_to_blame_for_a_worker_that_had_many_tasks_and_each_is_done_apart():
    job = job_of(100, 100)
    job.commit(job.assign(0.0), 0.0001)
    lost = job.assign_some(0.0, 0.001)
    assert job.lose_some(lost) is None
    assert job.lost_workers == 1
    apart = [job.assign_some(0.0, 0.001) for _ in lost]
    assert [len(attempts) for attempts in apart] == [1] * len(lost)
    assert sorted(spans([attempt for (attempt,) in apart])) == spans(lost)
    assert [attempt.task.killed for (attempt,) in apart] == [0] * len(lost)
    assert len(job.assign_some(0.0, 0.001)) > 1, "the others go on as before"


def test_what_cannot_be_done_together_is_done_apart_and_fewer_are_tried_from_then_on():
    job = job_of(1000, 1000)
    job.commit(job.assign(0.0), 1e-6)
    refused = job.assign_some(0.0, 1.0)
    job.refuse(refused)
    assert job.lost_workers == 0
    assert spans([job.assign_some(0.0, 1.0)[0] for _ in refused]) == spans(refused)
    assert len(job.assign_some(0.0, 1.0)) == len(refused) // 2


def test_tasks_that_were_given_back_are_assigned_before_those_that_follow():
    job = job_of(100, 100)
    job.commit(job.assign(0.0), 0.0001)
    first, *rest = job.assign_some(0.0, 0.001)
    job.commit(first, 0.1)
    for attempt in rest:
        job.cancel(attempt)
    assert spans(job.assign_some(0.0, 1.0))[: len(rest)] == spans(rest)


@given(
    items=st.integers(1, 300),
    tasks=st.none() | st.integers(1, 50),
    workers=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    poison=st.none() | st.integers(0, 299),
)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_to_workers_each_item_is_counted_once(items, tasks, workers, seed, poison):
    chance = random.Random(seed)
    job = job_of(items, None if tasks is None else min(tasks, items), workers=workers)
    counted, running, now, kills = [0] * items, [], 0.0, 0
    while not job.finished:
        now += chance.random()
        while len(running) < workers and (attempt := job.assign(now)) is not None:
            running.append(attempt)
        attempt = running.pop(chance.randrange(len(running)))
        task, fate = attempt.task, chance.random()
        if poison is not None and poison in range(task.start, task.stop):
            fate = 0.0
        if fate < 0.1 and (kills < 40 or fate == 0.0):
            kills += 1
            at_fault = job.lose(attempt)
            if at_fault is not None:
                for item in range(at_fault.start, at_fault.stop):
                    counted[item] += 1
        elif fate < 0.2:
            job.cancel(attempt)
        elif job.commit(attempt, now):
            for item in range(task.start, task.stop):
                counted[item] += 1
    assert counted == [1] * items
    for attempt in running:
        assert not job.commit(attempt, now + 1.0)


@given(
    items=st.integers(1, 300),
    tasks=st.none() | st.integers(1, 300),
    workers=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    poison=st.none() | st.integers(0, 299),
)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_to_workers_with_many_tasks_each_item_is_counted_once(items, tasks, workers, seed, poison):
    chance = random.Random(seed)
    job = job_of(items, None if tasks is None else min(tasks, items), workers=workers)
    counted, failed, running, now, kills = [0] * items, [], [], 0.0, 0
    while not job.finished:
        now += chance.random()
        while len(running) < workers and (attempts := job.assign_some(now, 0.001)):
            running.append(attempts)
        attempts = running.pop(chance.randrange(len(running)))
        has_poison = any(
            poison is not None and attempt.task.start <= poison < attempt.task.stop for attempt in attempts
        )
        fate = chance.random()
        if has_poison or (fate < 0.05 and kills < 40):
            kills += 1
            at_fault = job.lose_some(attempts)
            if at_fault is not None:
                failed.append((at_fault.start, at_fault.stop))
                for item in range(at_fault.start, at_fault.stop):
                    counted[item] += 1
            continue
        done = chance.randint(1, len(attempts))
        for attempt in attempts[:done]:
            if job.commit(attempt, 1e-5 * len(attempt.task)):
                for item in range(attempt.task.start, attempt.task.stop):
                    counted[item] += 1
        for attempt in attempts[done:]:
            job.cancel(attempt)
    assert counted == [1] * items
    if poison is not None and poison < items:
        assert (poison, poison + 1) in failed


@given(st.permutations(list(range(12))))
def test_pieces_come_out_in_order_whatever_came_first(places):
    order, out = InOrder(), []
    for place in places:
        out += order.put(2 * place, 2 * place + 2, place)
    assert out == sorted(places)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_a_reduction_has_the_same_bits_whichever_task_ends_first(values, chance):
    def folded(order: list[int]) -> float:
        fold = Fold(lambda one, other: one + other)
        for place in order:
            fold.put(place, place + 1, values[place], 1)
        return fold.value

    order = list(range(len(values)))
    expected = folded(order)
    chance.shuffle(order)
    assert folded(order) == expected


def test_tasks_whose_items_all_failed_add_nothing():
    fold = Fold(lambda one, other: one + other)
    fold.put(0, 1, None, 0)
    fold.put(1, 2, 5, 1)
    fold.put(2, 3, None, 0)
    assert (fold.value, fold.count) == (5, 1)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_no_items_are_done_at_once(workers):
    job = job_of(0, None, workers=workers)
    assert job.finished
    assert job.assign(0.0) is None
