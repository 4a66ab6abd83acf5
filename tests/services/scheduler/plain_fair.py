"""What `fair` decides, written for reading: lists that are searched from end to end."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from microkernel.policy import Claim, Entry, ProcessClass
from services.scheduler.policies.fair import CLASS_WEIGHTS, NEWEST, OWED

__all__ = ["PlainFair"]


class _Share:
    """Of an owner in a class, or of a class."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.clock = 0.0  # seconds over its weight
        self.expected = 0.0  # for each turn
        self.pending = 0.0  # expected for all turns that have not ended
        self.turns = 0
        self.used = 0.0

    @property
    def stands(self) -> float:
        return self.clock + self.pending / self.weight

    def begin(self, expected: float) -> None:
        self.turns += 1
        self.pending += expected

    def end(self, expected: float) -> None:
        self.turns -= 1
        self.pending = max(0.0, self.pending - expected) if self.turns else 0.0

    def take(self, seconds: float) -> None:
        self.clock += seconds / self.weight
        self.used += seconds
        self.expected = seconds if self.expected == 0.0 else self.expected + NEWEST * (seconds - self.expected)


class _Work(Entry, eq=False):
    expected: float = 0.0


class _Owner(_Share):
    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self.waiting: list[Entry] = []  # in the order in which they came
        self.place: tuple[float, int] | None = None  # the smallest is next; None until it is given one


class _Class(_Share):
    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self.owners: dict[str, _Owner] = {}  # the last that had work or was charged is the last
        self.now = 0.0

    @property
    def waits(self) -> bool:
        return any(owner.waiting for owner in self.owners.values())


class PlainFair:
    """The decisions of `Fair`; it remembers the clocks of all."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._classes = {each: _Class(weight) for each, weight in CLASS_WEIGHTS.items()}
        self._now = 0.0
        self._numbers = count()

    def enter(self, claim: Claim, item: Any) -> Entry:
        share, owner = self._of(claim)
        if not share.waits:
            share.clock = max(share.clock, self._now - OWED[claim.process_class] / share.weight)
        if not owner.waiting:
            owner.clock = max(owner.clock, share.now)
        entry = _Work(claim, item)
        owner.waiting.append(entry)
        self._place(owner)
        return entry

    def leave(self, entry: Entry) -> None:
        self._owner(entry.claim).waiting.remove(entry)

    def first(self) -> Entry | None:
        found = self._first()
        return None if found is None else found[2]

    def choose(self) -> Entry | None:
        found = self._first()
        if found is None:
            return None
        share, owner, entry = found
        at_work = [each.clock for each in self._classes.values() if each.turns]
        self._now = max(self._now, min([share.stands, *at_work]))
        at_work = [each.clock for each in share.owners.values() if each.turns]
        share.now = max(share.now, min([owner.stands, *at_work]))
        owner.waiting.remove(entry)
        entry.expected = owner.expected
        share.begin(entry.expected)
        owner.begin(entry.expected)
        return entry

    def settle(self, entry: Entry) -> None:
        share, owner = self._classes[entry.claim.process_class], self._owner(entry.claim)
        share.end(entry.expected)
        owner.end(entry.expected)
        if owner.waiting:
            self._place(owner)

    def charge(self, claim: Claim, seconds: float) -> None:
        for share in self._of(claim):
            share.take(seconds)

    def used(self) -> dict[tuple[ProcessClass, str], float]:
        return {
            (name, owner): each.used for name, share in self._classes.items() for owner, each in share.owners.items()
        }

    def _of(self, claim: Claim) -> tuple[_Class, _Owner]:
        """Its class and its owner, whose weight is asked."""
        share = self._classes[claim.process_class]
        owner = share.owners.setdefault(claim.owner, _Owner(1.0))
        owner.weight = self._weights.get(claim.owner, 1.0)
        return share, owner

    def _owner(self, claim: Claim) -> _Owner:
        return self._classes[claim.process_class].owners[claim.owner]

    def _place(self, owner: _Owner) -> None:
        """Forward at once, backward only when its turn comes: it may have one before who was placed behind it."""
        if owner.place is None or owner.stands < owner.place[0]:
            owner.place = (owner.stands, next(self._numbers))

    def _first(self) -> tuple[_Class, _Owner, Entry] | None:
        waiting = [share for share in self._classes.values() if share.waits]
        if not waiting:
            return None
        share = min(waiting, key=lambda each: each.stands)
        while True:
            owner = min((each for each in share.owners.values() if each.place), key=lambda each: each.place or ())
            assert owner.place is not None
            if not owner.waiting:
                owner.place = None
            elif owner.stands > owner.place[0]:
                owner.place = (owner.stands, next(self._numbers))
            else:
                return share, owner, min(owner.waiting, key=lambda entry: entry.claim.nice)
