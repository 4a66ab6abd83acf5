"""Who is restarted, when and how often: the rules of OTP. Sans-IO: events in, decisions out.

After https://www.erlang.org/doc/system/sup_princ.html. Order comes from `needs`: `rest_for_one` restarts what needs the
crashed service, directly or through others. Who is left stopped (by its restart rule, or in quarantine) stays so until
somebody restarts it, or the service whose crash did it, by hand.
"""

from __future__ import annotations

import random
from collections import deque
from enum import StrEnum

import msgspec

from microkernel.dependencies import start_order, with_dependents
from microkernel.service import Restart

__all__ = ["Child", "Decision", "Ignore", "Quarantine", "RestartAll", "Strategy", "Supervisor"]

FIRST_DELAY = 0.1  # seconds; doubles with each crash in the period
MAX_DELAY = 10.0


class Strategy(StrEnum):
    """Who is restarted with a crashed service."""

    ONE_FOR_ONE = "one_for_one"
    REST_FOR_ONE = "rest_for_one"
    ONE_FOR_ALL = "one_for_all"


class Child(msgspec.Struct, frozen=True):
    """A supervised service; `needs` are the names of those that it cannot be without."""

    name: str
    needs: tuple[str, ...] = ()
    restart: Restart = Restart.PERMANENT


class RestartAll(msgspec.Struct, frozen=True):
    """Stop `names` from last to first, wait `delay` seconds, start them from first to last.

    The delay is 0.1 s, doubled with each crash up to 10 s, times a chance between 0.5 and 1.5: services that crashed
    together do not come back together.
    """

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
        self._down: dict[str, str] = {}  # who is left stopped, and whose crash did it

    def add(self, child: Child) -> None:
        """Supervise `child`; its needs should be supervised too."""
        self._children[child.name] = child
        self.forgive(child.name)

    def remove(self, name: str) -> None:
        """Forget `name`."""
        self._children.pop(name, None)
        self.forgive(name)

    def forgive(self, name: str) -> None:
        """Count anew, and leave nobody stopped for what `name` has done."""
        self._crashes.pop(name, None)
        self._failed_starts.pop(name, None)
        self._down.pop(name, None)
        for other in [other for other, culprit in self._down.items() if culprit == name]:
            del self._down[other]

    def revive(self, name: str) -> tuple[str, ...]:
        """Somebody restarts `name` by hand: forgives it, and returns who is to be restarted, in the order to start."""
        self.forgive(name)
        return self._up(self.with_dependents(name))

    def hold(self, name: str, need: str) -> None:
        """`name` cannot start, because `need` is left stopped."""
        self._down[name] = self._down.get(need, need)

    def is_down(self, name: str) -> bool:
        """Whether `name` is left stopped: restarts of others pass it by."""
        return name in self._down

    def started(self, name: str) -> None:
        """`name` is up and can do its whole job: what fails next is the first of a new row."""
        self._failed_starts.pop(name, None)

    def crashed(self, name: str, why: str, *, now: float, starting: bool = False) -> Decision:
        """`name` ended with an error at `now` (seconds); `starting` if it had not got ready yet."""
        child = self._children[name]
        if child.restart is Restart.TEMPORARY:
            self._down[name] = name
            return Ignore(name)
        crashes = self._crashes.setdefault(name, deque(maxlen=self._intensity + 1))
        crashes.append(now)
        recent = sum(1 for when in crashes if now - when <= self._period)
        # A start that takes 10 s to fail never reaches the intensity; its failures in a row are counted as well.
        failed = self._failed_starts[name] = self._failed_starts.get(name, 0) + 1 if starting else 0
        if recent > self._intensity or failed > self._intensity:
            return self.quarantine(name, f"crashed {max(recent, failed)} times in a row, last: {why}")
        delay = min(MAX_DELAY, FIRST_DELAY * 2 ** (max(recent, failed) - 1))
        return RestartAll(self._up(self._group(name)), delay * self._chance.uniform(0.5, 1.5))

    def quarantine(self, name: str, why: str) -> Quarantine:
        """Leave `name` and all that need it stopped; those that are down for a reason of their own keep it."""
        self._down.pop(name, None)
        names = self._up(self.with_dependents(name))
        self._down.update(dict.fromkeys(names, name))
        return Quarantine(names, why)

    def with_dependents(self, name: str) -> tuple[str, ...]:
        """`name` and all that need it, directly or through others, in the order they start."""
        return with_dependents(self._needs(), name)

    def _up(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name not in self._down)

    def _needs(self) -> dict[str, tuple[str, ...]]:
        return {child.name: child.needs for child in self._children.values()}

    def _group(self, name: str) -> tuple[str, ...]:
        match self._strategy:
            case Strategy.ONE_FOR_ONE:
                return (name,)
            case Strategy.ONE_FOR_ALL:
                return start_order(self._needs())
            case Strategy.REST_FOR_ONE:
                return self.with_dependents(name)
