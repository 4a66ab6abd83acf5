"""How a server is, by what came of asking it: a circuit breaker without a loop. Times in seconds.

Two things fail apart. A server that does not answer when it is looked at is suspect, and lost after the third time,
until it answers again. One that answers, but whose answers break, is suspect too; after the third in a row it is left
alone for a while, longer each time, and then gets one request at a time until one goes well.
https://martinfowler.com/bliki/CircuitBreaker.html
"""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Health"]

OPENS_AFTER = 3  # failures in a row
FIRST_REST = 2.0
LONGEST_REST = 60.0
JITTER = 0.2
FORGOTTEN = 30.0  # seconds after which a failure or two say nothing any more
LEAST_SHARE = 4.0  # looks take at most a quarter of the time, however slow the server is


class Health:
    """One server's. `every` is how often it is looked at while it is well."""

    def __init__(self, every: float, now: Callable[[], float], chance: Callable[[], float] = random.random) -> None:
        self._every = every
        self._now = now
        self._chance = chance
        self._looks_failed = 0
        self._seen = False  # it has answered a look, once
        self._answers_failed = 0
        self._rest = FIRST_REST
        self._rests_until = 0.0
        self._no_look = "it was not asked yet"
        self._no_answer = ""
        self._failed_at = 0.0
        self._took = 0.0

    @property
    def on_trial(self) -> bool:
        """Whether it gets one request at a time, after a rest."""
        return self._answers_failed >= OPENS_AFTER

    def fault(self) -> str | None:
        """What is wrong with it."""
        return self._no_look or self._no_answer or None

    def lost(self) -> str | None:
        """Why it is not to be asked now."""
        if self._no_look and (not self._seen or self._looks_failed >= OPENS_AFTER):
            return self._no_look
        if self.on_trial and (left := self._rests_until - self._now()) > 0.0:
            return f"{self._no_answer}; it is asked again in {left:.0f} s"
        return None

    def looked(self, why: str | None, took: float) -> None:
        """It was looked at: `why` that failed, None where it is well."""
        self._took = took
        if why is None:
            away = self._looks_failed >= OPENS_AFTER  # what is there now is another one
            old = not self.on_trial and self._now() - self._failed_at > FORGOTTEN
            if away or old:
                self.answered()
            self._looks_failed, self._no_look, self._seen = 0, "", True
            return
        self._looks_failed += 1
        self._no_look = why

    def answered(self) -> None:
        """An answer went well."""
        self._answers_failed, self._no_answer, self._rest = 0, "", FIRST_REST

    def failed(self, why: str, *, lasting: bool = False) -> None:
        """An answer has failed; with `lasting`, the next one would too."""
        self._no_answer, self._failed_at = why, self._now()
        if self.on_trial and self._now() < self._rests_until:
            return  # it began before the others had failed
        self._answers_failed = max(self._answers_failed + 1, OPENS_AFTER if lasting else 0)
        if self.on_trial:
            self._rests_until = self._now() + self._rest * self._spread()
            self._rest = min(LONGEST_REST, 2.0 * self._rest)

    def changed(self) -> None:
        """What has failed before says nothing any more: another key."""
        self.answered()

    def next_look(self) -> float:
        """In how many seconds to look again: the longer, the more often it has failed."""
        wait = self._every * 2.0 ** min(self._looks_failed, 16)
        wait = min(max(self._every, LONGEST_REST), wait) * self._spread()
        if self.on_trial:  # whoever looks tells when its rest is over
            wait = min(wait, max(0.5, self._rests_until - self._now()))
        return max(wait, LEAST_SHARE * self._took)

    def _spread(self) -> float:
        return 1.0 + JITTER * (2.0 * self._chance() - 1.0)
