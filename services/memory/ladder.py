"""The rungs of memory pressure: which one a device is on. A plain state machine without a loop.

A rung is entered at its threshold and left a margin below it, so that what was freed there is not asked for again at
once. What counts is what the node itself takes of what it could have, which is that and what is free, on the device or
in pools of fixed size: a machine that others fill is no reason to forget what costs little.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from microkernel.errors import Invalid
from services.memory.messages import Pressure, Rung

__all__ = ["MARGIN", "THRESHOLDS", "Ladder"]

THRESHOLDS = (0.60, 0.70, 0.80, 0.95)
MARGIN = 0.03  # of the limit, between entering a rung and leaving it


class Ladder:
    """The rung of one device."""

    def __init__(self, device: str, thresholds: Sequence[float] = THRESHOLDS, margin: float = MARGIN) -> None:
        """On the ground. Raises `Invalid` for thresholds that do not rise."""
        if len(thresholds) != len(THRESHOLDS) or not all(low < high for low, high in pairwise((0.0, *thresholds))):
            raise Invalid(
                f"{list(thresholds)} are no rungs",
                field="rungs",
                remedy=f"name {len(THRESHOLDS)} rising shares above 0",
            )
        if not 0.0 <= margin < thresholds[0]:
            raise Invalid(f"a margin of {margin}", field="margin", remedy=f"it is between 0 and {thresholds[0]}")
        self._device = device
        self._thresholds = tuple(thresholds)
        self._margin = margin
        self.pressure = Pressure(device=device, rung=Rung.CALM, used=0, limit=0)

    def look(self, used: int, limit: int) -> bool:
        """Take what is used of what could be, in bytes; returns whether the rung has changed."""
        share = used / limit if limit > 0 else float(used > 0)
        before = self.pressure.rung
        rung = Rung(sum(share >= threshold for threshold in self._thresholds))
        while rung < before and share >= self._thresholds[rung] - self._margin:
            rung = Rung(rung + 1)  # not far enough below the threshold of the rung it is on
        excess = 0
        if rung > Rung.CALM:
            # Down to where the lowest of the rungs is left: each of them frees what it can on the way.
            excess = max(0, used - int((self._thresholds[0] - self._margin) * limit))
        self.pressure = Pressure(device=self._device, rung=rung, used=used, limit=limit, excess=excess)
        return rung is not before
