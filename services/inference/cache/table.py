"""The page table of one sequence: which page holds its tokens 0 to 15, which 16 to 31, and so on."""

from __future__ import annotations

from array import array

from services.inference.cache.keys import PAGE
from services.inference.cache.prefixes import Node

__all__ = ["RELEASED", "Pin", "Table"]

RELEASED = -1  # as `Table.granted`


class Table:
    """One sequence's pages. Everybody may read it; only the cache that made it changes it."""

    __slots__ = ("changes", "first", "granted", "nodes", "owner", "pages", "root", "space", "tokens")

    def __init__(self, owner: str, space: bytes, root: bytes) -> None:
        """Empty. `root` is what its first page's key is chained to."""
        self.owner = owner
        self.space = space
        self.root = root
        self.changes = 0  # counted up whenever `pages` change
        self.pages: list[int] = []  # those behind the last token are reserved, and nobody else's
        self.tokens: array[int] = array("i")  # those whose keys and values are stored
        self.granted = 0  # positions below may be written, from `length` on
        self.nodes: list[Node] = []  # one a full page: its own, or with duplicates kept a batch mate's of the same key
        self.first: list[Node] = []  # all that was ever nodes[0]: what it has found or entered is there or below

    @property
    def length(self) -> int:
        """How many tokens have their keys and values stored."""
        return len(self.tokens)

    @property
    def keys(self) -> list[bytes]:
        """The content keys of its full pages."""
        return [node.key for node in self.nodes]

    @property
    def tail(self) -> int | None:
        """Where in `pages` the partially filled page is; None if the last one is full, or there is none."""
        index, filled = divmod(len(self.tokens), PAGE)
        return index if filled else None


class Pin:
    """Keeps the cached pages of a context until it is given to `Cache.unpin`."""

    __slots__ = ("nodes", "owner")

    def __init__(self, owner: str, nodes: list[Node]) -> None:
        """The cache claims the nodes."""
        self.owner = owner
        self.nodes: list[Node] | None = nodes  # None once it was given back
