"""One request under way: its tokens so far, its pages, and what chooses its next token; hot: every step."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any

import msgspec

from services.inference.cache.keys import PAGE
from services.inference.cache.saved import Loading
from services.inference.cache.table import Table
from services.inference.engine.forward import Storage
from services.inference.engine.sampler import ResolvedSampling, SamplerState

__all__ = ["Request", "Sequence"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for up to `max_tokens` tokens after `prompt`, on the account of `owner`.

    `id` is the caller's: no two at once have the same.
    """

    id: int
    prompt: Several[int]
    max_tokens: int
    params: ResolvedSampling
    stop_tokens: frozenset[int] = frozenset()
    owner: str = "local"


class Sequence:
    """A request with what was generated for it.

    Those of its tokens that are not in its pages yet are to be computed: the whole prompt at first, one token while it
    decodes, and all of them again after it had to give its pages to others.
    """

    __slots__ = ("_stand", "_view", "held", "limit", "loading", "request", "sampler", "saved", "table", "tokens")

    def __init__(self, request: Request, sampler: SamplerState, limit: int) -> None:
        self.request = request
        self.sampler = sampler
        self.limit = limit  # tokens that it may come to have, prompt and answer
        self.tokens: list[int] = list(request.prompt)
        self.table: Table | None = None
        self.held = False
        self.loading: Loading | None = None  # pages that come from disk; nothing is computed until they are there
        self.saved = 0  # how many of its pages were given to the disk
        self._view: Any = None
        self._stand = (-1, -1, -1)

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

    def view(self, storage: Storage) -> Any:
        """Its pages as the decoder takes them; made anew where they may have changed."""
        table = self.table
        assert table is not None
        stand = (len(table.pages), table.length // PAGE, table.granted)
        if stand != self._stand:
            self._view, self._stand = storage.table(table.pages), stand
        return self._view

    def drop(self) -> Table:
        """Its table, which it no longer has."""
        if self.loading is not None:
            self.loading.cancel()
        table, self.table, self.loading, self.saved = self.table, None, None, 0
        assert table is not None
        self._view, self._stand = None, (-1, -1, -1)
        return table
