"""Everybody gets a share: classes first, and in a class the owners, by their weights.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) on two levels, with time on the device as the measure, as
the virtual token counter does it for tokens (https://arxiv.org/abs/2401.00588): each has a clock of its own that runs
by what it was given over its weight, and the one that is furthest behind goes next. What a quantum takes is known only
afterwards: until then it counts as much as its owner's others took.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from microkernel.keyed import Keyed
from microkernel.policy import Claim, Entry, Ordered, Policy, ProcessClass, counted

__all__ = ["CLASS_WEIGHTS", "Fair"]

CLASS_WEIGHTS = {ProcessClass.INTERACTIVE: 64.0, ProcessClass.BATCH: 8.0, ProcessClass.BACKGROUND: 1.0}

# Seconds of the device's time that a class may be owed. One that had little to do gets that much before the others get
# a turn again: somebody who looks at a screen waits for nobody's background, who works all day for some of it.
OWED = {ProcessClass.INTERACTIVE: 60.0, ProcessClass.BATCH: 10.0, ProcessClass.BACKGROUND: 0.0}

NEWEST = 0.2  # weight of the newest quantum in what the next one is taken for
KEPT = 4096  # owners without work whose clocks are remembered

NOWHERE: tuple[float, _Share | None] = (math.inf, None)  # the place of an owner that has none: all are before it


class _Work(Entry, kw_only=True, eq=False):
    """An entry that knows its owner, so that nobody is looked up again."""

    owner: _Share
    expected: float = 0.0  # seconds that its quantum was taken for when it was chosen


class _Nicest(Ordered):
    """One owner's work in one class."""

    def key(self, claim: Claim) -> float:
        return claim.nice


class _Share:
    """What a class, or an owner in one, has been given: `clock` in seconds over its weight.

    One kind for both, as the same steps are done for both: Python is quick where it always meets the same kind.
    """

    __slots__ = (
        "clock", "expected", "last", "level", "many", "name", "only", "pending", "place", "stands", "turns", "used",
        "waiting", "weight",
    )  # fmt: skip

    def __init__(self, name: str, weight: float, level: _Level) -> None:
        self.name = name
        self.weight = weight
        self.level = level
        self.clock = 0.0
        self.turns = 0  # that have not ended
        self.pending = 0.0  # seconds that these were taken for
        self.stands = 0.0  # the clock, with what is pending
        self.expected = 0.0  # seconds, of its next turn
        self.used = 0.0  # seconds
        self.last = 0.0  # what its class had used when it was charged last
        self.waiting = 0
        self.only: _Work | None = None  # what waits, where there is one: many owners never have more
        self.many: _Nicest | None = None  # where there are more; empty while there is one
        self.place = NOWHERE

    def set(self, clock: float, weight: float) -> None:
        """Its clock stands elsewhere, or runs by another weight, from now on."""
        self.clock = clock
        self.weight = weight
        self.stands = clock + self.pending / weight

    def add(self, work: _Work) -> None:
        """It waits beside others."""
        if self.many is None:
            self.many = _Nicest()
        if self.only is not None:
            self.many.add(self.only)
            self.only = None
        self.many.add(work)

    def leave(self, work: _Work) -> None:
        """It waits no longer."""
        if work is self.only:
            self.only = None
            work.waits = False
        elif self.many is not None:
            self.many.leave(work)

    def choose(self) -> _Work:
        """The nicest of those that wait; there are some."""
        work = self.only
        if work is not None:
            self.only = None
            work.waits = False
            return work
        assert self.many is not None
        chosen = self.many.choose()
        assert isinstance(chosen, _Work)
        return chosen

    def first(self) -> Entry | None:
        """Whom `choose` would give."""
        return self.only if self.only is not None or self.many is None else self.many.first()

    def entries(self) -> Iterator[Entry]:
        """All that wait."""
        if self.only is not None:
            yield self.only
        elif self.many is not None:
            yield from self.many.entries()


