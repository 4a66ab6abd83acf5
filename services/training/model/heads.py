"""From one product to turned queries, keys and values: heads split, normed where a family does, and rotated in place.

Rows of queries and keys are in rotary pairs, so a rotation (https://arxiv.org/abs/2104.09864) is one complex
multiplication, and its gradient one by the conjugate. The buffer that the product made becomes all three: nothing
else is kept, and on the way back their gradients are written into one buffer again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

from services.training.model.gradients import add_sum
from services.training.model.norm import normed, normed_backward

__all__ = ["Norms", "split_heads"]

Norms = tuple[torch.Tensor, torch.Tensor, float]
"""Qwen3's: weights for query heads and for key heads, [head size] each, and eps."""


def split_heads(
    qkv: torch.Tensor, rotation: torch.Tensor, heads: int, kv_heads: int, norms: Norms | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [rows, heads, length, size], keys and values [rows, kv heads, length, size].

    `qkv` [rows, length, (heads + 2 * kv heads) * size] is overwritten: nobody else may need it. `rotation` is complex64
    [rows, length, 1, size / 2].
    """
    query, key, eps = norms or (None, None, 0.0)
    result = _Heads.apply(qkv, rotation, heads, kv_heads, query, key, eps)  # type: ignore[no-untyped-call]  # torch's
    q, k, v = result
    return q, k, v


class _Heads(Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: torch.Tensor,
        rotation: torch.Tensor,
        heads: int,
        kv_heads: int,
        query: torch.Tensor | None,
        key: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, ...]:
        ctx.heads, ctx.turned = heads, heads + kv_heads
        given = qkv.detach().view(*qkv.shape[:2], heads + 2 * kv_heads, -1)
        x, inverse = given.float(), None
        if query is not None and key is not None:
            unit, inverse = normed(x[:, :, : ctx.turned], eps)
            x = torch.cat((unit[:, :, :heads] * query, unit[:, :, heads:] * key, x[:, :, ctx.turned :]), 2)
        ctx.save_for_backward(rotation, query, key, inverse, None if inverse is None else given)
        _pairs(x[:, :, : ctx.turned]).mul_(rotation)
        x = x.to(qkv.dtype).transpose(1, 2)
        return x[:, :heads], x[:, heads : ctx.turned], x[:, ctx.turned :]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rotation, query, key, inverse, given = ctx.saved_tensors
        dtype = gradients[0].dtype
        x = torch.cat([gradient.transpose(1, 2) for gradient in gradients], 2).float()
        turned = x[:, :, : ctx.turned]
        _pairs(turned).mul_(rotation.conj())
        of_query = of_key = None
        if inverse is not None:
            unit = given[:, :, : ctx.turned] * inverse
            each = turned * unit
            of_query = add_sum(query, each[:, :, : ctx.heads]) if ctx.needs_input_grad[4] else None
            of_key = add_sum(key, each[:, :, ctx.heads :]) if ctx.needs_input_grad[5] else None
            turned[:, :, : ctx.heads].mul_(query)
            turned[:, :, ctx.heads :].mul_(key)
            normed_backward(unit, inverse, turned)
        return x.to(dtype).flatten(2), None, None, None, of_query, of_key, None


def _pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
