"""Who runs, who waits and who rests, with their pages, and what the next step computes; hot: once a step.

A plain class for the device's thread. Who decodes goes first; what is left of a budget of tokens goes to prompts, in
chunks, and then to those who wait, in the order of a policy. Where somebody of a more urgent class waits for a place,
the least urgent gives its own up, and keeps its pages while nobody needs them. While a prompt is read, those who are
less urgent sit out, for a few steps.

Where pages run out, who rests gives its own back first, and then who came last: it is the next to be admitted. What it
had computed may still be cached when its turn comes, and is computed again where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import msgspec

from microkernel.errors import Overloaded
from microkernel.policy import Arrival, Claim, Policy
from services.inference.cache.cache import Cache, Room
from services.inference.cache.keys import PAGE
from services.inference.cache.table import Table
from services.inference.engine.contexts import Contexts
from services.inference.engine.forward import Storage
from services.inference.engine.line import Line
from services.inference.engine.pace import Pace
from services.inference.engine.sequence import Request, Sequence
from services.inference.engine.sitting_out import SittingOut

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
        self.waiting = Line(Arrival())
        self.admitting = True  # beside what runs; where nothing does, one always may
        self.on_room: Callable[[], object] = _nothing  # told when something outside of a step has made room
        self.paused: list[Sequence] = []  # the one that was paused first has to give its pages first
        self.interrupted: list[Sequence] = []  # they wait, and have their pages; who was interrupted first gives first
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
        self._sitting_out = SittingOut()
        cache.on_quotas = self._doubt

    @property
    def idle(self) -> bool:
        """Whether nothing could be planned until somebody asks for something."""
        works = any(not sequence.held for sequence in self.running)
        return not (works or (len(self.waiting) > 0 and not self._stuck))

    def find(self, id: int) -> Sequence | None:  # noqa: A002 - the request's own field
        """The sequence of that request."""
        return self._known.get(id)

    def limit(self, most: int, budget: int) -> None:
        """Admit no more than `most` from now on, and plan steps of `budget` tokens."""
        self._most, self._budget = most, budget
        self._stuck = False

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
            self.waiting.add(sequence)
            return
        sequence.leader = leader = leader.leader or leader
        leader.followers.append(sequence)

    def schedule_by(self, policy: Policy) -> None:
        """Have those who wait get their places in another order."""
        self.waiting.schedule_by(policy)
        self._stuck = False

    def charge(self, claims: dict[Claim, float], seconds: float) -> None:
        """A step took so long, of which each claim had its part."""
        whole = sum(claims.values())
        for claim, part in claims.items():
            self.waiting.charge(claim, seconds * part / whole)

    def renice(self, sequence: Sequence, claim: Claim) -> None:
        """Have it wait, and be charged, with another claim."""
        waits = sequence.entry is not None
        if waits:
            self.waiting.remove(sequence)
        sequence.claim = claim
        if waits:
            self.waiting.add(sequence)
        self._stuck = False

    def why(self, sequence: Sequence) -> str:
        """What it waits for, or that it runs: the rest of a sentence that begins with the process."""
        if sequence.leader is not None:
            return "waits for its prompt, which another answer reads for both"
        if sequence in self.paused:
            return "is paused, until it is resumed"
        if sequence.held:
            return "waits for its reader, who is behind"
        if sequence not in self.waiting:
            return "waits for its pages to come from the disk" if sequence.loading is not None else "runs"
        if len(self.running) >= self._most:
            return f"waits for one of {self._most} places in the batch, {self.waiting.why(sequence)}"
        if not self.admitting and self.running:
            return f"waits for memory: nothing new begins while it is short, {self.waiting.why(sequence)}"
        status, needs = self._cache.status(), _pages(sequence)
        return (
            f"waits for {needs} pages, of {status.free + status.evictable} that are to be had, "
            f"{self.waiting.why(sequence)}"
        )

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
        """Take the pages of one that is paused or was interrupted; those of a long context go to the disk."""
        if sequence in self.paused or sequence in self.interrupted:
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
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            if sequence in self.interrupted:
                self.interrupted.remove(sequence)
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
        self.waiting.add_first(sequence)
        self._stuck = False
        self._doubtful = True

    # What a step computes

    def plan(self) -> list[Share]:
        """The sequences of the next step, and how many tokens of each; empty where none can do anything now."""
        reading = self._reading()
        urgency = None if self._stuck else self.waiting.urgency
        decoding = self._sitting_out.part(self._decoding(), reading if self.waiting.preempts else (), urgency)
        shares = [Share(sequence, 1) for sequence in decoding if self._extend(sequence, 1)]
        shares = [share for share in shares if share.sequence.table is not None]  # not given up since
        reading = [sequence for sequence in reading if sequence.table is not None]
        waiting = len(reading) + min(len(self.waiting), max(0, self._most - len(self.running)))
        budget = self._pace.budget(len(shares), self._budget, waiting=waiting)
        for sequence in reading:
            if budget <= 0:
                break
            shares.append(Share(sequence, min(budget, sequence.missing)))
            budget -= shares[-1].count
        while budget > 0:
            admitted = self._admit(alone=not self.running)
            if admitted is None:
                break
            if admitted.loading is None:
                shares = [share for share in shares if share.sequence is not admitted]  # it was interrupted just now
                shares.append(Share(admitted, min(budget, admitted.missing)))
                budget -= shares[-1].count
        # Who was admitted may have taken the place or the pages of one that had a share.
        return [
            share for share in shares if share.sequence.table is not None and share.sequence not in self.interrupted
        ]

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
            with closing(self.waiting.in_turn()) as line:
                stuck = next((sequence for sequence in line if not self._may_wait(sequence)), None)
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
        """Whose prompts are being read, the most urgent first."""
        reading = [sequence for sequence in self.running if sequence.missing > 1 and not sequence.loading]
        return sorted(reading, key=lambda sequence: sequence.rank) if self.waiting.preempts else reading

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

    def _reclaim(self, owner: str | None, *, urgency: int | None = None) -> bool:
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
            self._release(sequence.drop())  # they are read again
        else:
            self.interrupted.append(sequence)
        self.waiting.add(sequence)

    def _swap_out(self, sequence: Sequence) -> None:
        if sequence in self.interrupted:
            self.interrupted.remove(sequence)
        if sequence.table is not None:
            self._contexts.keep(sequence)
            self._release(sequence.drop())

    def _last(self, owner: str | None) -> Sequence:
        """Who came last of the least urgent, of all or of an owner's: it has the least to lose."""
        theirs = [one for one in reversed(self.running) if owner is None or one.request.owner == owner]
        return max(theirs, key=lambda one: one.rank) if self.waiting.preempts else theirs[0]

    def give_up(self, sequence: Sequence) -> None:
        """Take a sequence's pages; it is the next to be admitted."""
        self._contexts.keep(sequence)
        self.running.remove(sequence)
        self._release(sequence.drop())
        self._wait_first(sequence)

    def _admit(self, *, alone: bool) -> Sequence | None:
        """Let the first that waits and fits into the batch, with pages for all that it has; None where none can be."""
        way = self._make_way() if len(self.running) >= self._most and not self._stuck else None
        if not (self.admitting or alone) or len(self.running) >= self._most:
            self._stuck = len(self.waiting) > 0
        if self._stuck:
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
        self._stuck = len(self.waiting) > 0
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
            if not self._reclaim(owner, urgency=sequence.rank):
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


def _is_same_prompt(one: Request, other: Request) -> bool:
    """Whether the pages of one prompt are those of the other."""
    return (one.prompt, one.owner, one.adapter) == (other.prompt, other.owner, other.adapter)


def _pages(sequence: Sequence) -> int:
    """How many pages all of its tokens take."""
    return -(-len(sequence.tokens) // PAGE)


def _nothing() -> None:
    pass
