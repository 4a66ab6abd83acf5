"""Whether a worker lives and gets on, by what it shows of itself; pure: the times are given.

Two things are told apart. A process that does not count any more was stopped, or its machine was: it is suspected, and
then dead. A loop that counts but enters no other phase hangs. Suspicion costs nothing, and death is final: the process
is killed, so that it cannot come back and take part.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from services.training.beat import Pulse

__all__ = ["Liveness", "Standing", "WorkerLost"]

SUSPECTED = 0.5  # seconds without a beat; there are five in that time
DEAD = 3.0
LONGEST_PHASE = 120.0  # seconds that a phase may take in any case
SLOWER = 20  # times that a phase may take longer than the longest before it
IDLE = frozenset({"waiting"})  # phases in which a worker waits for its agent


class Standing(StrEnum):
    """What is believed of a worker."""

    ALIVE = "alive"
    SUSPECTED = "suspected"
    DEAD = "dead"
    HUNG = "hung"


class WorkerLost(NamedTuple):
    """A worker has ended that was not told to, or was killed as it did not get on."""

    number: int
    step: int
    why: str


class Liveness:
    """What is known of one worker."""

    def __init__(self, now: float) -> None:
        self._pulse: Pulse | None = None
        self._beaten = now  # when it counted last
        self._entered = now  # when it entered its phase
        self._longest = 0.0  # seconds of the longest phase so far

    def rested(self, now: float) -> None:
        """The worker could not run until now: what it did not do meanwhile says nothing."""
        self._beaten = self._entered = now

    def look(self, pulse: Pulse, now: float) -> Standing:
        """What is to be believed, after another look."""
        before, self._pulse = self._pulse, pulse
        if before is None or pulse.beats != before.beats:
            self._beaten = now
        if before is None or pulse.entered != before.entered:
            if before is not None and before.phase not in IDLE:
                self._longest = max(self._longest, now - self._entered)
            self._entered = self._beaten = now
        if now - self._beaten >= DEAD:
            return Standing.DEAD
        if pulse.phase not in IDLE and now - self._entered >= max(LONGEST_PHASE, SLOWER * self._longest):
            return Standing.HUNG
        return Standing.SUSPECTED if now - self._beaten >= SUSPECTED else Standing.ALIVE
