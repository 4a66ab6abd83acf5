"""Who has a place in the batch, who waits for one and who rests, with their pages; hot: once a step.

A plain class for the device's thread. Places are given in the order of a policy, and with each the pages for all that
its sequence has. Where somebody of a more urgent class waits for a place, the least urgent gives its own up, and keeps
its pages while nobody needs them.

Where pages run out, who rests gives its own back first, and then who came last: it is the next to be admitted. What it
had computed may still be cached when its turn comes, and is computed again where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from microkernel.policy import Arrival
from services.inference.cache.cache import Cache, Room
from services.inference.cache.table import Table
from services.inference.engine.contexts import Contexts
from services.inference.engine.forward import Storage
from services.inference.engine.line import Line
from services.inference.engine.sequence import Request, Sequence

__all__ = ["Places"]

CROWDED = 0.8  # share of the pages in use from which nothing new is admitted beside what runs


class Places:
    """The places of one engine."""

    def __init__(
        self,
        cache: Cache,
        storage: Storage,
        contexts: Contexts,
        *,
        space: Callable[[Request], bytes],
        most: int,
        paged: bool,
    ) -> None:
        """All free. At most `most` sequences have one.

        Equal prefixes have equal pages where what `space` gives for their requests is equal.
        Not `paged`, they only count: what a sequence has is with its first page, and is not shared.
        """
        self.most = most
        self.running: list[Sequence] = []  # in the order in which they were admitted
        self.waiting = Line(Arrival())
        self.paused: list[Sequence] = []  # the one that was paused first has to give its pages first
        self.interrupted: list[Sequence] = []  # they wait, and have their pages; who was interrupted first gives first
        self.admitting = True  # beside what runs; where nothing does, one always may
        self.on_room: Callable[[], object] = _nothing  # told when something outside of a step has made room
        self.stuck = False  # what waits found no room, and nothing has changed since
        self.doubtful = False  # who waits may have become hopeless
        self._cache = cache
        self._storage = storage
        self._contexts = contexts
        self._space = space
        self._paged = paged

    @property
    def full(self) -> bool:
        """Whether nobody else may run."""
        return len(self.running) >= self.most

    def look_again(self) -> None:
        """What waits may find room now."""
        self.stuck = False
        self.on_room()

    def wait_first(self, sequence: Sequence) -> None:
        """It is the next to be admitted; what it needs, or may have, is not what it was when it came."""
        self.waiting.add_first(sequence)
        self.stuck = False
        self.doubtful = True

    def take_out(self, sequence: Sequence) -> None:
        """It has no place any more, does not wait for one, and does not rest; its pages are still its own."""
        if sequence in self.paused:
            self.paused.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            if sequence in self.interrupted:
                self.interrupted.remove(sequence)
        else:
            self.running.remove(sequence)

    def rest(self, sequence: Sequence) -> None:
        """It was taken out, and is paused, with its pages for as long as nobody else needs them."""
        if sequence.loading is not None:
            self.release(sequence.drop())  # they are read again
        self.paused.append(sequence)
        self.stuck = False

    def resume(self, sequence: Sequence) -> None:
        """Let it go on: at once where it has its pages and there is a place, or as the next."""
        if sequence not in self.paused:
            return
        self.paused.remove(sequence)
        self.stuck = False
        if sequence.table is not None and not self.full:
            self.running.append(sequence)
            return
        self._swap_out(sequence)
        self.wait_first(sequence)

    def swap_out(self, sequence: Sequence) -> None:
        """Take the pages of one that is paused or was interrupted; those of a long context go to the disk."""
        if sequence in self.paused or sequence in self.interrupted:
            self._swap_out(sequence)
            self.stuck = False

    def release(self, table: Table) -> None:
        """Let its pages be cached, as far as they can be."""
        first = table.pages[0]
        self._cache.release(table)
        if not self._paged:
            self._storage.clear(first)

    def reclaim(self, owner: str | None, *, urgency: int | None = None) -> bool:
        """Take the pages of one that is paused or was interrupted, of all or of an owner's; False where none has any.

        For somebody of `urgency`, who runs and is less urgent than that is interrupted as well.
        """
        for sequence in (*self.paused, *self.interrupted):
            if sequence.table is not None and (owner is None or sequence.request.owner == owner):
                self._swap_out(sequence)
                return True
        victim = None if urgency is None else self._least_urgent(urgency, owner)
        if victim is None:
            return False
        self._interrupt(victim)
        self._swap_out(victim)
        return True

    def _least_urgent(self, urgency: int, owner: str | None = None) -> Sequence | None:
        """Of those that run and are less urgent than that, the least urgent who came last."""
        if not self.waiting.preempts:
            return None
        less = [
            sequence
            for sequence in self.running
            if sequence.rank > urgency and not sequence.followers and owner in {None, sequence.request.owner}
        ]
        return max(reversed(less), key=lambda sequence: sequence.rank, default=None)

    def _interrupt(self, sequence: Sequence) -> None:
        """Have it wait for its turn again, with its pages while nobody needs them."""
        self.running.remove(sequence)
        if sequence.loading is not None:
            self.release(sequence.drop())  # they are read again
        else:
            self.interrupted.append(sequence)
        self.waiting.add(sequence)

    def _swap_out(self, sequence: Sequence) -> None:
        if sequence in self.interrupted:
            self.interrupted.remove(sequence)
        if sequence.table is not None:
            self._contexts.keep(sequence)
            self.release(sequence.drop())

    def last(self, owner: str | None) -> Sequence:
        """Who came last of the least urgent, of all or of an owner's: it has the least to lose."""
        theirs = [one for one in reversed(self.running) if owner is None or one.request.owner == owner]
        return max(theirs, key=lambda one: one.rank) if self.waiting.preempts else theirs[0]

    def give_up(self, sequence: Sequence) -> None:
        """Take a sequence's pages; it is the next to be admitted."""
        self._contexts.keep(sequence)
        self.running.remove(sequence)
        self.release(sequence.drop())
        self.wait_first(sequence)

    def admit(self, *, alone: bool) -> Sequence | None:
        """Let the first that waits and fits into the batch, with pages for all that it has; None where none can be."""
        way = self._make_way() if self.full and not self.stuck else None
        if not (self.admitting or alone) or self.full:
            self.stuck = len(self.waiting) > 0
        if self.stuck:
            return None
        over: set[str] = set()
        with closing(self.waiting.in_turn()) as line:
            for sequence in line:
                owner = sequence.request.owner
                if owner in over or sequence.held:
                    continue
                room = self._room_for(sequence, alone=alone)
                if room is Room.GRANTED:
                    self._place(sequence)
                    return sequence
                if room is not Room.OVER_QUOTA:
                    break  # nobody overtakes: a long prompt would wait for ever behind short ones
                over.add(owner)
        if way is not None and way.table is not None:
            self._place(way)  # for nobody, as it turned out
        self.stuck = len(self.waiting) > 0
        for owner in over:
            self._cache.wait(owner, self.look_again)
        return None

    def _make_way(self) -> Sequence | None:
        """Who gave its place up for somebody more urgent."""
        urgency = self.waiting.urgency if self.admitting else None
        sequence = None if urgency is None else self._least_urgent(urgency)
        if sequence is not None:
            self._interrupt(sequence)
        return sequence

    def _room_for(self, sequence: Sequence, *, alone: bool) -> Room:
        """Its pages, with those of who rests or is less urgent, if need be; it has them only with `GRANTED`."""
        room = self._begin(sequence, alone=alone)
        while room is not Room.GRANTED:
            owner = sequence.request.owner if room is Room.OVER_QUOTA else None
            if not self.reclaim(owner, urgency=sequence.rank):
                return room
            room = self._begin(sequence, alone=alone)
        return room

    def _place(self, sequence: Sequence) -> None:
        """It runs from now on."""
        self.waiting.remove(sequence)
        self.running.append(sequence)
        if sequence in self.interrupted:
            self.interrupted.remove(sequence)
        else:
            self._contexts.begin(sequence)

    def _begin(self, sequence: Sequence, *, alone: bool) -> Room:
        """Pages for all that a sequence has; it has them only with `GRANTED`."""
        if sequence.table is not None:
            return self._cache.extend(sequence.table, len(sequence.tokens))  # it was interrupted
        request = sequence.request
        most = None if alone else int(CROWDED * self._cache.pages.limit)
        begun = self._cache.admit(request.owner, self._space(request), sequence.tokens, most=most)
        if isinstance(begun, Room):
            return begun
        sequence.table = begun
        return Room.GRANTED


def _nothing() -> None:
    pass
