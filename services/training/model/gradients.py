"""Gradients of parameters, added where they are kept: hot, once for each parameter and shard.

Autograd would make a tensor of each product and then add it to the parameter's `grad`; a product that adds its result
to what is there already saves that pass over memory.
"""

from __future__ import annotations

import torch

__all__ = ["add_product", "add_rows", "add_sum"]


def add_product(parameter: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor | None:
    """Add `left.T @ right` to the gradient: None, or the product itself where there is no `grad` to add to."""
    if parameter.grad is None:
        return (left.t() @ right).to(parameter.dtype)
    if left.dtype is parameter.dtype:
        parameter.grad.addmm_(left.t(), right)
    else:
        parameter.grad.add_(left.t() @ right)
    return None


def add_sum(parameter: torch.Tensor, rows: torch.Tensor) -> torch.Tensor | None:
    """Add the sum of `rows` [..., n] over all but the last dimension, as `add_product` does."""
    total = rows.flatten(0, -2).sum(0, dtype=parameter.dtype)
    if parameter.grad is None:
        return total
    parameter.grad.add_(total)
    return None


def add_rows(parameter: torch.Tensor, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor | None:
    """Add each of `rows` [n, columns] to the row of the gradient that `index` (int64 [n]) names.

    In the same order each time: on a CPU `index_add_` goes row by row, and elsewhere `index_put_` sorts first.
    """
    target = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    if target.device.type == "cpu":
        target.index_add_(0, index, rows.to(target.dtype))
    else:
        target.index_put_((index,), rows.to(target.dtype), accumulate=True)
    return target if parameter.grad is None else None
