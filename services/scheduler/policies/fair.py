"""Everybody gets a share: classes first, and in a class the owners, by their weights.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) on two levels, with time on the device as the measure, as
the virtual token counter does it for tokens (https://arxiv.org/abs/2401.00588): each has a clock of its own that runs
by what it was given over its weight, and the one that is furthest behind goes next. What a quantum takes is known only
afterwards: until then it counts as much as its owner's others took.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from microkernel.policy import Claim, Entry, Ordered, Policy, ProcessClass, counted

__all__ = ["CLASS_WEIGHTS", "Fair"]

CLASS_WEIGHTS = {ProcessClass.INTERACTIVE: 64.0, ProcessClass.BATCH: 8.0, ProcessClass.BACKGROUND: 1.0}

# Seconds of the device's time that a class may be owed. One that had little to do gets that much before the others get
# a turn again: somebody who looks at a screen waits for nobody's background, who works all day for some of it.
OWED = {ProcessClass.INTERACTIVE: 60.0, ProcessClass.BATCH: 10.0, ProcessClass.BACKGROUND: 0.0}

NEWEST = 0.2  # weight of the newest quantum in what the next one is taken for
KEPT = 4096  # owners without work whose clocks are remembered


class _Nicest(Ordered):
    """One owner's work in one class."""

    def key(self, claim: Claim) -> float:
        return claim.nice


