"""When to try again: waits that grow, with jitter, so that many clients do not come back in one heap. Sans-IO."""

from __future__ import annotations

import random

__all__ = ["Backoff"]

FIRST = 0.1  # seconds
MOST = 10.0
GROWTH = 2.0


class Backoff:
    """Waits of 0.1 s, 0.2 s … 10 s, each shortened at random by up to a half."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = random.Random() if chance is None else chance  # noqa: S311 - no secret
        self._next = FIRST

    def wait(self, at_least: float = 0.0) -> float:
        """Seconds to wait now; `at_least` is what the other end has asked for."""
        seconds, self._next = self._next, min(MOST, self._next * GROWTH)
        return at_least + seconds * (1.0 - 0.5 * self._chance.random())

    def reset(self) -> None:
        """It has worked."""
        self._next = FIRST
