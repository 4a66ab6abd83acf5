"""Which group a job's workers form, and when they have to form another; pure: events go in, orders come out.

A group has a generation, and each a place to meet that no other had. Whoever lives goes on with what it has in memory,
in the order of before, so that the first worker stays the first while it lives; a new one is brought up to the others.
Where nobody is left who has done a step, all take the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

__all__ = ["Formation", "Place"]


class Place(msgspec.Struct, frozen=True):
    """What a worker is told: its rank among `world` in a generation, and whether all begin at the newest checkpoint."""

    worker: int
    generation: int
    rank: int
    world: int
    restore: bool


class Formation:
    """The group of one job, of `wanted` workers where they can be had."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.generation = 0
        self.members: list[int] = []  # by rank, of the last group that was called
        self._arrived: list[int] = []  # not called yet
        self._formed: set[int] = set()  # have been in a group that was complete: what they have is worth keeping
        self._broken = False

    @property
    def missing(self) -> int:
        """How many workers are to be made."""
        return max(0, self.wanted - len(self.members) - len(self._arrived))

    @property
    def has_to_form(self) -> bool:
        """Whether another group is to be called."""
        return bool(self._arrived or self._broken) and bool(self._arrived or self.members)

    def arrived(self, worker: int) -> None:
        """A new worker is there."""
        self._arrived.append(worker)

    def formed(self, worker: int, generation: int) -> None:
        """A worker says that its group is complete."""
        if generation == self.generation and worker in self.members:
            self._formed.add(worker)

    def broke(self, worker: int, generation: int) -> None:
        """A worker says that somebody of its group has gone. Of a group before this one that is no news."""
        if generation == self.generation and worker in self.members:
            self._broken = True

    def left(self, worker: int) -> None:
        """A worker has ended."""
        if worker in self._arrived:
            self._arrived.remove(worker)
        elif worker in self.members:
            self.members.remove(worker)
            self._formed.discard(worker)
            self._broken = True

    def rested(self) -> None:
        """The group has parted, and all of it is well: whoever goes on needs another one."""
        self._broken = True

    def form(self) -> tuple[Place, ...]:
        """Call another group of all that are there."""
        members = [*sorted(self.members, key=lambda worker: worker not in self._formed), *self._arrived]
        self._arrived = []
        self.members = members
        self.generation += 1
        self._broken = False
        restore = not self._formed.intersection(members)
        return tuple(self._places(members, restore=restore))

    def _places(self, members: list[int], *, restore: bool) -> Iterable[Place]:
        for rank, worker in enumerate(members):
            yield Place(worker, self.generation, rank, len(members), restore)
