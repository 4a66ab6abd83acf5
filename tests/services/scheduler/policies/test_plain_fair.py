"""`fair` against a model that is written for reading, whatever comes, leaves, runs and is charged."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.policy import Claim, Entry, ProcessClass
from services.scheduler.policies.fair import Fair
from tests.services.scheduler.plain_fair import PlainFair

OWNERS = ("ana", "bo", "cy", "di", "eve")
MOVES = {"enter": 8, "turn": 8, "choose": 6, "end": 5, "leave": 2, "renice": 1, "first": 1, "charge": 1, "weigh": 1}


class Walk:
    """The same is done to the policy and to the model. What waits and what runs are pairs of their entries."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._owners = OWNERS[: chance.randint(1, len(OWNERS))]
        self._classes = tuple(ProcessClass)[: chance.randint(1, 3)]
        self._room = chance.choice((2, 5, 20))  # for those that wait: where it is small, owners often have nothing
        self._weights: dict[str, float] = {}
        self.fair, self.plain = Fair(self._weights), PlainFair(self._weights)
        self.waiting: list[tuple[Entry, Entry]] = []
        self._running: list[tuple[Entry, Entry]] = []
        self._came = 0

    def step(self) -> None:
        """Something happens."""
        (move,) = self._chance.choices(tuple(MOVES), tuple(MOVES.values()))
        getattr(self, move)()
        assert len(self.fair) == len(self.waiting)

    def enter(self) -> None:
        if len(self.waiting) < self._room:
            self._enter(self._claim())

    def leave(self) -> Claim | None:
        if not self.waiting:
            return None
        fair, plain = self._one_of(self.waiting)
        self.fair.leave(fair)
        self.plain.leave(plain)
        return fair.claim

    def renice(self) -> None:
        claim = self.leave()
        if claim is not None:
            self._enter(msgspec.structs.replace(claim, nice=self._nice()))

    def first(self) -> None:
        self._compare(self.fair.first(), self.plain.first())

    def choose(self) -> None:
        fair, plain = self.fair.choose(), self.plain.choose()
        self._compare(fair, plain)
        if fair is not None and plain is not None:
            assert fair.expected == plain.expected
            self.waiting.remove((fair, plain))
            self._running.append((fair, plain))

    def end(self) -> Claim | None:
        if not self._running:
            return None
        fair, plain = self._one_of(self._running)
        self.fair.settle(fair)
        self.plain.settle(plain)
        self._charge(fair.claim)
        return fair.claim

    def turn(self) -> None:
        """One is chosen, one that runs ends, and waits for its next quantum."""
        self.choose()
        claim = self.end()
        if claim is not None:
            self._enter(claim)

    def charge(self) -> None:
        """A step served others, too."""
        self._charge(self._claim())

    def weigh(self) -> None:
        self._weights[self._chance.choice(self._owners)] = self._chance.choice((0.2, 1.0, 1.0, 3.0))

    def _enter(self, claim: Claim) -> None:
        self._came += 1
        self.waiting.append((self.fair.enter(claim, self._came), self.plain.enter(claim, self._came)))

    def _charge(self, claim: Claim) -> None:
        # Some are alike, so that clocks are, too.
        seconds = self._chance.choice((0.0, 0.01, 0.01, 0.25, 1.0, self._chance.uniform(0.0, 20.0)))
        self.fair.charge(claim, seconds)
        self.plain.charge(claim, seconds)

    def _claim(self) -> Claim:
        chance = self._chance
        return Claim(owner=chance.choice(self._owners), process_class=chance.choice(self._classes), nice=self._nice())

    def _nice(self) -> int:
        return self._chance.choice((-20, 0, 0, 0, 7, 19))

    def _one_of(self, entries: list[tuple[Entry, Entry]]) -> tuple[Entry, Entry]:
        return entries.pop(self._chance.randrange(len(entries)))

    def _compare(self, fair: Entry | None, plain: Entry | None) -> None:
        assert (fair and fair.item) == (plain and plain.item)


@given(chance=st.randoms(use_true_random=True))
@settings(max_examples=200, deadline=None)
def test_fair_decides_as_the_plain_model_does(chance):
    walk = Walk(chance)
    for _ in range(400):
        walk.step()
    while walk.waiting:
        walk.choose()
    assert walk.fair.used() == walk.plain.used()
