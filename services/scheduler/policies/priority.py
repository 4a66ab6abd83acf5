"""The most urgent goes first, and who waits becomes more urgent."""

from __future__ import annotations

from microkernel.policy import Claim, Entry, Ordered, counted

__all__ = ["Priority"]

CLASS = 40.0  # nice values that a class is worth: as many as there are
AGING = 1.0  # nice values a second of waiting is worth


class Priority(Ordered):
    """By class and nice value, minus what waiting is worth.

    All age alike, so who is before whom does not change while they wait: what counts is when each would be as urgent as
    the most urgent that came at time 0. That is the key, and no queue is ever sorted again.
    """

    name = "priority"

    def __init__(self, *, aging: float = AGING) -> None:
        """A second of waiting is worth `aging` nice values, more than 0."""
        super().__init__()
        self._aging = aging

    def fresh(self) -> Priority:
        return Priority(aging=self._aging)

    def key(self, claim: Claim) -> float:
        return claim.since + (CLASS * claim.process_class.rank + claim.nice) / self._aging

    def why(self, entry: Entry) -> str:
        before = self.before(entry)
        if not before:
            return "for the device: it is the next"
        urgent = sum(self._rank(claim) < self._rank(entry.claim) for claim in before)
        longer = len(before) - urgent
        reasons = [f"{counted(urgent)} of a more urgent class or nice value"] if urgent else []
        reasons += [f"{counted(longer)} that waited longer"] if longer else []
        return f"behind {' and '.join(reasons)}"

    @staticmethod
    def _rank(claim: Claim) -> float:
        return CLASS * claim.process_class.rank + claim.nice
