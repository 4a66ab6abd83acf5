"""The four products of a layer: each trained in full, or frozen with low-rank products beside it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import nn

from formats.checkpoint.architecture import DecoderConfig, expected_shapes
from services.training.config import MethodConfig
from services.training.model.flat import FlatParameters
from services.training.model.four_bit import Matrix
from services.training.model.lora import STACKS, draw_kept, stack_targets
from services.training.model.products import Beside, frozen_product, trained_product

__all__ = ["FrozenProduct", "LayerProducts", "Product", "TrainedProduct", "Weights"]


class Weights:
    """The tensors of a model by canonical name: trained ones in `flat`, frozen ones as they are kept.

    `matrices` are the frozen matrices of layers, by the names of a stack; `vectors` all else that is frozen.
    `rope_factors` [head size / 2] divide the frequencies of rotary positions.
    """

    def __init__(
        self,
        config: DecoderConfig,
        method: MethodConfig,
        flat: FlatParameters,
        matrices: dict[tuple[str, ...], Matrix],
        vectors: dict[str, torch.Tensor],
        rope_factors: torch.Tensor | None,
    ) -> None:
        self.shapes = expected_shapes(config)
        self.method = method
        self.flat = flat
        self.rope_factors = rope_factors
        self._matrices = matrices
        self._vectors = vectors

    def tensor(self, *names: str) -> torch.Tensor:
        """One tensor, or several that lie behind each other as one: a parameter where it is trained."""
        if self.method.kind == "full":
            return self.flat.parameter(*names)
        found = [self._vectors[name] for name in names]
        return found[0] if len(found) == 1 else torch.cat(found)

    def matrix(self, *names: str) -> Matrix:
        """Frozen matrices with the same input, as one."""
        return self._matrices[names]


class Product(nn.Module):
    """What is common to both kinds: a product of a layer, [..., inputs] to [..., outputs]."""

    @property
    def frozen_bytes(self) -> int:
        """What of it is not trained, in memory."""
        return 0


class TrainedProduct(Product):
    """All of it is trained."""

    def __init__(self, weights: Weights, names: Sequence[str], *, biased: bool, gates: bool) -> None:
        super().__init__()
        self.weight = weights.tensor(*(f"{name}.weight" for name in names))
        self.bias = weights.tensor(*(f"{name}.bias" for name in names)) if biased else None
        self._gates = gates

    def forward(self, x: torch.Tensor, draws: int | None) -> torch.Tensor:  # noqa: ARG002 - nothing is dropped here
        """The product of `x` in its own dtype."""
        return trained_product(x, self.weight, self.bias, gates=self._gates)


class FrozenProduct(Product):
    """The matrix stays; what is trained are the low-rank products beside it, where the method has any for it."""

    def __init__(self, weights: Weights, layer: int, stack: tuple[str, ...], *, biased: bool, gates: bool) -> None:
        super().__init__()
        names = [f"blk.{layer}.{part}" for part in stack]
        method = weights.method
        self._matrix = weights.matrix(*(f"{name}.weight" for name in names))
        self._bias = weights.tensor(*(f"{name}.bias" for name in names)) if biased else None
        self._gates = gates
        self._dropout = method.dropout
        self._place = layer * len(STACKS) + STACKS.index(stack) + 1
        self._beside: Beside | None = None
        targets = [f"blk.{layer}.{part}.weight" for part in stack_targets(stack, method)]
        if targets:
            self.a = weights.flat.parameter(*(f"{name}.lora_a" for name in targets))
            self.b = weights.flat.parameter(*(f"{name}.lora_b" for name in targets))
            spans = _spans({f"{name}.weight": weights.shapes[f"{name}.weight"][0] for name in names}, targets)
            self._beside = Beside(method.rank, method.alpha / method.rank, spans)

    def forward(self, x: torch.Tensor, draws: int | None) -> torch.Tensor:
        """The product of `x` in its own dtype; what `draws` drops is dropped for the low-rank products alone."""
        bias = None if self._bias is None else self._bias.to(x.dtype)
        if self._beside is None:
            return frozen_product(x, self._matrix, bias, gates=self._gates)
        kept = None
        if self._dropout and draws is not None:
            rows, columns = x.flatten(0, -2).shape
            seen = x.new_empty(rows, columns // 2 if self._gates else columns)
            kept = draw_kept(seen, self._dropout, draws, self._place)
        return frozen_product(x, self._matrix, bias, (self.a, self.b, self._beside), kept, gates=self._gates)

    @property
    def frozen_bytes(self) -> int:
        """What of it is not trained, in memory."""
        return self._matrix.nbytes + (0 if self._bias is None else self._bias.nbytes)


class LayerProducts(nn.Module):
    """Queries, keys and values as one; the attention's output; gate and up as one; down, which takes those two."""

    def __init__(self, config: DecoderConfig, weights: Weights, index: int) -> None:
        super().__init__()
        self.qkv = _product(weights, index, STACKS[0], biased=config.qkv_bias)
        self.output = _product(weights, index, STACKS[1], biased=config.output_bias)
        self.gate_up = _product(weights, index, STACKS[2])
        self.down = _product(weights, index, STACKS[3], gates=True)

    @property
    def frozen_bytes(self) -> int:
        """What of it is not trained, in memory."""
        return sum(product.frozen_bytes for product in (self.qkv, self.output, self.gate_up, self.down))


def _product(
    weights: Weights, layer: int, stack: tuple[str, ...], *, biased: bool = False, gates: bool = False
) -> Product:
    if weights.method.kind == "full":
        return TrainedProduct(weights, [f"blk.{layer}.{part}" for part in stack], biased=biased, gates=gates)
    return FrozenProduct(weights, layer, stack, biased=biased, gates=gates)


def _spans(rows: dict[str, int], targets: list[str]) -> tuple[tuple[int, int], ...]:
    """The first row and the end of each target among matrices with so many rows, stacked."""
    ends = dict(zip(rows, accumulate(rows.values()), strict=True))
    return tuple((ends[name] - rows[name], ends[name]) for name in targets)
