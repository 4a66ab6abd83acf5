"""All trained parameters as views of one flat tensor, and their gradients as views of another.

What moves a whole model (a sum over workers, a checkpoint, a worker that catches up, the optimiser) then moves one
tensor. Matrices come first and vectors behind them, so that weight decay falls on one stretch and spares the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import msgspec
import torch

from microkernel.errors import Invalid

__all__ = ["FlatParameters", "Layout", "Slot", "lay_out"]


class Slot(msgspec.Struct, frozen=True):
    """Where one parameter lies: `shape` elements from `offset` on."""

    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


class Layout(msgspec.Struct, frozen=True):
    """Where all of them lie. Equal layouts have flat tensors that mean the same.

    `decayed` is how many elements, from the beginning, are of matrices; `size` how many there are.
    """

    slots: tuple[Slot, ...]
    decayed: int
    size: int


def lay_out(shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of parameters of these shapes: matrices first, then vectors, each in the order given."""
    slots: list[Slot] = []
    end = decayed = 0
    for matrices in (True, False):
        for name, shape in shapes.items():
            if (len(shape) > 1) is matrices:
                slots.append(Slot(name, end, shape))
                end += slots[-1].size
        decayed = end if matrices else decayed
    return Layout(tuple(slots), decayed, end)


class FlatParameters:
    """The two flat tensors, float32 [size], with the parameters in them by name."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self.values = torch.zeros(layout.size, device=device)
        self.gradients = torch.zeros(layout.size, device=device)
        self._slots = {slot.name: slot for slot in layout.slots}

    def value(self, name: str) -> torch.Tensor:
        """One parameter, as a view. Raises `KeyError`."""
        return _cut(self.values, self._slots[name])

    def gradient(self, name: str) -> torch.Tensor:
        """Its gradient, as a view. Raises `KeyError`."""
        return _cut(self.gradients, self._slots[name])

    def parameter(self, *names: str) -> torch.nn.Parameter:
        """Parameters that lie behind each other, their rows stacked to one, whose `grad` is a view as well."""
        slots = [self._slots[name] for name in names]
        for before, slot in pairwise(slots):
            assert slot.offset == before.offset + before.size, f"{slot.name} does not follow {before.name}"
            assert slot.shape[1:] == before.shape[1:], f"{slot.name} is not as wide as {before.name}"
        rows = sum(slot.shape[0] for slot in slots)
        whole = Slot(names[0], slots[0].offset, (rows, *slots[0].shape[1:]))
        parameter = torch.nn.Parameter(_cut(self.values, whole))
        parameter.grad = _cut(self.gradients, whole)
        return parameter

    def load(self, flat: torch.Tensor) -> None:
        """Take all values from `flat`, float32 [size] on any device. Raises `Invalid` for another shape or dtype."""
        if flat.shape != self.values.shape or flat.dtype is not torch.float32:
            raise Invalid(
                f"parameters are float32 [{self.layout.size}], and {flat.dtype} {list(flat.shape)} are given".replace(
                    "torch.", ""
                )
            )
        self.values.copy_(flat)

    def clear(self) -> None:
        """Set all gradients to zero."""
        self.gradients.zero_()


def _cut(flat: torch.Tensor, slot: Slot) -> torch.Tensor:
    return flat[slot.offset : slot.offset + slot.size].view(slot.shape)
