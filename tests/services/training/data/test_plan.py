"""The plan: a permutation for each epoch, shards that are nobody's, rows that are left out from a step on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.training.data.permutation import LARGEST, permuted, place_of
from services.training.data.plan import LeftOut, Plan, shards_of

SEEDS = st.integers(0, 1 << 53)


def taken(plan: Plan, steps: range, rows: int, shards: int = 1) -> list[int]:
    return [row for step in steps for shard in range(shards) for row in plan.at(step, shard, rows, shards).tolist()]


@given(count=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 1 << 40))
def test_an_epoch_has_every_row_once(count: int, seed: int, epoch: int):
    values = permuted(np.arange(count), np.full(count, epoch), count, seed)
    assert sorted(values.tolist()) == list(range(count))


@given(count=st.integers(1, LARGEST), seed=SEEDS, place=st.integers(0, LARGEST - 1), epoch=st.integers(0, 1 << 40))
def test_a_row_is_found_at_its_place(count: int, seed: int, place: int, epoch: int):
    places, epochs = np.array([place % count]), np.array([epoch])
    row = permuted(places, epochs, count, seed)
    assert 0 <= row[0] < count
    assert place_of(row, epochs, count, seed) == places


def test_the_order_is_the_same_on_every_machine_and_in_every_version():
    assert permuted(np.arange(10), np.full(10, 3), 10, 7).tolist() == ORDER


def test_rows_are_mixed_evenly():
    count, epochs = 16, 4000
    at = np.stack([permuted(np.arange(count), np.full(count, epoch), count, 1) for epoch in range(epochs)])
    seen = np.stack([np.bincount(at[:, place], minlength=count) for place in range(count)])
    expected = epochs / count
    assert ((seen - expected) ** 2 / expected).sum() < 330  # chi-squared of 225 degrees: once in 100,000
    follows = np.bincount((at[:, 1:] - at[:, :-1]).ravel() % count, minlength=count)[1:]
    assert abs(follows / follows.mean() - 1).max() < 0.1


@given(rows=st.integers(1, 300), size=st.integers(1, 8), shards=st.integers(1, 6), seed=SEEDS)
@settings(max_examples=60)
def test_epochs_follow_each_other_without_a_row_lost_or_doubled(rows: int, size: int, shards: int, seed: int):
    per_step = size * shards
    stream = taken(Plan(rows, seed), range(3 * rows // per_step + 1), per_step, shards)
    for epoch in range(3):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(step=st.integers(0, 1000), seed=SEEDS)
@settings(max_examples=40)
def test_shards_of_a_step_are_its_rows_however_many_there_are(step: int, seed: int):
    plan = Plan(1000, seed)
    whole = taken(plan, range(step, step + 1), 24)
    assert all(taken(Plan(1000, seed), range(step, step + 1), 24, shards) == whole for shards in (2, 3, 4, 24))
    assert plan.step(step, 24).tolist() == whole


def test_epochs_and_seeds_have_orders_of_their_own():
    plan = Plan(100, 1)
    first, second = taken(plan, range(1), 100), taken(plan, range(1, 2), 100)
    assert first != second
    assert first != taken(Plan(100, 2), range(1), 100)


@given(world=st.integers(1, 64), shards=st.integers(1, 256))
def test_the_ranks_share_each_shard_once_and_evenly(world: int, shards: int):
    ranges = [shards_of(rank, world, shards) for rank in range(world)]
    assert [shard for one in ranges for shard in one] == list(range(shards))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


@given(
    rows=st.integers(2, 60),
    per_step=st.integers(1, 9),
    leaps=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3)), min_size=1, max_size=4),
    seed=SEEDS,
)
@settings(deadline=None, max_examples=40)
def test_what_is_left_out_never_comes_again_and_all_else_comes_once_an_epoch(
    rows: int, per_step: int, leaps: list[tuple[int, int]], seed: int
):
    plan = Plan(rows, seed)
    kept = list(plan_stream(rows, seed, 40 * per_step * (len(leaps) + 2)))  # (row) of the stream, all epochs
    out: list[tuple[int, set[int]]] = []
    for step, count in sorted(leaps):
        bad = set(plan.step(step, per_step)[:count].tolist())
        if len(set().union(bad, *(found for _, found in out))) == rows:
            return
        before = taken(plan, range(step), per_step)
        plan = plan.without(bad, step, per_step)
        out.append((step, bad))
        head, tail = kept[: step * per_step], kept[step * per_step :]
        kept = head + [row for row in tail if row not in bad]
        assert taken(plan, range(step), per_step) == before
    steps = min(25, len(kept) // per_step)
    assert taken(plan, range(steps), per_step) == kept[: steps * per_step]


def plan_stream(rows: int, seed: int, count: int) -> list[int]:
    places = np.arange(count)
    return permuted(places % rows, places // rows, rows, seed).tolist()


def test_a_plan_is_made_again_of_what_was_left_out():
    plan = Plan(50, 3).without([4, 5], 2, 8).without([6], 9, 8)
    again = Plan(50, 3, plan.left_out)
    assert taken(plan, range(20), 8) == taken(again, range(20), 8)


def test_a_million_epochs_later_it_is_found_at_once():
    plan = Plan(3, 1).without([2], 5, 2)
    assert set(plan.at(10**12, 0, 2, 1).tolist()) <= {0, 1}


@pytest.mark.parametrize(("epochs", "rows", "steps"), [(1, 8, 13), (2, 8, 25), (0.5, 8, 7), (1, 200, 1), (0.001, 8, 1)])
def test_the_last_step_of_so_many_epochs_counts_whole(epochs, rows, steps):
    assert Plan(100, 0).steps(epochs, rows) == steps


@pytest.mark.parametrize(
    ("step", "shard", "rows", "shards"), [(-1, 0, 8, 4), (0, 4, 8, 4), (0, -1, 8, 4), (0, 0, 8, 3), (0, 0, 0, 1)]
)
def test_a_place_that_is_not_in_a_plan_is_refused(step, shard, rows, shards):
    with pytest.raises(Invalid):
        Plan(100, 0).at(step, shard, rows, shards)


@pytest.mark.parametrize("rows", [0, LARGEST + 1])
def test_a_plan_needs_rows(rows):
    with pytest.raises(Invalid):
        Plan(rows, 0)


@pytest.mark.parametrize("left_out", [LeftOut(-1, (0,)), LeftOut(0, (9,)), LeftOut(0, (0, 1, 2))])
def test_rows_that_cannot_be_left_out_are_refused(left_out):
    with pytest.raises(Invalid, match="left out"):
        Plan(3, 0, [left_out])


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_its_world_has_no_shards(rank):
    with pytest.raises(Invalid):
        shards_of(rank, 4, 8)


ORDER = [0, 6, 9, 2, 7, 4, 8, 3, 1, 5]
