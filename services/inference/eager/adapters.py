"""Adapters in plain torch: `y += b @ (a @ x)` for the tokens that have one; hot: several times a layer, every step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count

import torch

from formats.checkpoint.adapter import Adapter
from microkernel.errors import Internal, Overloaded
from services.inference.engine.forward import Part

__all__ = ["Adapters", "StepAdapters"]

Rows = slice | torch.Tensor
Matrices = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by canonical name: a [rank, inputs] and b [outputs, rank]


class Adapters:
    """The adapters of one model on its device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device = device
        self._dtype = dtype
        self._numbers = count(1)
        self._matrices: dict[int, Matrices] = {}

    def bytes(self, adapter: Adapter) -> int:
        """What an adapter takes on the device."""
        return adapter.parameters * self._dtype.itemsize

    def add(self, adapter: Adapter) -> int:
        """Bring an adapter to the device; returns its number."""
        number = next(self._numbers)
        try:
            self._matrices[number] = {
                name: (
                    torch.from_numpy(low.a).to(self._device, self._dtype, copy=True),
                    torch.from_numpy(low.b).to(self._device, self._dtype, copy=True),
                )
                for name, low in adapter.weights.items()
            }
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise Overloaded(f"no memory for {self.bytes(adapter)} bytes of an adapter on {self._device}") from error
        return number

    def remove(self, number: int) -> None:
        """Forget an adapter."""
        self._matrices.pop(number, None)

    def arrange(self, parts: Sequence[Part]) -> StepAdapters | None:
        """Who of a step's tokens has which adapter; None where nobody has one."""
        rows: defaultdict[int, list[int]] = defaultdict(list)
        end = 0
        for part in parts:
            if part.adapter is not None:
                rows[part.adapter] += range(end, end + len(part.tokens))
            end += len(part.tokens)
        if not rows:
            return None
        missing = rows.keys() - self._matrices.keys()
        if missing:
            raise Internal(f"there is no adapter {min(missing)}")
        return StepAdapters(
            [
                (slice(None) if len(own) == end else torch.tensor(own, device=self._device), self._matrices[number])
                for number, own in rows.items()
            ]
        )


class StepAdapters:
    """The adapters of one step, each with the rows of its tokens."""

    def __init__(self, adapted: list[tuple[Rows, Matrices]]) -> None:
        self._adapted = adapted

    def add(self, y: torch.Tensor, x: torch.Tensor, layer: int, **starts: int) -> torch.Tensor:
        """Add to `y` [n, outputs] in place what adapters make of `x` [n, inputs], and return it.

        `starts` are the matrices that `y` is made with, by name (`attn_q`), each with its first output.
        """
        for rows, matrices in self._adapted:
            for part, start in starts.items():
                found = matrices.get(f"blk.{layer}.{part}.weight")
                if found is not None:
                    a, b = found
                    y[rows, start : start + b.shape[0]] += (x[rows] @ a.t()) @ b.t()
        return y
