"""Keeps calls from where they fail: a circuit breaker. Sans-IO (hot: once a call to another node).

After Nygard, "Release It!" (2007): closed, it counts failures in a row; past a number of them it opens and nobody is
sent there; after a pause one trial is let through, whose end decides. Each pause after a failed trial is longer.
"""

from __future__ import annotations

__all__ = ["Breaker"]

FAILURES = 5  # in a row
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds


class Breaker:
    """One for each place that calls go to."""

    __slots__ = ("_failures", "_opens_again", "_pause", "_tries")

    def __init__(self) -> None:
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._opens_again: float | None = None  # when a trial may be made; None while it is closed
        self._tries = False

    def allows(self, now: float) -> bool:
        """Whether a call may go there; once it has begun, `begin` is to be told."""
        return self._opens_again is None or (now >= self._opens_again and not self._tries)

    def begin(self) -> None:
        """A call goes there: after a pause, it is the trial."""
        self._tries = self._opens_again is not None

    def succeeded(self) -> None:
        """It was answered: well, or with an error of its own."""
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._opens_again = None
        self._tries = False

    def failed(self, now: float) -> None:
        """It was not answered."""
        self._failures += 1
        if self._opens_again is not None:  # the trial, or what was on its way when it opened
            self._pause = min(LONGEST_PAUSE, 2 * self._pause) if self._tries else self._pause
        elif self._failures < FAILURES:
            return
        self._opens_again = now + self._pause
        self._tries = False

    def abandoned(self) -> None:
        """A call was cancelled: that says nothing of the place."""
        self._tries = False
