"""The loss in parts against the plain one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from services.training.model.cross_entropy import cross_entropy


def plain(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(hidden @ head.t(), targets, reduction="sum")


@settings(deadline=None)
@given(
    tokens=st.integers(1, 9), rows=st.integers(1, 10), scale=st.sampled_from([0.01, 1.0, 30.0]), seed=st.integers(0, 99)
)
def test_value_and_gradients_are_those_of_the_plain_loss(tokens, rows, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(tokens, 6, generator=generator)).requires_grad_()
    head = torch.randn(11, 6, generator=generator).requires_grad_()
    targets = torch.randint(0, 11, (tokens,), generator=generator)
    expected = plain(hidden, head, targets)
    total = cross_entropy(hidden, head, targets, rows)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
    for own, theirs in zip(
        torch.autograd.grad(2.0 * total, (hidden, head)),
        torch.autograd.grad(2.0 * expected, (hidden, head)),
        strict=True,
    ):
        torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-4)


def test_a_gradient_that_is_kept_is_added_to():
    hidden, head = torch.randn(5, 4, requires_grad=True), torch.nn.Parameter(torch.randn(7, 4))
    targets = torch.tensor([0, 1, 2, 3, 6])
    (expected,) = torch.autograd.grad(cross_entropy(hidden, head, targets, 2), head)
    head.grad = torch.ones_like(head)
    cross_entropy(hidden, head, targets, 2).backward()
    torch.testing.assert_close(head.grad, 1.0 + expected)


def test_logits_too_large_for_exp_have_a_loss():
    hidden, head = torch.full((1, 1), 1e4, requires_grad=True), torch.tensor([[1.0], [-1.0]])
    total = cross_entropy(hidden, head, torch.tensor([1]))
    total.backward()
    assert total == 2e4
    assert hidden.grad == 2.0


def test_without_a_wish_for_gradients_none_are_made():
    hidden, head = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    with torch.no_grad():
        total = cross_entropy(hidden, head, torch.zeros(5, dtype=torch.int64))
    assert not total.requires_grad
