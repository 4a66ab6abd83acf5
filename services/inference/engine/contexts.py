"""Contexts below the device: in the machine's memory and on disk; hot: looked at once a step, works once a page.

What the cache forgets goes to the host tier, where there is one, and comes back at once when a prompt begins with what
it holds. Pages of long contexts go to the disk when a prompt has been read and when a sequence leaves, and come back
likewise. They are put in place on the device's thread, between two steps; the disk has a thread of its own.
"""

from __future__ import annotations

from collections.abc import Sequence as Several

from services.inference.cache.cache import Cache
from services.inference.cache.host import HostTier
from services.inference.cache.keys import PAGE, page_keys
from services.inference.cache.saved import SavedPages
from services.inference.cache.table import Table
from services.inference.engine.forward import Storage
from services.inference.engine.sequence import Sequence

__all__ = ["Contexts"]

LONG = 256  # tokens from which a context is saved: shorter ones are computed as fast as they are read
WORTH = 4  # pages from which reading them is begun


class Contexts:
    """What an engine saves, and finds again."""

    def __init__(self, cache: Cache, storage: Storage, saved: SavedPages | None, host: HostTier | None = None) -> None:
        """Without `saved`, nothing is; without `host`, what the cache forgets is gone."""
        self._cache = cache
        self._storage = storage
        self._saved = saved
        self._host = host
        if host is not None:
            cache.on_evict = lambda page, key, owner: host.keep(key, page)  # noqa: ARG005 - the key holds the owner

    def begin(self, sequence: Sequence) -> None:
        """Begin to read what is saved of a sequence behind what it has; its table has room for all of its tokens.

        What a restored context has brought and what the host tier keeps is put in place at once. Behind a page that it
        has brought half full, the rest of that page is computed, and what follows with it.
        """
        table = sequence.table
        if table is not None and sequence.brought[1] > table.length:
            self._put(sequence, table)
        saved = self._saved if len(sequence.tokens) >= LONG else None
        if table is None or table.length % PAGE or (self._host is None and saved is None):
            return
        keys = page_keys(table.space, table.owner, sequence.tokens[:-1])[len(table.nodes) :]
        if self._host is not None:
            keys = self._lift(self._host, sequence, table, keys)
        if saved is not None and (found := saved.find(keys)) >= WORTH:
            sequence.loading = saved.load(keys[:found])

    def forget(self) -> None:
        """Numbers were broken: nothing of the host tier is trusted any more."""
        if self._host is not None:
            self._host.forget()

    def _lift(self, host: HostTier, sequence: Sequence, table: Table, keys: list[bytes]) -> list[bytes]:
        """Put in place what the host tier has of `keys`, the pages behind what is there; returns the others."""
        start = table.length
        lifted = host.find(keys)
        end = start + lifted * PAGE
        host.lift(keys[:lifted], table.pages[start // PAGE : end // PAGE])
        self._cache.advance(table, sequence.tokens[start:end])
        return keys[lifted:]

    def _put(self, sequence: Sequence, table: Table) -> None:
        (contents, length), sequence.brought = sequence.brought, ((), 0)
        for index in range(len(table.nodes), len(contents)):
            start = table.length
            self._storage.write(table.pages[index], contents[index])
            self._cache.advance(table, sequence.tokens[start : min(start + PAGE, length)])

    def take(self, sequences: Several[Sequence], *, wait: float) -> None:
        """Put the pages that have come where they belong; if there are none yet, wait up to `wait` seconds."""
        for sequence in sequences:
            loading, table = sequence.loading, sequence.table
            if loading is None or table is None:
                continue
            for content in loading.take(wait=wait):
                start = table.length
                self._storage.write(table.pages[start // PAGE], content)
                self._cache.advance(table, sequence.tokens[start : start + PAGE])
            if loading.done:
                sequence.loading = None
                sequence.saved = len(table.nodes)
            wait = 0.0  # for the first of them

    def keep(self, sequence: Sequence) -> None:
        """Give the full pages of a long context to the disk, as many as it takes now."""
        table = sequence.table
        if self._saved is None or table is None or table.length < LONG:
            return
        for key, page in zip(table.keys[sequence.saved :], table.pages[sequence.saved :], strict=False):
            if not self._saved.has(key) and not self._saved.save(key, self._storage.read(page)):
                return
            sequence.saved += 1