class _Level:
    """The owners of one class, each in its place: where its clock stood, or behind it."""

    def __init__(self, process_class: ProcessClass, weight: float) -> None:
        self.process_class = process_class
        self.share = _Share(process_class, weight, self)
        self.owed = OWED[process_class] / weight
        self.owners: dict[str, _Share] = {}
        self.now = 0.0  # how far the clocks of all have come that have work
        self.at_work: set[_Share] = set()  # owners that have turns now
        self._places: Keyed[tuple[float, _Share]] = Keyed()
        self._full = KEPT

    def meet(self, name: str, weight: float) -> _Share:
        """An owner comes for the first time, or was forgotten."""
        if len(self.owners) >= self._full:
            self._forget()
        owner = self.owners[name] = _Share(name, weight, self)
        owner.last = self.share.used
        return owner

    def place(self, owner: _Share) -> None:
        """Give it a place where its clock stands; one that it had counts for nothing from now on."""
        owner.place = place = (owner.stands, owner)
        self._places.push(owner.stands, place)

    def first(self) -> _Share:
        """The owner that is furthest behind, of those that have work; there is one.

        A clock that went on has left its place behind. That is put right here, when its turn seems to come.
        """
        places = self._places
        while True:
            place = places.first()
            assert place is not None, "who has work has a place"
            stood, owner = place
            if owner.place is not place:
                places.pop()
            elif not owner.waiting:
                places.pop()
                owner.place = NOWHERE
            elif owner.stands > stood:
                owner.place = place = (owner.stands, owner)
                places.put_back(owner.stands, place)
            else:
                return owner

    def _forget(self) -> None:
        """The clocks of those without work, but for the `KEPT // 2` that had some last."""
        idle = [owner for owner in self.owners.values() if not owner.waiting and not owner.turns]
        idle.sort(key=attrgetter("last"))
        for owner in idle[: -(KEPT // 2)]:
            del self.owners[owner.name]
        self._full = max(KEPT, 2 * len(self.owners))  # where all have work, it is not looked again at each new one


class Fair(Policy):
    """Weighted shares: of classes by `CLASS_WEIGHTS`, of owners by their weights, which are 1 if nothing was said."""

    name = "fair"

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """`weights` by owner, each more than 0. They are asked whenever an owner comes, so they may change."""
        self._weights = {} if weights is None else weights
        self._levels = {each: _Level(each, weight) for each, weight in CLASS_WEIGHTS.items()}
        self._classes = tuple(level.share for level in self._levels.values())
        self._now = 0.0
        self._waiting = 0

    def fresh(self) -> Fair:
        return Fair(self._weights)

    def __len__(self) -> int:
        return self._waiting

    def enter(self, claim: Claim, item: Any) -> Entry:
        owner = self._owner(claim)
        level = owner.level
        share = level.share
        work = _Work(claim, item, owner=owner)
        # Who has work again is no further behind than the others: nobody saves up turns by having none.
        if not share.waiting and share.clock < self._now - level.owed:
            share.set(self._now - level.owed, share.weight)
        self._waiting += 1
        share.waiting += 1
        if owner.waiting:
            owner.add(work)
        else:
            owner.only = work
            if owner.clock < level.now:
                owner.set(level.now, owner.weight)
        owner.waiting += 1
        if owner.stands < owner.place[0]:
            level.place(owner)
        return work

    def leave(self, entry: Entry) -> None:
        if entry.waits:
            assert isinstance(entry, _Work), "it entered here"
            entry.owner.leave(entry)
            self._waiting -= 1
            entry.owner.waiting -= 1
            entry.owner.level.share.waiting -= 1

    def choose(self) -> Entry | None:
        share = self._first()
        if share is None:
            return None
        level = share.level
        owner = level.first()
        work = owner.choose()
        self._waiting -= 1
        # Who has turns now may be behind whom is chosen: it only has nothing more to do at this moment.
        now = share.stands
        for each in self._classes:
            if each.turns and each.clock < now:
                now = each.clock
        if now > self._now:  # noqa: PLR1730 - a call of `max` costs as much as all of this
            self._now = now
        now = owner.stands
        if level.at_work:
            now = min(now, *(each.clock for each in level.at_work))
        if now > level.now:  # noqa: PLR1730
            level.now = now
        level.at_work.add(owner)
        work.expected = expected = owner.expected
        for each in (share, owner):
            each.waiting -= 1
            each.turns += 1
            each.pending += expected
            each.stands = each.clock + each.pending / each.weight
        return work

    def first(self) -> Entry | None:
        share = self._first()
        return None if share is None else share.level.first().first()

    def entries(self) -> Iterator[Entry]:
        return (
            entry for level in self._levels.values() for owner in level.owners.values() for entry in owner.entries()
        )

    def charge(self, claim: Claim, seconds: float) -> None:
        owner = self._owner(claim)
        share = owner.level.share
        for each in (share, owner):
            each.clock = clock = each.clock + seconds / each.weight
            each.stands = clock + each.pending / each.weight if each.turns else clock
            each.used += seconds
        owner.expected = owner.expected + NEWEST * (seconds - owner.expected) if owner.expected else seconds
        owner.last = share.used

    def settle(self, entry: Entry) -> None:
        if not isinstance(entry, _Work):
            return  # a policy of another kind chose it, which held before
        owner = entry.owner
        level = owner.level
        for each in (level.share, owner):
            if each.turns > 1:
                each.turns -= 1
                each.pending = max(0.0, each.pending - entry.expected)
                each.stands = each.clock + each.pending / each.weight
            else:
                each.turns = 0
                each.pending = 0.0
                each.stands = each.clock
        if not owner.turns:
            level.at_work.discard(owner)
        if owner.waiting and owner.stands < owner.place[0]:
            level.place(owner)

    def used(self) -> dict[tuple[ProcessClass, str], float]:
        """Seconds of the device that each owner had in each class."""
        return {
            (level.process_class, owner.name): owner.used
            for level in self._levels.values()
            for owner in level.owners.values()
        }

    def why(self, entry: Entry) -> str:
        share, claim = self._first(), entry.claim
        assert share is not None, "one that waits is of a class"
        assert isinstance(entry, _Work), "and entered here"
        first, owner = share.level.first(), entry.owner
        if owner.level is not share.level:
            return f"behind {share.level.process_class} work, whose share is not used up"
        if first is not owner:
            more = owner.stands - first.stands
            return f"behind '{first.name}', who has had {more:.3g} s less of the device by weight than '{owner.name}'"
        before = 0 if owner.many is None or owner.only is not None else len(owner.many.before(entry))
        if before:
            return f"behind {counted(before)} of '{claim.owner}' that came before it or are less nice"
        return "for the device: it is the next"

    def _first(self) -> _Share | None:
        """The class that is furthest behind, of those that have work; of equals the most urgent."""
        first = None
        for share in self._classes:
            if share.waiting and (first is None or share.stands < first.stands):
                first = share
        return first

    def _owner(self, claim: Claim) -> _Share:
        """Its owner, by the weight that it has now."""
        level = self._levels[claim.process_class]
        weight = self._weights.get(claim.owner, 1.0)
        owner = level.owners.get(claim.owner)
        if owner is None:
            return level.meet(claim.owner, weight)
        if owner.weight != weight:
            owner.set(owner.clock, weight)
        return owner
