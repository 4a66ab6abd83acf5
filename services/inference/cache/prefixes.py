"""The prefix tree: full pages by content key, and in which order they may be forgotten; hot: runs once a page.

A node is one page; its children are the pages that were computed behind it. The key is chained from the name space and
owner down (see `keys`), so one dictionary is a tree for each of them, and equal keys are equal prefixes.

A node is idle once nothing claims it: no table holds its page, nothing pins it, and all of its children are idle. Idle
nodes wait in the order in which they became idle, so the first is the least recently used; and as a node becomes idle
after its children, the first is always a leaf. Each step of this takes constant time, as claims stop on their way up at
the first node that is claimed already.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from services.inference.cache.keys import PAGE_BYTES, page_key

__all__ = ["Node", "Prefixes"]


class Node:
    """A full page by its content. Outside of the tree it only remembers its key: nothing is found or entered there."""

    __slots__ = ("children", "claims", "in_tree", "key", "owner", "page", "parent")

    def __init__(self, key: bytes, page: int, owner: str, parent: Node | None) -> None:
        """Not in the tree yet: `Prefixes.enter` does it."""
        self.key = key
        self.page = page
        self.owner = owner
        self.parent = parent
        self.children: set[Node] = set()
        self.claims = 0  # 1 if tables hold its page, 1 for each pin, 1 for each child that is claimed
        self.in_tree = False


class Prefixes:
    """The nodes in memory. Who holds which page is told by `claim` and `waive`."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Node] = {}
        self._by_page: dict[int, Node] = {}
        # OrderedDict: a dict takes ever longer to find its first item while items are removed in front.
        self._idle: OrderedDict[int, Node] = OrderedDict()  # by page
        self._idle_of: defaultdict[str, OrderedDict[int, Node]] = defaultdict(OrderedDict)  # the same, by owner

    def longest(self, root: bytes, content: bytes, limit: int) -> list[Node]:
        """The nodes of as many pages of `content` (serialised tokens) as are here without a gap, at most `limit`."""
        found: list[Node] = []
        key = root
        for start in range(0, limit * PAGE_BYTES, PAGE_BYTES):
            key = page_key(key, content[start : start + PAGE_BYTES])
            node = self._by_key.get(key)
            if node is None:
                break
            found.append(node)
        return found

    def find(self, key: bytes) -> Node | None:
        """The node of this key."""
        return self._by_key.get(key)

    def at(self, page: int) -> Node | None:
        """The node of this page; None for one that is not in the tree."""
        return self._by_page.get(page)

    def idle(self, owner: str | None = None) -> int:
        """How many nodes, of `owner` or of all, nothing claims."""
        return len(self._idle) if owner is None else len(self._idle_of.get(owner, ()))

    def oldest(self, owner: str | None = None) -> Node | None:
        """The idle node, of `owner` or of all, that was used least recently; it has no children."""
        idle = self._idle if owner is None else self._idle_of.get(owner)
        return next(iter(idle.values())) if idle else None

    def enter(self, node: Node) -> None:
        """Add a node of a new key, claimed once, for its page is held. Its parent, if it has one, is in the tree."""
        assert node.key not in self._by_key, "a key has one page"
        node.in_tree = True
        node.claims = 1
        self._by_key[node.key] = self._by_page[node.page] = node
        if node.parent is not None:
            node.parent.children.add(node)
            self.claim(node.parent)

    def claim(self, node: Node) -> None:
        """One more reason to keep the node."""
        above: Node | None = node
        while above is not None:
            above.claims += 1
            if above.claims > 1:
                return
            self._remove_idle(above)
            above = above.parent

    def waive(self, node: Node) -> None:
        """One reason less to keep the node."""
        above: Node | None = node
        while above is not None:
            assert above.claims > 0, "more claims were waived than made"
            above.claims -= 1
            if above.claims:
                return
            self._idle[above.page] = above
            self._idle_of[above.owner][above.page] = above
            above = above.parent

    def remove(self, node: Node) -> list[Node]:
        """Take a node and all below it out of the tree, claimed or not; returns them, none if it is out already."""
        if not node.in_tree:
            return []
        if node.parent is not None:
            node.parent.children.remove(node)
            if node.claims:
                self.waive(node.parent)
        removed = [node]
        for below in removed:  # grows on the way
            removed += below.children
            below.children.clear()
            below.parent = None
            below.in_tree = False
            del self._by_key[below.key], self._by_page[below.page]
            if not below.claims:
                self._remove_idle(below)
        return removed

    def _remove_idle(self, node: Node) -> None:
        del self._idle[node.page]
        mine = self._idle_of[node.owner]
        del mine[node.page]
        if not mine:
            del self._idle_of[node.owner]
