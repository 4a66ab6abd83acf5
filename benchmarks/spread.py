"""Ratios and how far they spread. A ratio above 1 is a win of the first over the second, whatever is measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

__all__ = ["Spread", "ratio", "spread_of"]


class Spread(msgspec.Struct, frozen=True):
    """The middle of some numbers and how far they spread; `low` and `high` are the quartiles."""

    count: int
    median: float
    low: float
    high: float
    least: float
    most: float

    @property
    def verdict(self) -> str:
        """Of ratios: a win or a loss where the middle half of the rounds agrees on it, else even; once is no proof."""
        if self.count < 2:
            return "once"
        if self.low > 1.0:
            return "win"
        return "loss" if self.high < 1.0 else "even"


def spread_of(numbers: Sequence[float]) -> Spread:
    """The spread of at least one number; quartiles are interpolated between neighbours, ends included."""
    if len(numbers) == 1:
        only = numbers[0]
        return Spread(1, only, only, only, only, only)
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(len(numbers), middle, low, high, min(numbers), max(numbers))


def ratio(ours: float, theirs: float, *, less_is_better: bool) -> float:
    """How many times better `ours` is."""
    return theirs / ours if less_is_better else ours / theirs
