"""Whose turn is next: what all policies have in common (hot: once a quantum).

A policy is a queue that chooses. Work enters it with a claim, which says for whom it is and how urgent, and is chosen
once; what its quantum took is charged afterwards. An executor has one for its queue, and so has whoever shares a
quantum among many. Plain classes for one thread, or behind one lock; times are seconds on the caller's monotonic clock.

Most policies are an order: they subclass `Ordered` and say each claim's `key`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, ClassVar

import msgspec

from microkernel.keyed import Keyed

__all__ = ["Arrival", "Claim", "Entry", "Ordered", "Policy", "ProcessClass"]

LEFT = 64  # entries that have left and may lie in a queue before it is swept, or as many as there are others


class ProcessClass(StrEnum):
    """How urgent work is: somebody looks at it, somebody waits for it, nobody does."""

    INTERACTIVE = "interactive"
    BATCH = "batch"
    BACKGROUND = "background"

    @property
    def rank(self) -> int:
        """0 for the most urgent."""
        return _RANKS[self]


_RANKS = {name: rank for rank, name in enumerate(ProcessClass)}


class Claim(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What work says of itself when it asks for a turn.

    `nice` is -20 (first) to 19 (last). `came` is when the work came, `since` when it began to wait for this turn, and
    `deadline` when it should have ended.
    """

    pid: int = 0  # of the process; 0 for work that is none
    owner: str = "local"
    process_class: ProcessClass = ProcessClass.INTERACTIVE
    nice: int = 0
    came: float = 0.0
    since: float = 0.0
    deadline: float | None = None


class Entry(msgspec.Struct, eq=False):
    """Work that waits in a policy, or did. A policy may have a kind of its own, with what it wants to know of it."""

    claim: Claim
    item: Any
    waits: bool = True


class Policy(ABC):
    """A queue that chooses. Where it `preempts`, work of a more urgent class may take the place of what runs."""

    name: ClassVar[str] = ""
    preempts: ClassVar[bool] = True

    @abstractmethod
    def __len__(self) -> int:
        """How many wait."""

    @abstractmethod
    def enter(self, claim: Claim, item: Any) -> Entry:
        """Have `item` wait for its turn."""

    @abstractmethod
    def leave(self, entry: Entry) -> None:
        """It waits no longer. Does nothing for one that was chosen or has left."""

    @abstractmethod
    def choose(self) -> Entry | None:
        """Whose turn it is; it waits no longer. None where nobody does."""

    @abstractmethod
    def first(self) -> Entry | None:
        """Whom `choose` would give."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """All that wait, in no order."""

    @abstractmethod
    def why(self, entry: Entry) -> str:
        """Why it waits, as the rest of a sentence that begins with "waits": true at this moment."""

    def fresh(self) -> Policy:
        """An empty one of the same kind, that was charged with nothing."""
        return type(self)()

    def charge(self, claim: Claim, seconds: float) -> None:  # noqa: B027 - most count nothing
        """Work of `claim` has had the device for so long."""

    def settle(self, entry: Entry) -> None:  # noqa: B027
        """The quantum of one that was chosen has ended; what it took was charged, or is at once."""

    def take_over(self, other: Policy) -> None:
        """Have all wait here that waited there."""
        for entry in sorted(other.entries(), key=lambda entry: entry.claim.came):
            other.leave(entry)
            self.enter(entry.claim, entry.item)


class Ordered(Policy):
    """The order of a key: the smallest goes first, of equals who entered first."""

    def __init__(self) -> None:
        self._queue: Keyed[Entry] = Keyed()
        self._waiting = 0
        self._left = 0  # that lie in the queue still

    @abstractmethod
    def key(self, claim: Claim) -> float:
        """Where it stands; it does not change while it waits."""

    def __len__(self) -> int:
        return self._waiting

    def enter(self, claim: Claim, item: Any) -> Entry:
        entry = Entry(claim, item)
        self.add(entry)
        return entry

    def add(self, entry: Entry) -> None:
        """As `enter`, for an entry that somebody has made."""
        self._queue.push(self.key(entry.claim), entry)
        self._waiting += 1

    def leave(self, entry: Entry) -> None:
        if not entry.waits:
            return
        entry.waits = False
        self._waiting -= 1
        self._left += 1
        if self._left > max(LEFT, self._waiting):
            staying, self._queue, self._left = self.entries(), Keyed(), 0
            for each in staying:
                self._queue.push(self.key(each.claim), each)

    def choose(self) -> Entry | None:
        while (entry := self._queue.pop()) is not None:
            if entry.waits:
                entry.waits = False
                self._waiting -= 1
                return entry
            self._left -= 1
        return None

    def first(self) -> Entry | None:
        while (entry := self._queue.first()) is not None and not entry.waits:
            self._queue.pop()
            self._left -= 1
        return entry

    def entries(self) -> Iterator[Entry]:
        return (entry for entry in self._queue if entry.waits)

    def before(self, entry: Entry) -> list[Claim]:
        """The claims of those that would be chosen before it."""
        place = self.key(entry.claim)
        keys = [(self.key(each.claim), each) for each in self.entries()]
        equals = [each for key, each in keys if key == place]
        sooner = [each for key, each in keys if key < place]
        return [each.claim for each in (*sooner, *equals[: equals.index(entry)])]

    def why(self, entry: Entry) -> str:
        return f"behind {counted(len(self.before(entry)))}"


class Arrival(Ordered):
    """Classes first, within a class the nicest last, and then who came first: what holds where no other is set."""

    name = "arrival"

    def key(self, claim: Claim) -> float:
        return claim.process_class.rank * 100 + claim.nice


def counted(number: int) -> str:
    """How many others, in words."""
    return "one other" if number == 1 else f"{number} others"