class _Account:
    """What one of several has been given: `clock` in seconds over its weight, `expected` for each turn that it has."""

    __slots__ = ("clock", "expected", "pending", "turns", "used", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.clock = 0.0
        self.pending = 0.0
        self.turns = 0  # that have not ended
        self.expected = 0.0
        self.used = 0.0

    @property
    def stands(self) -> float:
        """Where its clock stands, with the turns that have not ended."""
        return self.clock + self.pending / self.weight

    def begin(self, expected: float) -> None:
        """It has one more turn, which takes so long as far as is known."""
        self.turns += 1
        self.pending += expected

    def end(self, expected: float) -> None:
        """A turn has ended that was taken for so long."""
        self.turns = max(0, self.turns - 1)
        self.pending = max(0.0, self.pending - expected)

    def take(self, seconds: float) -> None:
        """It has had the device for so long."""
        self.clock += seconds / self.weight
        self.used += seconds
        self.expected = seconds if self.expected == 0.0 else self.expected + NEWEST * (seconds - self.expected)

    def wake(self, clock: float) -> None:
        """It has work again: nobody saves up turns by having none."""
        self.clock = max(self.clock, clock)


class _Flow:
    """An owner in a class."""

    __slots__ = ("account", "owner", "place", "queue", "version")

    def __init__(self, owner: str, weight: float) -> None:
        self.owner = owner
        self.account = _Account(weight)
        self.queue = _Nicest()
        self.place: float | None = None  # in the heap
        self.version = 0  # of that place; older ones count for nothing


class _Level:
    """The owners of one class."""

    def __init__(self, process_class: ProcessClass, weight: float) -> None:
        self.process_class = process_class
        self.account = _Account(weight)
        self.flows: dict[str, _Flow] = {}
        self.waiting = 0
        self.now = 0.0  # how far the clocks of all have come that have work
        self.at_work: dict[str, _Flow] = {}  # owners that have turns now
        self._heap: list[tuple[float, int, int, _Flow]] = []
        self._numbers = count()
        self._full = KEPT

    def flow(self, owner: str, weight: float) -> _Flow:
        """The one of `owner`, made when it comes for the first time."""
        flow = self.flows.pop(owner, None)
        if flow is None:
            flow = _Flow(owner, weight)
            if len(self.flows) >= self._full:
                self._forget()
        flow.account.weight = weight
        self.flows[owner] = flow  # at the end: the most recent
        return flow

    def place(self, flow: _Flow) -> None:
        """See that it is in the heap, and not behind where its clock stands: what is before that is put right later."""
        stands = flow.account.stands
        if flow.place is None or stands < flow.place:
            flow.version += 1
            flow.place = stands
            heapq.heappush(self._heap, (stands, next(self._numbers), flow.version, flow))

    def first(self) -> _Flow | None:
        """The owner that is furthest behind, of those that have work."""
        heap = self._heap
        while heap:
            place, _, version, flow = heap[0]
            if version != flow.version:
                heapq.heappop(heap)
            elif not len(flow.queue):
                heapq.heappop(heap)
                flow.place = None
            elif (stands := flow.account.stands) > place:
                flow.place = stands
                heapq.heapreplace(heap, (stands, next(self._numbers), version, flow))
            else:
                return flow
        return None

    def _forget(self) -> None:
        """The clocks of the half that had work longest ago, of those without."""
        idle = [owner for owner, flow in self.flows.items() if not len(flow.queue) and not flow.account.turns]
        for owner in idle[: KEPT // 2]:
            del self.flows[owner]
        self._full = max(KEPT, 2 * len(self.flows))  # where all have work, it is not looked again at each new one


class Fair(Policy):
    """Weighted shares: of classes by `CLASS_WEIGHTS`, of owners by their weights, which are 1 if nothing was said."""

    name = "fair"

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        """`weights` by owner, each more than 0. They are asked whenever an owner comes, so they may change."""
        self._weights = {} if weights is None else weights
        self._levels = {each: _Level(each, weight) for each, weight in CLASS_WEIGHTS.items()}
        self._now = 0.0

    def fresh(self) -> Fair:
        return Fair(self._weights)

    def __len__(self) -> int:
        return sum(level.waiting for level in self._levels.values())

    def enter(self, claim: Claim, item: Any) -> Entry:
        level = self._levels[claim.process_class]
        flow = level.flow(claim.owner, self._weights.get(claim.owner, 1.0))
        if not level.waiting:
            level.account.wake(self._now - OWED[claim.process_class] / level.account.weight)
        if not len(flow.queue):
            flow.account.wake(level.now)
        level.waiting += 1
        entry = flow.queue.enter(claim, item)
        level.place(flow)
        return entry

    def leave(self, entry: Entry) -> None:
        if entry.waits:
            level = self._levels[entry.claim.process_class]
            level.waiting -= 1
            level.flows[entry.claim.owner].queue.leave(entry)

    def choose(self) -> Entry | None:
        level = self._first()
        flow = None if level is None else level.first()
        if level is None or flow is None:
            return None
        entry = flow.queue.choose()
        assert entry is not None, "an owner in the heap has work"
        level.waiting -= 1
        # Who has turns now may be behind whom is chosen: it only has nothing more to do at this moment.
        at_work = [each.account.clock for each in self._levels.values() if each.account.turns]
        self._now = max(self._now, min([level.account.stands, *at_work]))
        owners = [each.account.clock for each in level.at_work.values()]
        level.now = max(level.now, min([flow.account.stands, *owners]))
        entry.expected = flow.account.expected
        level.account.begin(entry.expected)
        flow.account.begin(entry.expected)
        level.at_work[flow.owner] = flow
        return entry

    def first(self) -> Entry | None:
        level = self._first()
        flow = None if level is None else level.first()
        return None if flow is None else flow.queue.first()

    def entries(self) -> Iterator[Entry]:
        return (
            entry for level in self._levels.values() for flow in level.flows.values() for entry in flow.queue.entries()
        )

    def charge(self, claim: Claim, seconds: float) -> None:
        level = self._levels[claim.process_class]
        flow = level.flow(claim.owner, self._weights.get(claim.owner, 1.0))
        level.account.take(seconds)
        flow.account.take(seconds)

    def settle(self, entry: Entry) -> None:
        expected, entry.expected = entry.expected, 0.0
        level = self._levels[entry.claim.process_class]
        level.account.end(expected)
        flow = level.flows.get(entry.claim.owner)
        if flow is None:
            return
        flow.account.end(expected)
        if not flow.account.turns:
            level.at_work.pop(flow.owner, None)
        if len(flow.queue):
            level.place(flow)

    def used(self) -> dict[tuple[ProcessClass, str], float]:
        """Seconds of the device that each owner had in each class."""
        return {
            (level.process_class, flow.owner): flow.account.used
            for level in self._levels.values()
            for flow in level.flows.values()
        }

    def why(self, entry: Entry) -> str:
        level, claim = self._first(), entry.claim
        first = None if level is None else level.first()
        assert level is not None, "one that waits is in a level"
        assert first is not None, "and its owner in the heap"
        if level.process_class is not claim.process_class:
            return f"behind {level.process_class} work, whose share is not used up"
        if first.owner != claim.owner:
            more = level.flows[claim.owner].account.stands - first.account.stands
            return f"behind '{first.owner}', who has had {more:.3g} s less of the device by weight than '{claim.owner}'"
        before = len(first.queue.before(entry))
        if before:
            return f"behind {counted(before)} of '{claim.owner}' that came before it or are less nice"
        return "for the device: it is the next"

    def _first(self) -> _Level | None:
        """The class that is furthest behind; of equals the most urgent."""
        waiting = [level for level in self._levels.values() if level.waiting]
        return min(waiting, key=lambda level: level.account.stands, default=None)
