"""Sums over shards come to the same bits, whoever adds them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.training.data.plan import shards_of
from services.training.worker.sums import Node, PartialSums, ShardTree


def values_of(shards: int, size: int = 7) -> list[torch.Tensor]:
    """Numbers of many sizes: their sum depends on its order."""
    generator = torch.Generator().manual_seed(shards)
    return [
        torch.randn(size, generator=generator) * 10.0 ** torch.randint(-6, 7, (size,), generator=generator)
        for _ in range(shards)
    ]


def summed(shards: int, ranges: list[range]) -> torch.Tensor:
    """By workers with these ranges, and then together."""
    tree, values, parts = ShardTree(shards), values_of(shards), []
    for own in ranges:
        sums = PartialSums(tree)
        for shard in own:
            sums.add(shard, values[shard])
        assert [node for node, _ in sums.parts] == tree.nodes_of(own)
        parts += sums.parts
    return tree.total(parts)


@given(shards=st.integers(1, 40), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_any_split_of_the_shards_comes_to_the_same_bits(shards, cuts):
    places = sorted({0, shards, *(cut for cut in cuts if cut < shards)})
    ranges = [range(start, stop) for start, stop in itertools.pairwise(places)]
    assert torch.equal(summed(shards, ranges), summed(shards, [range(shards)]))


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 13])
def test_the_sum_is_that_of_all_shards(shards):
    total = summed(shards, [range(shards)])
    exact = torch.stack([value.double() for value in values_of(shards)]).sum(0)
    assert torch.allclose(total.double(), exact, rtol=1e-5, atol=1e-3)


def test_the_order_matters_to_plain_sums():
    """Or the others would prove nothing."""
    values = values_of(13)
    forward = sum(values[1:], start=values[0].clone())
    backward = sum(reversed(values[:-1]), start=values[-1].clone())
    assert not torch.equal(forward, backward)


@given(world=st.integers(1, 12), more=st.integers(0, 40))
def test_each_shard_is_one_workers_and_none_has_two_more_than_another(world, more):
    shards = world + more
    owned = [list(shards_of(rank, world, shards)) for rank in range(world)]
    assert [shard for each in owned for shard in each] == list(range(shards))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_a_value_that_was_added_may_be_filled_anew():
    sums, value = PartialSums(ShardTree(3)), torch.ones(2)
    for shard in range(3):
        sums.add(shard, value.fill_(shard + 1.0))
    assert torch.equal(sums.parts[0][1], torch.full((2,), 6.0))


def test_the_memory_of_a_step_serves_the_next():
    sums, value = PartialSums(ShardTree(4)), torch.ones(2)
    seen = set()
    for _ in range(3):
        for shard in range(4):
            sums.add(shard, value)
            seen |= {part.data_ptr() for _, part in sums.parts}
        sums.clear()
    assert len(seen) == 2  # as deep as the tree is without its root


def test_a_missing_part_is_named():
    tree = ShardTree(4)
    with pytest.raises(ValueError, match="end at shard 2 of 4"):
        tree.total([(Node(0, 2), torch.ones(1))])
