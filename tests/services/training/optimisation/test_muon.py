"""Muon against torch's own, and what it means."""

from __future__ import annotations

import pytest
import torch

from services.training.optimisation.muon import orthogonal, update_matrix

SHAPES = [(12, 12), (8, 20), (20, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_change_has_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix, torch.float32))
    assert 0.4 < values.min() <= values.max() < 1.3


@pytest.mark.parametrize("shape", SHAPES)
def test_it_steps_as_torchs_own_does(shape):
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(shape, generator=generator)
    theirs = torch.nn.Parameter(value.clone())
    optimiser = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1)
    momentum = torch.zeros(shape)
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        theirs.grad = gradient.clone()
        optimiser.step()
        update_matrix(value, gradient, momentum, rate=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    torch.testing.assert_close(value, theirs.detach(), rtol=1e-3, atol=1e-3)


def test_a_gradient_of_zero_is_no_change_but_decay():
    value = torch.ones(3, 4)
    update_matrix(value, torch.zeros(3, 4), torch.zeros(3, 4), rate=0.5, weight_decay=0.5, dtype=torch.float32)
    assert torch.equal(value, torch.full((3, 4), 0.75))
