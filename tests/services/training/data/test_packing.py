"""Packing: each learned token is learned once, no document that fits is cut, and rows are full."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.training.data.packing import Pieces, Rows, cut, pack

SIZES = st.lists(st.integers(1, 60), max_size=60)
LENGTHS = st.integers(1, 40)


def ends_of(sizes: list[int]) -> NDArray[np.int64]:
    return np.cumsum(np.array(sizes, dtype=np.int64), dtype=np.int64)


def places(pieces: Pieces) -> list[int]:
    return [
        place
        for start, length in zip(pieces.starts.tolist(), pieces.lengths.tolist(), strict=True)
        for place in range(start, start + length)
    ]


def row_lengths(rows: Rows) -> list[int]:
    return [int(rows.pieces.lengths[a:b].sum()) for a, b in zip(rows.borders[:-1], rows.borders[1:], strict=True)]


@given(sizes=SIZES, length=LENGTHS)
def test_each_token_of_a_text_but_a_documents_last_is_in_one_piece(sizes: list[int], length: int):
    ends = ends_of(sizes)
    expected = sorted(set(range(int(ends[-1]) if sizes else 0)) - {int(end) - 1 for end in ends})
    assert sorted(places(cut(ends, length, None))) == expected


@given(sizes=SIZES, length=LENGTHS, seed=st.integers(0, 99))
def test_each_learned_token_is_the_target_of_one_place(sizes: list[int], length: int, seed: int):
    ends = ends_of(sizes)
    marks = np.random.default_rng(seed).random(int(ends[-1]) if sizes else 0) < 0.2
    for end, size in zip(ends.tolist(), sizes, strict=True):
        marks[end - size] = False
        marks[end - 1] = size > 1  # what stands behind the last learned token is not kept
    found = places(cut(ends, length, lambda start, stop: marks[start:stop]))
    learned = [place + 1 for place in found if marks[place + 1]]
    assert sorted(learned) == np.flatnonzero(marks).tolist()
    assert len(set(found)) == len(found)


@given(sizes=SIZES, length=LENGTHS)
def test_no_piece_spans_two_documents_or_is_longer_than_a_row(sizes: list[int], length: int):
    ends = ends_of(sizes)
    for start, size in zip(*cut(ends, length, None), strict=True):
        assert 1 <= size <= length
        assert np.searchsorted(ends, start, side="right") == np.searchsorted(ends, start + size, side="right")


def test_a_long_question_leaves_an_answer_all_the_context_that_fits():
    marks = np.zeros(1000, dtype=np.bool_)
    marks[990:] = True
    pieces = cut(np.array([1000]), 64, lambda start, stop: marks[start:stop])
    assert (pieces.starts.tolist(), pieces.lengths.tolist()) == ([935], [64])


@given(sizes=st.lists(st.integers(1, 40), max_size=200), spare=st.integers(0, 10))
def test_packing_loses_and_doubles_no_piece(sizes: list[int], spare: int):
    lengths = np.array(sizes, dtype=np.int32)
    starts = np.arange(len(sizes), dtype=np.int64) * 100
    rows = pack(Pieces(starts, lengths), max(sizes, default=1) + spare)
    found = zip(rows.pieces.starts.tolist(), rows.pieces.lengths.tolist(), strict=True)
    assert sorted(found) == sorted(zip(starts.tolist(), sizes, strict=True))


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=200), spare=st.integers(0, 10))
def test_no_row_is_empty_or_overfull(sizes: list[int], spare: int):
    length = max(sizes) + spare
    rows = pack(Pieces(np.zeros(len(sizes), dtype=np.int64), np.array(sizes, dtype=np.int32)), length)
    assert all(1 <= size <= length for size in row_lengths(rows))


def best_fit(sizes: list[int], length: int) -> list[int]:
    """The textbook's best-fit-decreasing, piece by piece: how full the rows are."""
    rows: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [(length - row, place) for place, row in enumerate(rows) if row + size <= length]
        if fitting:
            rows[min(fitting)[1]] += size
        else:
            rows.append(size)
    return sorted(rows)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=200), spare=st.integers(0, 10))
def test_rows_are_filled_as_best_fit_decreasing_fills_them(sizes: list[int], spare: int):
    length = max(sizes) + spare
    rows = pack(Pieces(np.zeros(len(sizes), dtype=np.int64), np.array(sizes, dtype=np.int32)), length)
    assert sorted(row_lengths(rows)) == best_fit(sizes, length)


@pytest.mark.parametrize("length", [512, 4096])
def test_documents_of_all_lengths_waste_less_than_a_hundredth(length):
    sizes = np.random.default_rng(0).lognormal(5.5, 1.2, 50_000).astype(np.int64) + 2
    assert pack(cut(np.cumsum(sizes), length, None), length).waste < 0.01


def test_nothing_makes_no_rows():
    assert pack(cut(np.zeros(0, dtype=np.int64), 8, None), 8).count == 0
