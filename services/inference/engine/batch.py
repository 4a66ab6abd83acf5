"""The sequences of an engine, and what the next step computes of them; hot: once a step.

A plain class for the device's thread. Who decodes goes first; what is left of a budget of tokens goes to prompts, in
chunks, and then to those who get a place now. While a prompt is read, those who are less urgent sit out, for a few
steps. Who has a place, `places` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import msgspec

from microkernel.errors import Overloaded
from microkernel.policy import Claim, Policy
from services.inference.cache.cache import Cache, Room
from services.inference.cache.keys import PAGE
from services.inference.engine.contexts import Contexts
from services.inference.engine.forward import Storage
from services.inference.engine.pace import Pace
from services.inference.engine.places import Places
from services.inference.engine.sequence import Request, Sequence
from services.inference.engine.sitting_out import SittingOut

__all__ = ["Batch", "Share"]


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
        self.places = Places(cache, storage, contexts, space=space, most=most, paged=paged)
        self._known: dict[int, Sequence] = {}  # all of them, by the ids of their requests
        self._cache = cache
        self._storage = storage
        self._contexts = contexts
        self._pace = pace
        self._budget = budget
        self._paged = paged
        self._sitting_out = SittingOut()
        cache.on_quotas = self._doubt

    @property
    def idle(self) -> bool:
        """Whether nothing could be planned until somebody asks for something."""
        works = any(not sequence.held for sequence in self.places.running)
        return not (works or (len(self.places.waiting) > 0 and not self.places.stuck))

    def find(self, id: int) -> Sequence | None:  # noqa: A002 - the request's own field
        """The sequence of that request."""
        return self._known.get(id)

    def limit(self, most: int, budget: int) -> None:
        """Admit no more than `most` from now on, and plan steps of `budget` tokens."""
        self.places.most, self._budget = most, budget
        self.places.stuck = False

    @property
    def requests(self) -> Iterator[Request]:
        """What all of them ask."""
        return (sequence.request for sequence in self._known.values())

    @property
    def followers(self) -> int:
        """How many wait for another one's prompt to be read."""
        return len(self._known) - len(self.places.running) - len(self.places.waiting) - len(self.places.paused)

    def enter(self, sequence: Sequence) -> None:
        """One more: it waits for a place, or for the prompt that another one reads for it as well."""
        self._known[sequence.request.id] = sequence
        self.places.stuck = False
        leader = self._known.get(-1 if sequence.request.fork_of is None else sequence.request.fork_of)
        if leader is None or leader.generated or not _is_same_prompt(leader.request, sequence.request):
            self.places.waiting.add(sequence)
            return
        sequence.leader = leader = leader.leader or leader
        leader.followers.append(sequence)

    def schedule_by(self, policy: Policy) -> None:
        """Have those who wait get their places in another order."""
        self.places.waiting.schedule_by(policy)
        self.places.stuck = False

    def charge(self, claims: dict[Claim, float], seconds: float) -> None:
        """A step took so long, of which each claim had its part."""
        whole = sum(claims.values())
        for claim, part in claims.items():
            self.places.waiting.charge(claim, seconds * part / whole)

    def renice(self, sequence: Sequence, claim: Claim) -> None:
        """Have it wait, and be charged, with another claim."""
        waits = sequence.entry is not None
        if waits:
            self.places.waiting.remove(sequence)
        sequence.claim = claim
        if waits:
            self.places.waiting.add(sequence)
        self.places.stuck = False

    def why(self, sequence: Sequence) -> str:
        """What it waits for, or that it runs: the rest of a sentence that begins with the process."""
        places = self.places
        if sequence.leader is not None:
            return "waits for its prompt, which another answer reads for both"
        if sequence in places.paused:
            return "is paused, until it is resumed"
        if sequence.held:
            return "waits for its reader, who is behind"
        if sequence not in places.waiting:
            return "waits for its pages to come from the disk" if sequence.loading is not None else "runs"
        if places.full:
            return f"waits for one of {places.most} places in the batch, {places.waiting.why(sequence)}"
        if not places.admitting and places.running:
            return f"waits for memory: nothing new begins while it is short, {places.waiting.why(sequence)}"
        status, needs = self._cache.status(), _pages(sequence)
        return (
            f"waits for {needs} pages, of {status.free + status.evictable} that are to be had, "
            f"{places.waiting.why(sequence)}"
        )

    def _doubt(self) -> None:
        """Quotas have changed: who waits may find room now, or never any more."""
        self.places.doubtful = True
        self.places.look_again()

    def fork(self, leader: Sequence) -> list[Sequence]:
        """The prompt of `leader` has been read: its followers go on from it, as many as have a place; returns those."""
        followers, leader.followers = leader.followers, []
        forked = []
        assert leader.table is not None
        for follower in followers:
            follower.leader = None
            if self.places.full or not self._paged:
                self.places.wait_first(follower)  # it finds the prompt's pages when its turn comes
                continue
            follower.table = self._cache.fork(leader.table)
            follower.saved = leader.saved
            follower.found = len(leader.request.prompt)
            self.places.running.append(follower)
            forked.append(follower)
        return forked

    def pause(self, sequence: Sequence) -> None:
        """Let it rest, with its pages for as long as nobody else needs them."""
        if sequence not in self.places.paused:
            self._part(sequence)
            self.places.rest(sequence)

    def leave(self, sequence: Sequence, *, broken: bool = False) -> None:
        """Forget a sequence; what it has computed stays cached, unless its numbers are broken."""
        self.places.stuck = False
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
            self.places.release(table)

    def _part(self, sequence: Sequence) -> None:
        """Take it from where it is; the first that follows it leads the others from now on."""
        if sequence.leader is not None:
            sequence.leader.followers.remove(sequence)
            sequence.leader = None
        else:
            self.places.take_out(sequence)
        if sequence.followers:
            first, *others = sequence.followers
            sequence.followers, first.followers, first.leader = [], others, None
            for other in others:
                other.leader = first
            self.places.wait_first(first)

    # What a step computes

    def plan(self) -> list[Share]:
        """The sequences of the next step, and how many tokens of each; empty where none can do anything now."""
        places = self.places
        reading = self._reading()
        urgency = None if places.stuck else places.waiting.urgency
        decoding = self._sitting_out.part(self._decoding(), reading if places.waiting.preempts else (), urgency)
        shares = [Share(sequence, 1) for sequence in decoding if self._extend(sequence, 1)]
        shares = [share for share in shares if share.sequence.table is not None]  # not given up since
        reading = [sequence for sequence in reading if sequence.table is not None]
        waiting = len(reading) + min(len(places.waiting), max(0, places.most - len(places.running)))
        budget = self._pace.budget(len(shares), self._budget, waiting=waiting)
        for sequence in reading:
            if budget <= 0:
                break
            shares.append(Share(sequence, min(budget, sequence.missing)))
            budget -= shares[-1].count
        while budget > 0:
            admitted = places.admit(alone=not places.running)
            if admitted is None:
                break
            if admitted.loading is None:
                shares = [share for share in shares if share.sequence is not admitted]  # it was interrupted just now
                shares.append(Share(admitted, min(budget, admitted.missing)))
                budget -= shares[-1].count
        # Who was admitted may have taken the place or the pages of one that had a share.
        return [
            share for share in shares if share.sequence.table is not None and share.sequence not in places.interrupted
        ]

    def refuse(self) -> list[tuple[Sequence, Overloaded]]:
        """Those that wait for what they will never get leave, with the reason; asked after `plan`, which may add some.

        All that wait are looked at where quotas have changed, or one waits that did not come just now. Where that finds
        nobody, and nothing runs, the first that could not be admitted has to go.
        """
        refused: list[Sequence] = []
        while self.places.doubtful:  # again where others have followed one of them
            self.places.doubtful = False
            hopeless = [sequence for sequence in self.places.waiting if self.is_hopeless(sequence)]
            for sequence in hopeless:
                self.leave(sequence)
            refused += hopeless
        if not refused and not self.places.running:
            with closing(self.places.waiting.in_turn()) as line:
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
        for sequence in tuple(self.places.running):
            if sequence.table is not None and not sequence.held and not sequence.loading and sequence.missing == 1:
                yield sequence

    def _reading(self) -> list[Sequence]:
        """Whose prompts are being read, the most urgent first."""
        reading = [sequence for sequence in self.places.running if sequence.missing > 1 and not sequence.loading]
        return sorted(reading, key=lambda sequence: sequence.rank) if self.places.waiting.preempts else reading

    def _extend(self, sequence: Sequence, count: int) -> bool:
        """Room for `count` more tokens, if need be from whoever came last; False where the sequence has to wait."""
        while sequence.table is not None:
            room = self._cache.extend(sequence.table, sequence.table.length + count)
            if room is Room.GRANTED:
                return True
            owner = sequence.request.owner if room is Room.OVER_QUOTA else None
            if not self.places.reclaim(owner):
                self.places.give_up(self.places.last(owner))
        return False

    def reserve(self, sequence: Sequence, count: int) -> bool:
        """Room for `count` more tokens where there is some to be had; nobody gives up any for it."""
        table = sequence.table
        return table is not None and self._cache.extend(table, table.length + count) is Room.GRANTED


def _is_same_prompt(one: Request, other: Request) -> bool:
    """Whether the pages of one prompt are those of the other."""
    return (one.prompt, one.owner, one.adapter) == (other.prompt, other.owner, other.adapter)


def _pages(sequence: Sequence) -> int:
    """How many pages all of its tokens take."""
    return -(-len(sequence.tokens) // PAGE)
