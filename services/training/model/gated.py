"""SwiGLU, `silu(gate) * up` (https://arxiv.org/abs/2002.05202), computed again for the gradient rather than kept.

Products take it as part of themselves (see `products`): of a feed-forward layer only `gate` and `up` are kept, which
are two thirds of what autograd would keep.
"""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["gated", "gated_backward"]


def gated(both: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` [n, size] of `both` [n, 2 * size], the gates before the others."""
    gate, up = both.chunk(2, -1)
    return functional.silu(gate).mul_(up)


def gated_backward(both: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient [n, 2 * size] of `both`, by that of the result [n, size]."""
    gate, up = both.chunk(2, -1)
    result = torch.empty_like(both)
    of_gate, of_up = result.chunk(2, -1)
    torch.mul(functional.silu(gate), gradient, out=of_up)
    torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
    return result
