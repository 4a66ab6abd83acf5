"""What something costs, over its last samples (hot: once a job of a compute thread)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import msgspec

__all__ = ["Samples", "Timing", "timing_of"]

SAMPLES = 1024


class Timing(msgspec.Struct, frozen=True):
    """A cost over its last 1,024 samples, in seconds.

    `histogram` counts them by powers of two: its n-th number is of those above 2^(n-1) and up to 2^n microseconds, the
    first one of those up to 1.
    """

    count: int
    median: float
    p99: float
    worst: float
    histogram: tuple[int, ...] = ()


class Samples:
    """The last samples of one cost. `add` may be called from any thread: an append is one step of the interpreter."""

    __slots__ = ("_recent", "count")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=SAMPLES)
        self.count = 0

    def add(self, seconds: float) -> None:
        """Put in one more; past 1,024 the oldest goes."""
        self._recent.append(seconds)
        self.count += 1

    def timing(self) -> Timing:
        """The figures as of now, over all that are kept; `count` is of all there ever were."""
        return timing_of(self._recent.copy(), self.count)


def timing_of(samples: Sequence[float] | deque[float], count: int | None = None) -> Timing:
    """The figures of `samples`; of none they are zeros."""
    ordered = sorted(samples)
    if not ordered:
        return Timing(0, 0.0, 0.0, 0.0)
    last = len(ordered) - 1
    places = [max(0, math.ceil(math.log2(seconds * 1e6))) if seconds > 1e-6 else 0 for seconds in ordered]
    histogram = [0] * (places[-1] + 1)
    for place in places:
        histogram[place] += 1
    return Timing(
        count=len(ordered) if count is None else count,
        median=ordered[last // 2],
        p99=ordered[round(last * 0.99)],
        worst=ordered[-1],
        histogram=tuple(histogram),
    )
