"""The number of threads: as many as help, fewer beside a busy neighbour, back when it is gone."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from services.inference.native.threads import SELDOM, ThreadCount


def idle(count: int) -> float:
    """Seconds a step takes: threads help, with a little lost to each other."""
    return 0.002 / count + 0.0002


def busy(count: int) -> float:
    """Beside another busy process, threads wait for the one that is put aside."""
    return 0.0022 if count == 1 else 0.02


def run(threads: ThreadCount, cost, steps: int, tokens: int = 1) -> list[int]:
    """The numbers chosen for so many steps."""
    chosen = []
    for _ in range(steps):
        chosen.append(threads.choose(tokens))
        threads.note(tokens, cost(chosen[-1]))
    return chosen


def share(chosen: list[int], count: int) -> float:
    return chosen.count(count) / len(chosen)


@pytest.mark.parametrize("most", [2, 3, 4, 16])
def test_all_threads_are_used_where_they_help_and_others_are_seldom_tried(most):
    assert share(run(ThreadCount(most), idle, 5000), most) > 0.99


@pytest.mark.parametrize("most", [2, 3, 8])
def test_fewer_are_taken_where_more_is_slower(most):
    threads = ThreadCount(most)
    assert run(threads, busy, 100)[-1] == 1
    assert share(run(threads, busy, 3000), 1) > 0.99


def test_a_number_in_between_is_found_where_it_is_the_best():
    threads = ThreadCount(8)
    run(threads, lambda count: 0.001 * (1 + abs(count - 4)), 2000)
    assert share(run(threads, lambda count: 0.001 * (1 + abs(count - 4)), 1000), 4) > 0.98


def test_a_load_that_comes_is_left_to_it_within_ten_steps():
    threads = ThreadCount(2)
    run(threads, idle, 1000)
    assert run(threads, busy, 10)[-1] == 1


def test_all_threads_come_back_when_the_load_has_passed():
    threads = ThreadCount(2)
    run(threads, idle, 1000)
    run(threads, busy, 5000)
    chosen = run(threads, idle, SELDOM + 10)
    assert chosen[-1] == 2
    assert share(run(threads, idle, 1000), 2) > 0.98


@pytest.mark.parametrize("seed", range(5))
def test_noise_flips_nothing(seed):
    noise = random.Random(seed)
    threads = ThreadCount(2)
    chosen = run(threads, lambda count: idle(count) * noise.uniform(0.8, 1.25), 10_000)
    assert share(chosen, 2) > 0.99


@pytest.mark.parametrize("seed", range(5))
def test_two_numbers_as_good_as_each_other_are_not_swapped_all_the_time(seed):
    noise = random.Random(seed)
    chosen = run(ThreadCount(2), lambda _: 0.001 * noise.uniform(0.9, 1.1), 10_000)
    assert sum(one != other for one, other in pairwise(chosen)) < 400


def test_a_single_slow_step_changes_nothing():
    threads = ThreadCount(2)
    run(threads, idle, 100)
    run(threads, lambda _: 1.0, 1)
    assert share(run(threads, idle, 200), 2) > 0.95


def test_steps_of_one_token_and_of_many_are_judged_for_themselves():
    threads = ThreadCount(2)
    for _ in range(200):
        run(threads, busy, 1, tokens=1)
        run(threads, lambda count: 512 * idle(count), 1, tokens=512)
    assert (run(threads, busy, 1, tokens=1), run(threads, idle, 1, tokens=512)) == ([1], [2])


def test_with_one_core_there_is_nothing_to_try():
    assert set(run(ThreadCount(1), busy, 2000)) == {1}
