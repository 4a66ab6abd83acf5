"""Muon (https://kellerjordan.github.io/posts/muon): momentum, made orthogonal, as the change of a matrix.

The arithmetic of `torch.optim.Muon`, which always iterates in bfloat16; here in the dtype that the device computes in,
for on a CPU without such products bfloat16 takes ten times as long as float32.
"""

from __future__ import annotations

import math

import torch

__all__ = ["MOMENTUM", "orthogonal", "update_matrix"]

MOMENTUM = 0.95
STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan's: steepest at zero, where small singular values start
EPS = 1e-7


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """About `U @ V.T` of `matrix` = `U @ S @ V.T` [rows, columns], by Newton-Schulz steps in `dtype`."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.t() if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.t() if tall else x


def update_matrix(
    value: torch.Tensor,
    gradient: torch.Tensor,
    momentum: torch.Tensor,
    *,
    rate: float,
    weight_decay: float,
    dtype: torch.dtype,
) -> None:
    """Change `value` and `momentum` [rows, columns] by one step; Nesterov's, and scaled up for tall matrices."""
    momentum.lerp_(gradient, 1.0 - MOMENTUM)
    change = orthogonal(gradient.lerp(momentum, MOMENTUM), dtype)
    value.mul_(1.0 - rate * weight_decay)
    rows, columns = value.shape
    value.add_(change.to(value.dtype), alpha=-rate * math.sqrt(max(1.0, rows / columns)))
