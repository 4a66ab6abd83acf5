"""RMSNorm (https://arxiv.org/abs/1910.07467) with its gradient in few passes; hot: twice a layer.

Of the way there the input and one number a row are kept; the normed input is computed again from them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

from services.training.model.gradients import add_sum

__all__ = ["norm", "normed", "normed_backward"]


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """`x` [..., n] (float32) over the root of its mean square, times `weight` [n], as `dtype`."""
    y: torch.Tensor = _Norm.apply(x, weight, eps, dtype)  # type: ignore[no-untyped-call]  # torch's own
    return y


def normed(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` over the root of its mean square, and one over that root: [..., n] and [..., 1]."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * inverse, inverse


def normed_backward(unit: torch.Tensor, inverse: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of `x`, by that of the normed `unit`; the memory of `gradient` and `unit` is used up."""
    along = (gradient * unit).mean(-1, keepdim=True)
    return gradient.sub_(unit.mul_(along)).mul_(inverse)


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        unit, inverse = normed(x, eps)
        ctx.save_for_backward(x, weight, inverse)
        return unit.mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        gradient = gradients[0].float()
        unit = x * inverse
        of_weight = add_sum(weight, gradient * unit) if ctx.needs_input_grad[1] else None
        of_x = normed_backward(unit, inverse, gradient * weight) if ctx.needs_input_grad[0] else None
        return of_x, of_weight, None, None
