"""Log-probabilities of chosen tokens and of the likeliest ones, of those who ask."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import Internal
from services.inference.engine.logprobs import LEAST, MOST, take


def noise(rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab_size, generator=chance) * 4).round() / 2  # with equals, as bfloat16 has them


@given(
    counts=st.lists(st.none() | st.integers(0, MOST), min_size=1, max_size=6),
    vocab_size=st.sampled_from([3, 20, 500]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_they_are_those_of_the_softmax_and_the_same_alone_and_in_any_batch(counts, vocab_size, seed):
    logits = noise(len(counts), vocab_size, seed)
    tokens = [row % vocab_size for row in range(len(counts))]
    expected = torch.log_softmax(logits.double(), dim=-1)
    found = take(logits, tokens, counts)
    for row, (count, one) in enumerate(zip(counts, found, strict=True)):
        assert take(logits[row : row + 1], tokens[row : row + 1], [count]) == [one]
        if count is None:
            assert one is None
            continue
        assert one.logprob == pytest.approx(float(expected[row, tokens[row]]), abs=1e-4)
        assert len(one.top) == min(count, vocab_size)
        likeliest = expected[row].sort(descending=True).values[: len(one.top)]
        assert [value for _, value in one.top] == pytest.approx(likeliest.tolist(), abs=1e-4)
        assert all(value == pytest.approx(float(expected[row, token]), abs=1e-4) for token, value in one.top)
        assert len({token for token, _ in one.top}) == len(one.top)


def test_what_cannot_be_is_told_as_a_number_that_json_has():
    logits = torch.full((1, 30), -math.inf)
    logits[0, 4] = 1.0
    [one] = take(logits, [4], [2])
    assert one.logprob == 0.0
    assert one.top[0] == (4, 0.0)
    assert one.top[1][1] == LEAST


def test_a_row_that_got_an_error_has_none_and_the_others_have_theirs():
    found = take(noise(2, 50), [Internal("no"), 3], [5, 5])
    assert found[0] is None
    assert len(found[1].top) == 5


def test_nothing_is_computed_where_nobody_asks(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "logsumexp", None)
    assert take(noise(3, 50), [1, 2, 3], [None] * 3) == [None] * 3
