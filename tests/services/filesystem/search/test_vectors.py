"""The nearest vectors are those that comparing all of them in full finds."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from services.filesystem.search import vectors
from services.filesystem.search.vectors import Vectors


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def index_of(exact: torch.Tensor) -> Vectors:
    index = Vectors()
    half = exact.half()
    for first in range(0, len(half), 700):  # as files come, and across the bounds of chunks
        part = half[first : first + 700]
        index.add([(first, number) for number in range(len(part))], part.numpy().tobytes())
    return index


def in_full(exact: torch.Tensor, query: torch.Tensor, count: int) -> list[float]:
    return (exact.half().float() @ query).topk(count).values.tolist()


def clustered(count: int, seed: int) -> torch.Tensor:
    """Vectors as encoders make them: few directions, and little that tells one from the other."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(8, 96, generator=generator)
    noise = torch.randn(count, 96, generator=generator)
    return unit(centers[torch.arange(count) % 8] + 0.05 * noise)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 3000),
    most=st.integers(1, 200),
    near=st.booleans(),
    outlier=st.booleans(),
)
def test_the_nearest_are_those_that_comparing_all_finds(seed, count, most, near, outlier):
    exact = clustered(count, seed)
    if outlier:  # one large number takes all levels for itself
        exact[:, 3] = 5.0
        exact = unit(exact)
    query = exact[count // 2] if near else clustered(1, seed + 1)[0]
    found = index_of(exact).rank(query.numpy().tobytes()).nearest(most)
    assert [score for _, _, score in found] == pytest.approx(in_full(exact, query, min(most, count)), abs=1e-6)


def test_pieces_are_told_apart_across_chunks(monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK", 512)
    exact = clustered(5000, 7)
    index = index_of(exact)
    assert len(index) == 5000
    for place in (0, 511, 512, 3000, 4999):
        content, number, score = index.rank(exact[place].numpy().tobytes()).nearest(1)[0]
        assert content + number == place
        assert score == pytest.approx(1.0, abs=1e-3)


def test_equal_vectors_are_all_as_near():
    exact = clustered(1, 3).expand(2000, -1)
    found = index_of(exact).rank(exact[0].contiguous().numpy().tobytes()).nearest(50)
    assert len({content + number for content, number, _ in found}) == 50


def test_a_ranking_knows_nothing_of_what_comes_after_it():
    exact = clustered(100, 5)
    index = index_of(exact)
    ranking = index.rank(exact[0].numpy().tobytes())
    index.add([(9999, 0)], exact[:1].half().numpy().tobytes())
    assert 9999 not in {content for content, _, _ in ranking.nearest(1000)}
    assert 9999 in {content for content, _, _ in index.rank(exact[0].numpy().tobytes()).nearest(2)}


def test_a_vector_that_is_no_number_is_near_to_nothing():
    exact = clustered(10, 2)
    broken = exact.clone()
    broken[4] = float("nan")
    broken[5, 0] = float("inf")
    index = index_of(broken)
    found = index.rank(exact[0].numpy().tobytes()).nearest(10)
    assert len(found) == 10
    assert found[0][1] == 0


def test_nothing_is_near_where_nothing_is():
    assert Vectors().rank(unit(torch.ones(1, 96))[0].numpy().tobytes()).nearest(10) == []
