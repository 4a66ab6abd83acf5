"""Matrix products of a layer with their gradients; hot: four of them a layer, and most of the time of a step.

A trained one adds its weight's gradient where that is kept. A frozen one (`four_bit.Matrix`) keeps no dense weight
for the way back, and may have a low-rank product beside it (LoRA, https://arxiv.org/abs/2106.09685): those of
matrices with the same input (queries, keys and values) have their `a` stacked to one product.
Numbers are computed in the dtype of the input; parameters are float32.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch.autograd import Function
from torch.nn import functional

from services.training.model.four_bit import Matrix
from services.training.model.gated import gated, gated_backward
from services.training.model.gradients import add_product, add_sum

__all__ = ["Beside", "frozen_product", "trained_product"]


class Beside(msgspec.Struct, frozen=True):
    """The shape of the low-rank products beside a frozen one: their rank, their scale, and whose rows each adds to.

    `spans` are the first row and the end of each in the frozen matrix; `a` [len(spans) * rank, inputs] and `b` [rows of
    all, rank] have them in this order.
    """

    rank: int
    scale: float
    spans: tuple[tuple[int, int], ...]


def trained_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, gates: bool = False
) -> torch.Tensor:
    """`x @ weight.T + bias`, [..., inputs] to [..., outputs]. With `gates`, `x` is `gated` first and has 2 * inputs."""
    y: torch.Tensor = _Trained.apply(x.flatten(0, -2), weight, bias, gates)  # type: ignore[no-untyped-call]  # torch's
    return y.view(*x.shape[:-1], -1)


def frozen_product(
    x: torch.Tensor,
    matrix: Matrix,
    bias: torch.Tensor | None,
    low: tuple[torch.Tensor, torch.Tensor, Beside] | None = None,
    kept: torch.Tensor | None = None,
    *,
    gates: bool = False,
) -> torch.Tensor:
    """As `trained_product`, plus `scale * b @ a` of `low` (a, b, their shape).

    The low-rank product sees of `x` what `kept` has, [n, inputs] in the dtype of `x`: 0 for what is dropped.
    """
    a, b, shape = low or (None, None, None)
    arguments = (x.flatten(0, -2), a, b, matrix, bias, shape, kept, gates)
    y: torch.Tensor = _Frozen.apply(*arguments)  # type: ignore[no-untyped-call]  # torch's
    return y.view(*x.shape[:-1], -1)


class _Trained(Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gates: bool
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.gates = gates
        of_dtype = None if bias is None else bias.to(x.dtype)
        return functional.linear(gated(x) if gates else x, weight.to(x.dtype), of_dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        gradient = gradients[0]
        inputs = gated(x) if ctx.gates else x
        of_weight = add_product(weight, gradient, inputs) if ctx.needs_input_grad[1] else None
        of_bias = add_sum(bias, gradient) if ctx.needs_input_grad[2] else None
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight.to(gradient.dtype)
            of_x = gated_backward(x, of_x) if ctx.gates else of_x
        return of_x, of_weight, of_bias, None


class _Frozen(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor | None,
        b: torch.Tensor | None,
        matrix: Matrix,
        bias: torch.Tensor | None,
        low: Beside | None,
        kept: torch.Tensor | None,
        gates: bool,
    ) -> torch.Tensor:
        inputs = gated(x) if gates else x
        y = functional.linear(inputs, matrix.dense(x.dtype), bias)
        ctx.matrix, ctx.low, ctx.gates = matrix, low, gates
        h = None
        if a is not None and b is not None and low is not None:
            h = (inputs if kept is None else inputs * kept) @ a.to(x.dtype).t()
            for index, (start, end, rows) in enumerate(_places(low)):
                part = h[:, index * low.rank : (index + 1) * low.rank]
                y[:, start:end].addmm_(part, b[rows].to(x.dtype).t(), alpha=low.scale)
        ctx.save_for_backward(x, a, b, kept, h)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a, b, kept, h = ctx.saved_tensors
        gradient = gradients[0]
        of_x = gradient @ ctx.matrix.dense(gradient.dtype) if ctx.needs_input_grad[0] else None
        of_a = of_b = None
        if h is not None:
            inputs = gated(x) if ctx.gates else x
            of_h, of_b = _low_backward(ctx.low, gradient, b, h)
            of_a = add_product(a, of_h, inputs if kept is None else inputs * kept)
            if of_x is not None and kept is None:
                of_x.addmm_(of_h, a.to(gradient.dtype))
            elif of_x is not None:
                of_x.addcmul_(of_h @ a.to(gradient.dtype), kept)
        if of_x is not None and ctx.gates:
            of_x = gated_backward(x, of_x)
        return of_x, of_a, of_b, None, None, None, None, None


def _low_backward(
    low: Beside, gradient: torch.Tensor, b: torch.Tensor, h: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradient of `h`, and that of `b` where it has no place of its own."""
    of_h = torch.empty_like(h)
    of_b = torch.zeros_like(b) if b.grad is None else b.grad
    for index, (start, end, rows) in enumerate(_places(low)):
        part = slice(index * low.rank, (index + 1) * low.rank)
        outputs = gradient[:, start:end]
        torch.mm(outputs, b[rows].to(h.dtype) * low.scale, out=of_h[:, part])
        if of_b.dtype is h.dtype:
            of_b[rows].addmm_(outputs.t(), h[:, part], alpha=low.scale)
        else:
            of_b[rows].add_(outputs.t() @ h[:, part], alpha=low.scale)
    return of_h, of_b if b.grad is None else None


def _places(low: Beside) -> list[tuple[int, int, slice]]:
    """Of each product the first row and the end in the frozen matrix, and its rows in `b`."""
    places, first = [], 0
    for start, end in low.spans:
        places.append((start, end, slice(first, first + end - start)))
        first += end - start
    return places
