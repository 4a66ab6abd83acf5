"""What a decision of a policy costs, by how many wait: a table, and a picture of it.

In a steady state: one is chosen, its quantum ends and is charged, and other work of its owner comes in its place, so
the queue stays as long as it is. To make the claim of the work that comes is in the figure, as it is in an executor's
turn.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from benchmarks.engine.columns import columns
from benchmarks.measure import Measure
from benchmarks.plot import Curve, Panel, draw
from benchmarks.scheduling.line import Contender, Goal, Line, asked
from benchmarks.table import Row
from microkernel.policy import Claim, Policy, ProcessClass
from services.scheduler.policies.deadline import Deadline
from services.scheduler.policies.fair import Fair
from services.scheduler.policies.fifo import Fifo
from services.scheduler.policies.priority import Priority

__all__ = ["CURVE", "Decisions", "LINE", "picture"]

NAME = "decision-curve"
LENGTHS = (10, 1_000, 100_000)
ALONG = tuple(8 * 4**step for step in range(8))  # to 131,072
BOUND = 5.0  # us
LOGARITHM = math.log(LENGTHS[-1]) / math.log(LENGTHS[0])  # what a heap may grow by from the shortest to the longest
OURS = "microkernel"
MANY = 1 << 30  # owners
SAMPLES = 1021  # of random numbers that go round: a prime, so that they meet each work at another place each time


class Case(msgspec.Struct, frozen=True):
    """A policy, and how many owners share it. With `newcomers`, all work that comes is of an owner never seen."""

    about: str
    make: Callable[[], Policy]
    owners: int = 100
    newcomers: bool = False


CASES = {
    "fair": Case("fair, 100 owners", Fair),
    "each": Case("fair, an owner each", Fair, owners=MANY),
    "priority": Case("priority", Priority),
    "fifo": Case("fifo", Fifo),
    "deadline": Case("deadline", Deadline),
}
NEW = {"new": Case("fair, always new owners", Fair, owners=MANY, newcomers=True)}


class Steady:
    """A policy with so much work in its queue, which stays as much."""

    def __init__(self, case: Case, length: int) -> None:
        chance = random.Random(length)
        self._policy = case.make()
        self._now = 0.0
        self._costs = itertools.cycle([chance.uniform(0.001, 0.009) for _ in range(SAMPLES)])
        self._spans = itertools.cycle([chance.uniform(0.1, 100.0) for _ in range(SAMPLES)])
        self._newcomers = itertools.count(length) if case.newcomers else None
        classes = tuple(ProcessClass)
        for number in range(length):
            came = chance.uniform(-0.005 * length, 0.0)
            claim = Claim(
                pid=number + 1,
                owner=f"owner {number % case.owners}",
                process_class=classes[number % len(classes)],
                nice=chance.randint(-20, 19),
                came=came,
                since=came,
                deadline=came + next(self._spans),
            )
            self._policy.enter(claim, number)

    def decide(self, count: int) -> None:
        """So many decisions."""
        policy, now, replace = self._policy, self._now, msgspec.structs.replace
        choose, settle, charge, enter = policy.choose, policy.settle, policy.charge, policy.enter
        newcomers = self._newcomers
        for seconds, span in itertools.islice(zip(self._costs, self._spans, strict=False), count):
            entry = choose()
            assert entry is not None
            now += seconds
            settle(entry)
            claim = entry.claim
            charge(claim, seconds)
            owner = claim.owner if newcomers is None else f"owner {next(newcomers)}"
            enter(replace(claim, owner=owner, came=now, since=now, deadline=now + span), entry.item)
        self._now = now

    def __len__(self) -> int:
        return len(self._policy)


class Decisions:
    """Measures in a process of its own."""

    async def start(self) -> None:
        """Nothing is kept from round to round."""

    async def stop(self) -> None:
        """Nothing to do."""

    async def decisions(self, seconds: float) -> dict[str, float]:
        """Seconds a decision, by policy and length of the queue; and how much longer the last is than the first."""
        found = {
            _key(name, length): _cost(Steady(case, length), seconds)
            for name, case in (CASES | NEW).items()
            for length in LENGTHS
        }
        for name in CASES | NEW:
            found[_growth(name)] = found[_key(name, LENGTHS[-1])] / found[_key(name, LENGTHS[0])]
        return found

    async def curve(self, seconds: float) -> dict[str, float]:
        """The same for more lengths."""
        return {
            _key(name, length): _cost(Steady(case, length), seconds) for name, case in CASES.items() for length in ALONG
        }


def _cost(steady: Steady, seconds: float) -> float:
    """Seconds of a processor for a decision: who else wants it, is not in the figure.

    Each batch has twice as many as the one before: the last is as long as all that warm up.
    """
    for count in (1 << power for power in itertools.count()):
        began = time.thread_time()
        steady.decide(count)
        took = time.thread_time() - began
        if took >= seconds:
            return took / count
    raise AssertionError("powers of two do not end")


def picture(rows: Sequence[Row], title: str) -> str:
    """The curves as SVG."""
    found = {row.measure.name: row.value.median for row in rows}

    def curves() -> Iterator[Curve]:
        for place, (name, case) in enumerate(CASES.items()):
            measures = {length: _MEASURES[_key(name, length)].name for length in ALONG}
            points = [(float(length), found[each]) for length, each in measures.items() if each in found]
            if points:
                yield Curve(case.about, points, place)

    return draw(title, [Panel("us a decision: enter, choose, settle, charge", "processes that wait", list(curves()))])


def _show(rows: Sequence[Row]) -> str:
    """A line for each length, a column for each policy."""
    found = {row.measure.name: f"{row.value.median:.2f}" for row in rows}
    head = ("us a decision", *(case.about for case in CASES.values()))
    lines = [
        (f"{length:,} wait", *(found.get(_MEASURES[_key(name, length)].name, "") for name in CASES)) for length in ALONG
    ]
    return columns([head, *lines], left=())


def _key(name: str, length: int) -> str:
    return f"{name}/{length}"


def _growth(name: str) -> str:
    return f"{name}/growth"


def _measure(case: Case, length: int) -> Measure:
    return Measure(f"decision of {case.about}, {length:,} wait", "us", scale=1e6)


_MEASURES = {_key(name, length): _measure(case, length) for name, case in CASES.items() for length in ALONG}
_CONTENDER = Contender(OURS, "policies without an executor, in a steady state", f"{__name__}:Decisions")

LINE = Line(
    name="decision",
    measures={
        key: measure
        for name, case in (CASES | NEW).items()
        for key, measure in (
            *((_key(name, length), _measure(case, length)) for length in LENGTHS),
            (_growth(name), Measure(f"decision of {case.about}, 100,000 by 10", "times")),
        )
    },
    contenders=(_CONTENDER,),
    question=asked("decisions", {"seconds": 0.1}, {"seconds": 0.001}),
    goals=tuple(
        goal
        for name in CASES | NEW
        for goal in (*(Goal(_key(name, length), BOUND) for length in LENGTHS), Goal(_growth(name), LOGARITHM))
    ),
)
CURVE = Line(
    name=NAME,
    measures=_MEASURES,
    contenders=(_CONTENDER,),
    question=asked("curve", {"seconds": 0.1}, {"seconds": 0.001}),
    show=_show,
)
