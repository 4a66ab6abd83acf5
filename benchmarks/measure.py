"""What a number is called, in which unit it is shown, and which way it is better."""

from __future__ import annotations

import msgspec

__all__ = ["Measure", "Round"]

Round = dict[str, dict[str, float]]
"""Of one round: contender, measure, number in SI units or bytes."""


class Measure(msgspec.Struct, frozen=True):
    """One block of the table. `scale` turns the measured number into `unit`."""

    name: str
    unit: str
    less_is_better: bool = True
    scale: float = 1.0
