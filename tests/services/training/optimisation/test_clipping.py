"""The length of a gradient and its limit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.training.optimisation.clipping import Diverged, clip, length_of


@settings(deadline=None)
@given(st.integers(0, 20_000), st.integers(0, 99))
def test_the_length_is_that_of_the_whole(size, seed):
    gradients = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    assert length_of(gradients) == pytest.approx(float(gradients.double().norm()), rel=1e-5, abs=1e-9)


def test_the_length_does_not_depend_on_the_number_of_threads():
    gradients = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    lengths = set()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            lengths.add(length_of(gradients))
    finally:
        torch.set_num_threads(threads)
    assert len(lengths) == 1


def test_a_long_gradient_is_shortened_to_the_limit():
    gradients = torch.tensor([30.0, 40.0])
    assert clip(gradients, 1.0, 0.5) == 25.0
    assert length_of(gradients) == pytest.approx(1.0)


def test_a_short_gradient_is_scaled_alone():
    gradients = torch.tensor([3.0, 4.0])
    assert clip(gradients, 10.0, 0.5) == 2.5
    assert gradients.tolist() == [1.5, 2.0]


def test_a_limit_of_zero_never_shortens():
    gradients = torch.tensor([30.0, 40.0])
    clip(gradients, 0.0)
    assert gradients.tolist() == [30.0, 40.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 4096, 5000])
def test_a_gradient_that_is_no_number_is_refused_as_it_is(value, place):
    gradients = torch.ones(5001)
    gradients[place] = value
    before = gradients.clone()
    with pytest.raises(Diverged):
        clip(gradients, 1.0, 0.5)
    assert torch.equal(gradients.nan_to_num(nan=9.0), before.nan_to_num(nan=9.0))
