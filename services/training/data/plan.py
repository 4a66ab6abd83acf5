"""Which row is where: a pure function of seed, step, shard and place in the shard; who computes it does not matter.

The rows of all epochs are one stream, each epoch permuted anew, and a step takes the next `rows` of it: the last step
of an epoch goes on into the next one, so that no row is lost. A step's rows are cut into a fixed number of virtual
shards, which the ranks that there are share: membership may change, the global batch does not. Nothing is counted or
kept but what was left out.

Rows are left out from a step on, where a run diverged on them: those behind take their places, and no step before is
another than it was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from microkernel.errors import Invalid
from services.training.data.permutation import LARGEST, permuted, place_of

__all__ = ["LeftOut", "Plan", "shards_of"]

BLOCK = 256  # rows that are looked up together
KEPT = 64  # blocks, and epochs with rows that are left out


def shards_of(rank: int, world: int, shards: int) -> range:
    """The virtual shards of a rank: neighbours; over all ranks each shard once, and one more for some than for others.

    Raises `Invalid` for a rank that is not in [0, world).
    """
    if not 0 <= rank < world:
        raise Invalid(f"rank {rank} is not one of {world}")
    return range(rank * shards // world, (rank + 1) * shards // world)


class LeftOut(msgspec.Struct, frozen=True):
    """Rows that are not taken from the place `start` of the stream on, in all epochs."""

    start: int
    rows: tuple[int, ...]


class _Stretch(msgspec.Struct, frozen=True):
    """Epochs from `epoch` on that have `kept` rows each; `first` is how many were taken before them."""

    first: int
    epoch: int
    kept: int


class Plan:
    """The order of `rows` rows under `seed`, without what was left out. It does not change: `without` makes another."""

    def __init__(self, rows: int, seed: int, left_out: Sequence[LeftOut] = ()) -> None:
        """Raises `Invalid` where there are no rows, or none is left."""
        if not 0 < rows <= LARGEST:
            raise Invalid(f"a plan is for 1 to {LARGEST} rows, not {rows}")
        self.rows = rows
        self.seed = seed
        self.left_out = tuple(sorted(left_out, key=lambda entry: entry.start))
        self._blocks: dict[int, NDArray[np.int64]] = {}
        self._holes: dict[int, NDArray[np.int64]] = {}  # by epoch, as `_holes_of` made them
        for entry in self.left_out:
            if entry.start < 0 or not all(0 <= row < rows for row in entry.rows):
                raise Invalid(f"a row that is left out is not one of {rows}, or from a place before the first")
        if len({row for entry in self.left_out for row in entry.rows}) == rows:
            raise Invalid("all rows are left out: there is nothing to train on", remedy="look at the data")
        self._stretches = self._make_stretches()

    def at(self, step: int, shard: int, rows_per_step: int, shards: int) -> NDArray[np.int64]:
        """The rows (int64 [rows_per_step / shards]) of a shard of a step.

        Raises `Invalid` for numbers that are out of range, or for rows that cannot be cut into so many equal shards.
        """
        if rows_per_step < 1 or shards < 1 or rows_per_step % shards:
            raise Invalid(f"{rows_per_step} rows cannot be cut into {shards} equal shards")
        if step < 0 or not 0 <= shard < shards:
            raise Invalid(f"there is no shard {shard} of {shards} in step {step}")
        size = rows_per_step // shards
        first = step * rows_per_step + shard * size
        blocks = range(first // BLOCK, (first + size - 1) // BLOCK + 1)
        found = np.concatenate([self._block(block) for block in blocks])
        return found[first - blocks.start * BLOCK :][:size]

    def step(self, step: int, rows_per_step: int) -> NDArray[np.int64]:
        """All rows of a step, in the order of its shards."""
        return self.at(step, 0, rows_per_step, 1)

    def without(self, rows: Iterable[int], step: int, rows_per_step: int) -> Plan:
        """The plan that leaves `rows` out from `step` on; steps before are as they were."""
        epochs, places = self._places(np.array([step * rows_per_step], dtype=np.int64))
        start = int(epochs[0]) * self.rows + int(places[0])
        entry = LeftOut(start, tuple(sorted({int(row) for row in rows})))
        return Plan(self.rows, self.seed, [*self.left_out, entry])

    def steps(self, epochs: float, rows_per_step: int) -> int:
        """How many steps so many epochs take: at least one, and the last one counts whole."""
        return max(1, -int(-epochs * self.rows // rows_per_step))

    def _block(self, number: int) -> NDArray[np.int64]:
        """The rows from place `number * BLOCK` on: kept for the next steps, since 8 rows take as long as a block."""
        known = self._blocks.get(number)
        if known is None:
            if len(self._blocks) >= KEPT:
                self._blocks.clear()
            epochs, places = self._places(np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int64))
            known = self._blocks[number] = permuted(places, epochs, self.rows, self.seed)
        return known

    def _places(self, taken: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch, and the place in it, of the row that is taken after `taken` others."""
        if not self.left_out:
            return taken // self.rows, taken % self.rows
        epochs, places = np.empty_like(taken), np.empty_like(taken)
        for number, count in enumerate(taken.tolist()):
            stretch = self._stretches[bisect_right(self._stretches, count, key=lambda one: one.first) - 1]
            epoch, place = divmod(count - stretch.first, stretch.kept)
            holes = self._holes_of(stretch.epoch + epoch)
            before = holes - np.arange(len(holes))  # rows that are kept before each hole
            epochs[number] = stretch.epoch + epoch
            places[number] = place + int(np.searchsorted(before, place, side="right"))
        return epochs, places

    def _make_stretches(self) -> list[_Stretch]:
        """An epoch in which something begins to be left out is one of its own; those between are alike."""
        found = [_Stretch(0, 0, self.rows)]
        for begins in sorted({entry.start // self.rows for entry in self.left_out}):
            for epoch in (begins, begins + 1):
                last = found[-1]
                kept = self.rows - len(self._holes_of(epoch))
                first = last.first + (epoch - last.epoch) * last.kept
                if epoch == last.epoch:
                    found.pop()
                found.append(_Stretch(first, epoch, kept))
        return [stretch for stretch in found if stretch.kept]

    def _holes_of(self, epoch: int) -> NDArray[np.int64]:
        """The places of an epoch whose rows are left out, in order."""
        known = self._holes.get(epoch)
        if known is None:
            begin = epoch * self.rows
            places: set[int] = set()
            for entry in self.left_out:
                if entry.start < begin + self.rows:
                    rows = np.array(entry.rows, dtype=np.int64)
                    at = place_of(rows, np.full_like(rows, epoch), self.rows, self.seed)
                    places.update(at[at >= entry.start - begin].tolist())
            known = np.array(sorted(places), dtype=np.int64)
            if len(self._holes) >= KEPT:
                self._holes.clear()
            self._holes[epoch] = known
        return known
