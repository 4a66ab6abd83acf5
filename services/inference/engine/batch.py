"""Who runs, who waits and who rests, with their pages, and what the next step computes; hot: once a step.

A plain class for the device's thread. Who decodes goes first; what is left of a budget of tokens goes to prompts, in
chunks, and then to those who wait, in the order in which they came.

Where pages run out, who rests gives its own back first, and then who came last: it is the next to be admitted. What it
had computed may still be cached when its turn comes, and is computed again where it is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from microkernel.errors import Overloaded
from services.inference.cache.cache import Cache, Room
from services.inference.cache.keys import PAGE
from services.inference.cache.table import Table
from services.inference.engine.contexts import Contexts
from services.inference.engine.forward import Storage
from services.inference.engine.pace import Pace
from services.inference.engine.sequence import Request, Sequence

__all__ = ["Batch", "Share"]

CROWDED = 0.8  # share of the pages in use from which nothing new is admitted beside what runs


class Share(msgspec.Struct):
    """What a step computes of one sequence: so many of the tokens that it has, and those that are guessed to follow."""

    sequence: Sequence
    count: int
    guessed: list[int] = []


class Batch:
    """The sequences of one engine."""

    def __init__(
        self,
        cache: Cache,
        storage: Storage,
        contexts: Contexts,
        pace: Pace,
        *,
        space: Callable[[Request], bytes],
        most: int,
        budget: int,
        paged: bool,
    ) -> None:
        """Empty. At most `most` sequences run at once, and a step computes `budget` tokens of them.

        Equal prefixes have equal pages where what `space` gives for their requests is equal.
        Not `paged`, they only count: what a sequence has is with its first page, and is not shared.
        """
        self.running: list[Sequence] = []  # in the order in which they were admitted
        self.waiting: deque[Sequence] = deque()
        self.admitting = True  # beside what runs; where nothing does, one always may
        self.on_room: Callable[[], object] = _nothing  # told when something outside of a step has made room
        self.paused: list[Sequence] = []  # the one that was paused first has to give its pages first
        self._known: dict[int, Sequence] = {}  # all of them, by the ids of their requests
        self._cache = cache
        self._storage = storage
        self._contexts = contexts
        self._pace = pace
        self._space = space
        self._most = most
        self._budget = budget
        self._paged = paged
        self._stuck = False  # what waits found no room, and nothing has changed since
        self._doubtful = False  # who waits may have become hopeless
        cache.on_quotas = self._doubt

    @property
    def idle(self) -> bool:
        """Whether nothing could be planned until somebody asks for something."""
        works = any(not sequence.held for sequence in self.running)
        return not (works or (self.waiting and not self._stuck))

    def find(self, id: int) -> Sequence | None:  # noqa: A002 - the request's own field
        """The sequence of that request."""
        return self._known.get(id)

    @property
    def requests(self) -> Iterator[Request]:
        """What all of them ask."""
        return (sequence.request for sequence in self._known.values())

    @property
    def followers(self) -> int:
        """How many wait for another one's prompt to be read."""
        return len(self._known) - len(self.running) - len(self.waiting) - len(self.paused)

    def enter(self, sequence: Sequence) -> None:
        """One more: it waits for a place, or for the prompt that another one reads for it as well."""
        self._known[sequence.request.id] = sequence
        self._stuck = False
        leader = self._known.get(-1 if sequence.request.fork_of is None else sequence.request.fork_of)
        if leader is None or leader.generated or not _is_same_prompt(leader.request, sequence.request):
            self.waiting.append(sequence)
            return
        sequence.leader = leader = leader.leader or leader
        leader.followers.append(sequence)

    def look_again(self) -> None:
        """What waits may find room now."""
        self._stuck = False
        self.on_room()

    def _doubt(self) -> None:
        """Quotas have changed: who waits may find room now, or never any more."""
        self._doubtful = True
        self.look_again()

    def fork(self, leader: Sequence) -> list[Sequence]:
        """The prompt of `leader` has been read: its followers go on from it, as many as have a place; returns those."""
        followers, leader.followers = leader.followers, []
        forked = []
        assert leader.table is not None
        for follower in followers:
            follower.leader = None
            if len(self.running) >= self._most or not self._paged:
                self._wait_first(follower)  # it finds the prompt's pages when its turn comes
                continue
            follower.table = self._cache.fork(leader.table)
            follower.saved = leader.saved
            follower.found = len(leader.request.prompt)
            self.running.append(follower)
            forked.append(follower)
        return forked

    def pause(self, sequence: Sequence) -> None:
        """Let it rest, with its pages for as long as nobody else needs them."""
        if sequence in self.paused:
            return
        self._part(sequence)
        if sequence.loading is not None:
            self._release(sequence.drop())  # they are read again
        self.paused.append(sequence)
        self._stuck = False

    def resume(self, sequence: Sequence) -> None:
        """Let it go on: at once where it has its pages and there is a place, or as the next."""
        if sequence not in self.paused:
            return
        self.paused.remove(sequence)
        self._stuck = False
        if sequence.table is not None and len(self.running) < self._most:
            self.running.append(sequence)
            return
        self._swap_out(sequence)
        self._wait_first(sequence)

    def swap_out(self, sequence: Sequence) -> None:
        """Take the pages of one that is paused; those of a long context go to the disk."""
        if sequence in self.paused:
            self._swap_out(sequence)
            self._stuck = False

    def leave(self, sequence: Sequence, *, broken: bool = False) -> None:
        """Forget a sequence; what it has computed stays cached, unless its numbers are broken."""
        self._stuck = False
        self._part(sequence)
        del self._known[sequence.request.id]
        if sequence.table is None:
            return
        if not broken:
            self._contexts.keep(sequence)
        table = sequence.drop()
        if broken:
            self._contexts.forget()
            for page in self._cache.clear(table):
                self._storage.clear(page)
        else:
            self._release(table)

    def _release(self, table: Table) -> None:
        first = table.pages[0]
        self._cache.release(table)
        if not self._paged:
            self._storage.clear(first)

    def _part(self, sequence: Sequence) -> None:
        """Take it from where it is; the first that follows it leads the others from now on."""
        if sequence.leader is not None:
            sequence.leader.followers.remove(sequence)
            sequence.leader = None
        elif sequence in self.paused:
            self.paused.remove(sequence)
        elif sequence.table is None:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
        if sequence.followers:
            first, *others = sequence.followers
            sequence.followers, first.followers, first.leader = [], others, None
            for other in others:
                other.leader = first
            self._wait_first(first)

    def _wait_first(self, sequence: Sequence) -> None:
        """It is the next to be admitted; what it needs, or may have, is not what it was when it came."""
        self.waiting.appendleft(sequence)
        self._stuck = False
        self._doubtful = True

    # What a step computes

    def plan(self) -> list[Share]:
        """The sequences of the next step, and how many tokens of each; empty where none can do anything now."""
        shares = [Share(sequence, 1) for sequence in self._decoding() if self._extend(sequence, 1)]
        shares = [share for share in shares if share.sequence.table is not None]  # not given up since
        reading = self._reading()
        waiting = len(reading) + min(len(self.waiting), self._most - len(self.running))
        budget = self._pace.budget(len(shares), self._budget, waiting=waiting)
        for sequence in reading:
            if budget <= 0:
                return shares
            shares.append(Share(sequence, min(budget, sequence.missing)))
            budget -= shares[-1].count
        while budget > 0:
            admitted = self._admit(alone=not self.running)
            if admitted is None:
                break
            if admitted.loading is None:
                shares.append(Share(admitted, min(budget, admitted.missing)))
                budget -= shares[-1].count
        return shares

    def refuse(self) -> list[tuple[Sequence, Overloaded]]:
        """Those that wait for what they will never get leave, with the reason; asked after `plan`, which may add some.

        All that wait are looked at where quotas have changed, or one waits that did not come just now. Where that finds
        nobody, and nothing runs, the first that could not be admitted has to go.
        """
        refused: list[Sequence] = []
        while self._doubtful:  # again where others have followed one of them
            self._doubtful = False
            hopeless = [sequence for sequence in self.waiting if self.is_hopeless(sequence)]
            for sequence in hopeless:
                self.leave(sequence)
            refused += hopeless
        if not refused and not self.running:
            stuck = next((sequence for sequence in self.waiting if not self._may_wait(sequence)), None)
            if stuck is not None:
                self.leave(stuck)
                refused.append(stuck)
        return [(sequence, self.refusal(sequence)) for sequence in refused]

    def is_hopeless(self, sequence: Sequence) -> bool:
        """Whether its owner's quotas do not allow what it needs, whoever else ends."""
        most = self._cache.pages.most(sequence.request.owner)
        return most is not None and _pages(sequence) > most

    def refusal(self, sequence: Sequence) -> Overloaded:
        """Why a sequence can never have the pages that it needs, with the numbers."""
        status, owner = self._cache.status(), sequence.request.owner
        quota = self._cache.pages.most(owner)
        limit = "" if quota is None else f", of which '{owner}' may have {quota}"
        return Overloaded(
            f"the prompt needs {_pages(sequence)} pages of {PAGE} tokens; {status.free + status.evictable} of "
            f"{status.pages} are to be had{limit}",
            remedy="shorten the prompt, raise the quota, or give the model a larger cache",
        )

    def _may_wait(self, sequence: Sequence) -> bool:
        """Whether something outside of the batch can make room for it: its reader, or its owner's other models."""
        return sequence.held or self._cache.pages.owns_elsewhere(sequence.request.owner)

    def _decoding(self) -> Iterator[Sequence]:
        for sequence in tuple(self.running):
            if sequence.table is not None and not sequence.held and not sequence.loading and sequence.missing == 1:
                yield sequence

    def _reading(self) -> list[Sequence]:
        return [sequence for sequence in self.running if sequence.missing > 1 and not sequence.loading]

    def _extend(self, sequence: Sequence, count: int) -> bool:
        """Room for `count` more tokens, if need be from whoever came last; False where the sequence has to wait."""
        while sequence.table is not None:
            room = self._cache.extend(sequence.table, sequence.table.length + count)
            if room is Room.GRANTED:
                return True
            owner = sequence.request.owner if room is Room.OVER_QUOTA else None
            if not self._reclaim(owner):
                self.give_up(self._last(owner))
        return False

    def reserve(self, sequence: Sequence, count: int) -> bool:
        """Room for `count` more tokens where there is some to be had; nobody gives up any for it."""
        table = sequence.table
        return table is not None and self._cache.extend(table, table.length + count) is Room.GRANTED

    def _reclaim(self, owner: str | None) -> bool:
        """Take the pages of one that is paused, of all or of an owner's; False where none has any."""
        for sequence in self.paused:
            if sequence.table is not None and (owner is None or sequence.request.owner == owner):
                self._swap_out(sequence)
                return True
        return False

    def _swap_out(self, sequence: Sequence) -> None:
        if sequence.table is not None:
            self._contexts.keep(sequence)
            self._release(sequence.drop())

    def _last(self, owner: str | None) -> Sequence:
        """Who came last, of all or of an owner's: it has the least to lose."""
        return next(one for one in reversed(self.running) if owner is None or one.request.owner == owner)

    def give_up(self, sequence: Sequence) -> None:
        """Take a sequence's pages; it is the next to be admitted."""
        self._contexts.keep(sequence)
        self.running.remove(sequence)
        self._release(sequence.drop())
        self._wait_first(sequence)

    def _admit(self, *, alone: bool) -> Sequence | None:
        """Let the first that waits and fits into the batch, with pages for all that it has; None where none can be."""
        if len(self.running) >= self._most or not (self.admitting or alone):
            self._stuck = bool(self.waiting)
        if self._stuck:
            return None
        over: set[str] = set()
        for sequence in self.waiting:
            owner = sequence.request.owner
            if owner in over or sequence.held:
                continue
            room = self._begin(sequence, alone=alone)
            while room is not Room.GRANTED and self._reclaim(owner if room is Room.OVER_QUOTA else None):
                room = self._begin(sequence, alone=alone)
            if room is Room.GRANTED:
                self.waiting.remove(sequence)
                self.running.append(sequence)
                self._contexts.begin(sequence)
                return sequence
            if room is not Room.OVER_QUOTA:
                break  # nobody overtakes: a long prompt would wait for ever behind short ones
            over.add(owner)
        self._stuck = bool(self.waiting)
        for owner in over:
            self._cache.wait(owner, self.look_again)
        return None

    def _begin(self, sequence: Sequence, *, alone: bool) -> Room:
        """Pages for all that a sequence has; it has them only with `GRANTED`."""
        request = sequence.request
        most = None if alone else int(CROWDED * self._cache.pages.limit)
        begun = self._cache.admit(request.owner, self._space(request), sequence.tokens, most=most)
        if isinstance(begun, Room):
            return begun
        sequence.table = begun
        return Room.GRANTED


def _is_same_prompt(one: Request, other: Request) -> bool:
    """Whether the pages of one prompt are those of the other."""
    return (one.prompt, one.owner, one.adapter) == (other.prompt, other.owner, other.adapter)


def _pages(sequence: Sequence) -> int:
    """How many pages all of its tokens take."""
    return -(-len(sequence.tokens) // PAGE)


def _nothing() -> None:
    pass
