"""Who is restarted, when and how often: the rules of OTP. Sans-IO: events in, decisions out.

After https://www.erlang.org/doc/system/sup_princ.html. Order comes from `needs`: `rest_for_one` restarts what needs the
crashed service, directly or through others.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from microkernel.errors import Invalid
from microkernel.service import Restart

__all__ = ["Child", "Decision", "Ignore", "Quarantine", "RestartAll", "Strategy", "Supervisor", "start_order"]

FIRST_DELAY = 0.1  # seconds; doubles with each crash in the period
MAX_DELAY = 10.0


class Strategy(StrEnum):
    """Who is restarted with a crashed service."""

    ONE_FOR_ONE = "one_for_one"
    REST_FOR_ONE = "rest_for_one"
    ONE_FOR_ALL = "one_for_all"


class Child(msgspec.Struct, frozen=True):
    """A supervised service."""

    name: str
    needs: tuple[str, ...] = ()
    restart: Restart = Restart.PERMANENT


class RestartAll(msgspec.Struct, frozen=True):
    """Stop `names` from last to first, wait `delay` seconds, start them from first to last."""

    names: tuple[str, ...]
    delay: float


class Quarantine(msgspec.Struct, frozen=True):
    """Stop `names` (the service and all that need it) and leave them stopped."""

    names: tuple[str, ...]
    why: str


class Ignore(msgspec.Struct, frozen=True):
    """Leave it ended, as its restart rule says."""

    name: str


Decision = RestartAll | Quarantine | Ignore


class Supervisor:
    """Decides for one group of services. `intensity` crashes within `period` seconds are forgiven, no more."""

    def __init__(
        self,
        *,
        strategy: Strategy = Strategy.REST_FOR_ONE,
        intensity: int = 3,
        period: float = 30.0,
        chance: random.Random | None = None,
    ) -> None:
        self._strategy = strategy
        self._intensity = intensity
        self._period = period
        self._chance = chance or random.Random()  # noqa: S311 - jitter, not a secret
        self._children: dict[str, Child] = {}
        self._crashes: dict[str, deque[float]] = {}
        self._failed_starts: dict[str, int] = {}

    def add(self, child: Child) -> None:
        """Supervise `child`; its needs should be supervised too."""
        self._children[child.name] = child
        self.forgive(child.name)

    def remove(self, name: str) -> None:
        """Forget `name`."""
        self._children.pop(name, None)
        self.forgive(name)

    def forgive(self, name: str) -> None:
        """Start counting anew: somebody restarted it by hand."""
        self._crashes.pop(name, None)
        self._failed_starts.pop(name, None)

    def started(self, name: str) -> None:
        """`name` is up."""
        self._failed_starts.pop(name, None)

    def crashed(self, name: str, why: str, *, now: float, starting: bool = False) -> Decision:
        """`name` ended with an error at `now` (seconds); `starting` if it had not come up yet."""
        child = self._children[name]
        if child.restart is Restart.TEMPORARY:
            return Ignore(name)
        crashes = self._crashes.setdefault(name, deque(maxlen=self._intensity + 1))
        crashes.append(now)
        recent = sum(1 for when in crashes if now - when <= self._period)
        # A start that takes 10 s to fail never reaches the intensity; its failures in a row are counted as well.
        failed = self._failed_starts[name] = self._failed_starts.get(name, 0) + 1 if starting else 0
        if recent > self._intensity or failed > self._intensity:
            return Quarantine(self._with_dependents(name), f"crashed {max(recent, failed)} times in a row, last: {why}")
        delay = min(MAX_DELAY, FIRST_DELAY * 2 ** (max(recent, failed) - 1))
        return RestartAll(self._group(name), delay * self._chance.uniform(0.5, 1.5))

    def ended(self, name: str, *, now: float) -> Decision:
        """`name` ended by itself without an error: only a permanent one is restarted."""
        if self._children[name].restart is Restart.PERMANENT:
            return self.crashed(name, "it ended by itself", now=now)
        return Ignore(name)

    def with_dependents(self, name: str) -> tuple[str, ...]:
        """`name` and all that need it, directly or through others, in the order they start."""
        return self._with_dependents(name)

    def _group(self, name: str) -> tuple[str, ...]:
        match self._strategy:
            case Strategy.ONE_FOR_ONE:
                return (name,)
            case Strategy.ONE_FOR_ALL:
                return start_order({child.name: child.needs for child in self._children.values()})
            case Strategy.REST_FOR_ONE:
                return self._with_dependents(name)

    def _with_dependents(self, name: str) -> tuple[str, ...]:
        found = {name}
        while more := {
            child.name
            for child in self._children.values()
            if child.name not in found and found.intersection(child.needs)
        }:
            found |= more
        return start_order({each: self._children[each].needs for each in found if each in self._children})


def start_order(needs: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """The names so that each comes after what it needs; needs outside of the mapping are taken as met.

    Raises `Invalid` that shows a cycle.
    """
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            cycle = " → ".join((*path[path.index(name) :], name))
            raise Invalid(
                f"services need each other in a circle: {cycle}",
                remedy="let one of them use the other instead",
            )
        path.append(name)
        for need in sorted(needs[name]):
            if need in needs:
                visit(need)
        path.pop()
        order.append(name)

    for name in sorted(needs):
        visit(name)
    return tuple(order)
