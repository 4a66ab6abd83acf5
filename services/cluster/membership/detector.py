"""How long a peer may take to answer, and how far this node may trust its own judgement. Sans-IO (hot: once a probe).

The time to wait is that of TCP: smoothed round trip plus four times its mean deviation (Jacobson and Karels, SIGCOMM
1988; RFC 6298), doubled while nothing comes back. Local health is Lifeguard's (Dadgar, Phillips and Currey, 2018): a
node whose probes fail, or whose own loop is late, takes more time for everything before it blames others.
"""

from __future__ import annotations

__all__ = ["MOST_HEALTH", "Health", "RoundTrip"]

MOST_HEALTH = 8  # the multiplier of the sickest: its probes are as many times slower
MOST_LAG = 1.0  # seconds of this node's own lateness that are granted to others
FORGETS = 0.9  # of the lag is left after each probe that went well
MOST_DOUBLINGS = 4


class RoundTrip:
    """What is known of one peer's round trips, in seconds."""

    __slots__ = ("_deviation", "_doublings", "_mean")

    def __init__(self) -> None:
        self._mean = 0.0  # 0: none was measured
        self._deviation = 0.0
        self._doublings = 0

    @property
    def mean(self) -> float | None:
        """The smoothed round trip; None where none was measured."""
        return self._mean or None

    def took(self, seconds: float) -> None:
        """An answer came after so long, however late."""
        seconds = max(seconds, 1e-9)
        self._doublings = 0
        if self._mean == 0.0:
            self._mean, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(self._mean - seconds) - self._deviation) / 4
        self._mean += (seconds - self._mean) / 8

    def missed(self) -> None:
        """No answer came in time: more time is given until one does."""
        self._doublings = min(self._doublings + 1, MOST_DOUBLINGS)

    def usual(self, first: float, floor: float, ceiling: float) -> float:
        """How long an answer may well take, in seconds; `first` where none has come."""
        time = self._mean + 4 * self._deviation if self._mean else first
        return min(max(time, floor), ceiling)

    def timeout(self, first: float, floor: float, ceiling: float) -> float:
        """How long to wait for the next one."""
        return min(self.usual(first, floor, ceiling) * (1 << self._doublings), ceiling)


class Health:
    """How well this node itself keeps up; `multiplier` is 1 for a healthy one, up to `MOST_HEALTH`."""

    __slots__ = ("lag", "multiplier")

    def __init__(self) -> None:
        self.multiplier = 1
        self.lag = 0.0  # seconds that its own loop was late by, of late

    def better(self) -> None:
        """A probe went well."""
        self.multiplier = max(self.multiplier - 1, 1)
        self.lag *= FORGETS

    def worse(self, by: int = 1) -> None:
        """So much points at this node itself: it was suspected, its probe failed, a helper did not answer either."""
        self.multiplier = min(self.multiplier + by, MOST_HEALTH)

    def late(self, seconds: float) -> None:
        """It did something so much later than it was due."""
        self.lag = max(self.lag, min(seconds, MOST_LAG))
