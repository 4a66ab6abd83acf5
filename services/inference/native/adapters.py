"""Adapters in the kernels' layout, and who of a step's tokens has which; hot: looked at once a step."""

from __future__ import annotations

from collections.abc import Sequence as Several
from itertools import count, groupby

import numpy as np
from numpy.typing import NDArray

from formats.checkpoint.adapter import TARGETS, Adapter, LowRank
from microkernel.errors import Internal, Overloaded
from services.inference.engine.forward import Part
from services.inference.native import library
from services.inference.native.library import Adapted, AdapterLayer, Kernels, Kind, Matrix, Source

__all__ = ["Adapters", "StepAdapters"]

LANES = 16
FIELDS = dict(zip(TARGETS, ("query", "key", "value", "output", "gate", "up", "down"), strict=True))


class Adapters:
    """The adapters of one model, packed as bfloat16."""

    def __init__(self, kernels: Kernels, layers: int) -> None:
        self._kernels = kernels
        self._layers = layers
        self._numbers = count(1)
        self._packed: dict[int, _Packed] = {}

    def bytes(self, adapter: Adapter) -> int:
        """What an adapter takes, packed."""
        return sum(
            sum(self._kernels.sizes(Kind.BFLOAT16, rows, columns))
            for low in adapter.weights.values()
            for rows, columns in (_shape_of_a(low), _shape_of_b(low))
        )

    def add(self, adapter: Adapter) -> int:
        """Pack an adapter; returns its number."""
        number = next(self._numbers)
        try:
            self._packed[number] = _Packed(self._kernels, self._layers, adapter)
        except MemoryError as error:
            raise Overloaded(f"no memory for {self.bytes(adapter)} bytes of an adapter") from error
        return number

    def remove(self, number: int) -> None:
        """Forget an adapter; no step may be running."""
        self._packed.pop(number, None)

    def arrange(self, parts: Several[Part]) -> StepAdapters:
        """In which order the parts' tokens lie in a step, so that those with the same adapter are together."""
        return StepAdapters(parts, self._packed)


class StepAdapters:
    """A step's adapters: `order` holds the numbers of its parts, `ranges` what the kernels take; both as they lie."""

    def __init__(self, parts: Several[Part], packed: dict[int, _Packed]) -> None:
        self.order: Several[int] = range(len(parts))
        self.ranges = None
        self.count = self.rank = 0
        if all(part.adapter is None for part in parts):
            return
        self.order = sorted(self.order, key=lambda index: parts[index].adapter or 0)
        found: list[tuple[int, int, _Packed]] = []
        first = 0
        for number, indices in groupby(self.order, key=lambda index: parts[index].adapter or 0):
            tokens = sum(len(parts[index].tokens) for index in indices)
            if number:
                if number not in packed:
                    raise Internal(f"there is no adapter {number}")
                found.append((first, tokens, packed[number]))
            first += tokens
        self.count = len(found)
        self.rank = max(each.rank for _, _, each in found)
        self.ranges = (Adapted * self.count)(*(Adapted(start, tokens, each.layers) for start, tokens, each in found))


class _Packed:
    """One adapter in memory."""

    def __init__(self, kernels: Kernels, layers: int, adapter: Adapter) -> None:
        self._kernels = kernels
        self._memory: list[NDArray[np.uint8]] = []
        self.layers = (AdapterLayer * layers)()
        self.rank = 0
        for name, low in adapter.weights.items():
            _, index, part, _ = name.split(".")
            rank, inputs = _shape_of_a(low)
            a = np.zeros((rank, inputs), np.float32)
            a[: low.rank] = low.a
            b = np.zeros(_shape_of_b(low), np.float32)
            b[:, : low.rank] = low.b
            setattr(self.layers[int(index)], FIELDS[part], library.LowRank(self._matrix(a), self._matrix(b)))
            self.rank = max(self.rank, rank)

    def _matrix(self, values: NDArray[np.float32]) -> Matrix:
        rows, columns = values.shape
        size, _, _ = self._kernels.sizes(Kind.BFLOAT16, rows, columns)
        memory = np.zeros(size, np.uint8)
        self._memory.append(memory)
        target = memory.ctypes.data, 0, 0
        self._kernels.pack(Kind.BFLOAT16, Source.F32, values.ctypes.data, 4 * columns, 0, rows, columns, target)
        return Matrix(Kind.BFLOAT16, rows, columns, memory.ctypes.data)


def _shape_of_a(low: LowRank) -> tuple[int, int]:
    return -(-low.rank // LANES) * LANES, low.a.shape[1]


def _shape_of_b(low: LowRank) -> tuple[int, int]:
    return low.b.shape[0], -(-low.rank // LANES) * LANES
