"""How many threads a step should take, found out while it runs; hot: once a step. A plain class.

Beside another busy process, two threads that wait for each other after every product can be ten times slower than one
(measured: 33 tokens a second against 360). So now and then a step is tried with another number, and whichever
took less time for a token is kept. What is computed does not depend on it.
"""

from __future__ import annotations

__all__ = ["ThreadCount"]

SOON = 8  # steps until another number is tried after a change; doubled with each try that loses
SELDOM = 512
FAR = 1.25  # a number that took so many times what the best one does is tried less often than others
SLOW = 2.0  # a step that took so many times what was expected has the other numbers tried at once
BETTER = 0.93  # a number has to be so much faster to be taken: noise is not to flip it
NEWEST = 0.25  # weight of the newest measurement in what is expected


class ThreadCount:
    """Chooses between all threads and fewer, for steps of one, few, or many tokens."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._classes: dict[int, _Class] = {}
        self._chosen = most
        self._tokens = 1

    def choose(self, tokens: int = 1) -> int:
        """The number of threads for the next step of so many tokens."""
        size = self._class(tokens)
        self._chosen = size.next()
        return self._chosen

    def note(self, tokens: int, seconds: float) -> None:
        """What the chosen step took."""
        self._class(tokens).note(self._chosen, seconds / max(1, tokens))

    def _class(self, tokens: int) -> _Class:
        size = min(tokens, 64).bit_length()
        known = self._classes.get(size)
        if known is None:
            known = self._classes[size] = _Class(self.most)
        return known


class _Class:
    """Steps of about the same size."""

    def __init__(self, most: int) -> None:
        self._counts = sorted({max(1, most >> shift) for shift in range(most.bit_length())}, reverse=True)
        self._expected: dict[int, float] = {}  # seconds a token
        self._best = most
        self._interval = SOON
        self._wait = SOON
        self._tries = 0
        self._promising: int | None = None

    def next(self) -> int:
        if self._promising is not None:
            return self._promising
        self._wait -= 1
        if self._wait > 0 or len(self._counts) == 1:
            return self._best
        self._wait = self._interval
        self._interval = min(SELDOM, 2 * self._interval)
        self._tries += 1
        others = [count for count in self._counts if count != self._best]
        return others[self._tries % len(others)]

    def note(self, count: int, seconds: float) -> None:
        expected = self._expected.get(count)
        was = self._expected.get(self._best)
        # What is expected of a number that is seldom tried may be old: what surprises is tried again at once.
        self._promising = count if count != self._best and was is not None and seconds < BETTER * was else None
        if count != self._best and was is not None and seconds > FAR * was:
            self._wait = self._interval = min(SELDOM, 4 * self._interval)  # one such step may be chance
        if expected is None:
            self._expected[count] = seconds
        else:
            if count == self._best and seconds > SLOW * expected:
                self._wait = min(self._wait, 2)
                self._interval = SOON
            self._expected[count] = expected + NEWEST * (min(seconds, 4 * expected) - expected)
        best = self._expected.get(self._best)
        if best is not None and self._expected[count] < BETTER * best:
            self._best = count
            self._wait = self._interval = SOON
            self._promising = None
