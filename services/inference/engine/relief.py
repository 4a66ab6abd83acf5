"""What an engine gives back when memory is short: cached pages, cold contexts, and at last what runs.

Every method runs on the device's thread, between two steps. None changes an answer: what gives its pages up has its
tokens and its generator, and goes on when there is room.
"""

from __future__ import annotations

from collections.abc import Sequence as Several

import msgspec

from services.inference.cache.cache import Cache
from services.inference.cache.keys import PAGE
from services.inference.cache.status import Status
from services.inference.engine.forward import Storage
from services.inference.engine.places import Places
from services.inference.engine.proposers import Proposer
from services.inference.engine.sequence import Sequence

__all__ = ["PagesUse", "Relief", "cheapest"]


class PagesUse(msgspec.Struct, frozen=True):
    """An engine's pages: how they are used, what each takes, and how many there could be, at least and at most."""

    status: Status
    page_bytes: int
    least: int
    most: int
    running: int
    waiting: int
    elastic: bool  # whether fewer pages take less memory
    beside_bytes: int = 0  # what the model takes that guesses for this one

    @property
    def resident_bytes(self) -> int:
        """What counts as taken where memory is short: all pages that have memory; of a fixed pool those that are held.

        Its cached pages make room by themselves, and free ones cost nobody anything: neither is gained by relief.
        """
        return (self.status.resident if self.elastic else self.status.held) * self.page_bytes

    @property
    def spare_bytes(self) -> int:
        """What a fixed pool has beyond that: it is not free on the device, and can be used all the same."""
        return 0 if self.elastic else (self.most - self.status.held) * self.page_bytes


class Relief:
    """The pages of one engine, as far as others may want them; none, once it is closed."""

    def __init__(
        self,
        cache: Cache,
        storage: Storage,
        context_length: int,
        places: Places,
        proposer: Proposer | None = None,
    ) -> None:
        """No sequence is longer than `context_length` tokens. What `proposer` takes counts beside the pages."""
        self._cache = cache
        self._storage = storage
        self._most = cache.pages.limit
        self._least = -(-context_length // PAGE)
        self._places = places
        self._proposer = proposer
        self.closed = False

    @property
    def page_bytes(self) -> int:
        """What each page takes."""
        return self._storage.page_bytes

    @property
    def resident_bytes(self) -> int:
        """All that counts as taken here, now: the pages, and what is beside them."""
        use = self.use()
        return use.resident_bytes + use.beside_bytes

    def use(self) -> PagesUse:
        """How the pages are used now."""
        return PagesUse(
            self._cache.status(),
            self._storage.page_bytes,
            self._least,
            self._most,
            len(self._places.running),
            len(self._places.waiting),
            self._storage.elastic,
            self._beside_bytes,
        )

    def admit(self, admitting: bool) -> None:
        """Whether waiting requests may begin beside what runs. With nothing running, one always may."""
        before, self._places.admitting = self._places.admitting, admitting
        if admitting and not before:
            self._places.look_again()

    def shrink(self, pages: int) -> int:
        """Forget up to so many cached pages, the least recently used first; returns how many.

        Their memory, and that of all others that are free, goes back to the system. Of a fixed pool none is forgotten:
        that would free nothing.
        """
        if not self._storage.elastic:
            return 0
        dropped = self._cache.evict(pages)
        self.give_back()
        return dropped

    def give_back(self) -> None:
        """Give the memory of free pages back to the system."""
        if self._storage.elastic:
            self._storage.give_back(self._cache.cool())
        if self._proposer is not None:
            self._proposer.give_back()

    def resize(self, pages: int) -> int:
        """Let there be so many pages at most, and enough for one sequence; cached ones go, held ones stay.

        Returns how many there may be now.
        """
        limit = self._cache.resize(max(self._least, min(pages, self._most)))
        self.give_back()
        self._places.look_again()
        return limit

    def move_cold(self) -> int:
        """Have sequences that rest give their pages up; long ones are on disk. Returns how many did."""
        rest = (*self._places.paused, *self._places.interrupted)
        paused = [sequence for sequence in rest if sequence.table is not None]
        for sequence in paused:
            self._places.swap_out(sequence)
        held = [sequence for sequence in self._places.running if sequence.held]
        for sequence in held:
            self._places.give_up(sequence)
        return len(paused) + len(held)

    def pause_cheapest(self) -> bool:
        """Have one of those that run give its pages up, and forget them; False where only one is left.

        It waits at the front of the queue.
        """
        if len(self._places.running) < 2:
            return False
        self._places.give_up(cheapest(self._places.running))
        self.shrink(self._most)
        return True

    def close(self) -> None:
        """Leave the account of the device, and give all memory back; the engine may not be used any more, nor this."""
        self.closed = True
        self._cache.close()
        self._storage.release()
        # Who still looks after them keeps neither pages nor weights.
        del self._cache, self._storage, self._places, self._proposer

    @property
    def _beside_bytes(self) -> int:
        return 0 if self._proposer is None else self._proposer.resident_bytes


def cheapest(running: Several[Sequence]) -> Sequence:
    """Whose pages cost least to have again: the fewest tokens that are not on disk; of equals, who came last."""
    return min(reversed(running), key=lambda sequence: sequence.length - sequence.saved * PAGE)
