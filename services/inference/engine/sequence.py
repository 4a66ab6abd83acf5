"""One request under way: its tokens so far, its pages, and what chooses its next token; hot: every step."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any

import msgspec

from microkernel.policy import Claim, Entry
from services.inference.cache.saved import Loading
from services.inference.cache.table import Table
from services.inference.engine.constraints import Constraint
from services.inference.engine.forward import Storage
from services.inference.engine.guess import Guess
from services.inference.engine.sampler import ResolvedSampling, SamplerState
from services.inference.grammar.matcher import CompiledGrammar

__all__ = ["Request", "Sequence"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for up to `max_tokens` tokens after `prompt`, on the account of `owner`, of the model with `adapter`.

    `id` is the caller's: no two at once have the same. `stop_tokens` end the answer, not before `min_tokens`. With
    `grammar`, its text fits that, or is cut short by `max_tokens`. `logit_bias` are pairs of a token and what is added
    to its logit. `logprobs` asks how likely each token was, and that many of the likeliest (`logprobs.MOST` at most).
    `fork_of` is the id of a request with the same prompt and owner that was added just before: its prompt is read once
    for both. `claim` says to the scheduler's policy when its turn is. `begun` are tokens of its answer that were made
    elsewhere: it goes on as if it had made them.
    """

    id: int
    prompt: Several[int]
    max_tokens: int
    params: ResolvedSampling
    stop_tokens: frozenset[int] = frozenset()
    owner: str = "local"
    fork_of: int | None = None
    adapter: int | None = None
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: CompiledGrammar | None = None
    logprobs: int | None = None
    claim: Claim = Claim()
    begun: tuple[int, ...] = ()

    def constraint(self) -> Constraint | None:
        """What it demands of its tokens, for an answer that begins; None if that is nothing."""
        if self.grammar is None and not self.logit_bias and not self.min_tokens:
            return None
        return Constraint(
            stop_tokens=self.stop_tokens,
            min_tokens=self.min_tokens,
            logit_bias=self.logit_bias,
            grammar=self.grammar,
        )


class Sequence:
    """A request with what was generated for it.

    Those of its tokens that are not in its pages yet are to be computed: the whole prompt at first, one token while it
    decodes, and all of them again after it had to give its pages to others.
    """

    __slots__ = (
        *(
            "__weakref__",
            "_seen",
            "_view",
            "brought",
            "claim",
            "entry",
            "followers",
            "found",
            "guess",
            "held",
            "leader",
        ),
        *("limit", "loading", "request", "sampler", "saved", "table", "tokens"),
    )

    def __init__(self, request: Request, sampler: SamplerState, limit: int) -> None:
        self.request = request
        self.sampler = sampler
        self.claim = request.claim
        self.entry: Entry | None = None  # in the line of those who wait
        self.limit = limit  # tokens that it may come to have, prompt and answer
        self.tokens: list[int] = list(request.prompt)
        self.table: Table | None = None
        self.held = False
        self.loading: Loading | None = None  # pages that come from disk; nothing is computed until they are there
        self.saved = 0  # how many of its pages were given to the disk
        self.brought: tuple[Several[bytes], int] = ((), 0)  # pages and their tokens, of a context that was restored
        self.leader: Sequence | None = None  # reads the prompt of both
        self.followers: list[Sequence] = []  # those for which it reads the prompt
        self.guess = Guess()
        self.found = -1  # how many of its tokens were cached when it first ran; -1 before
        self._view: Any = None
        self._seen = -1

    @property
    def rank(self) -> int:
        """How urgent its class is, 0 the most."""
        return self.claim.process_class.rank

    @property
    def length(self) -> int:
        """How many of its tokens are in its pages."""
        return 0 if self.table is None else self.table.length

    @property
    def missing(self) -> int:
        """How many of its tokens are not in its pages."""
        return len(self.tokens) - self.length

    @property
    def generated(self) -> int:
        """How many tokens its answer has."""
        return len(self.tokens) - len(self.request.prompt)

    def ended_by(self, token: int) -> str | None:
        """Why its answer ends with `token`, its newest: "stop", "complete", "length"; None where it goes on."""
        if token in self.request.stop_tokens:
            return "stop"
        if self.sampler.complete:
            return "complete"
        return "length" if len(self.tokens) >= self.limit else None

    def view(self, storage: Storage) -> Any:
        """Its pages as the decoder takes them; made anew where they have changed."""
        table = self.table
        assert table is not None
        if table.changes != self._seen:
            self._view, self._seen = storage.table(table.pages), table.changes
        return self._view

    def drop(self) -> Table:
        """Its table, which it no longer has."""
        if self.loading is not None:
            self.loading.cancel()
        table, self.table, self.loading, self.saved = self.table, None, None, 0
        assert table is not None
        self._view, self._seen = None, -1
        return table
