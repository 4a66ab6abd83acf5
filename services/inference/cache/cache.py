"""The paged KV cache's bookkeeping: whose pages hold which tokens, and what is forgotten first; hot: runs once a token.

A page holds keys and values of 16 consecutive tokens of one sequence in all layers; the numbers are elsewhere
(`Storage`). A sequence has a `Table` of pages. A page that becomes full is entered into the prefix tree at once, where
later sequences of the same owner and name space find it by its content. After the last table has let it go it stays
cached, until its place is needed: least recently used first, and those behind it in the prefix before it.

A page is written only while it is in one table and not in the tree; `extend` copies it where that is not so. A step of
one sequence is `extend`, the writing itself, and `advance`: a comparison each, except at the border of a page.

The idea is PagedAttention's (https://arxiv.org/abs/2309.06180), the tree is that of https://arxiv.org/abs/2312.07104.
Plain classes for one thread, the device's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from microkernel.errors import Invalid, PreconditionFailed
from services.inference.cache.keys import PAGE, bad_token, packed, page_key, root_key, serialised
from services.inference.cache.ledger import Ledger
from services.inference.cache.pages import Pages
from services.inference.cache.prefixes import Node, Prefixes
from services.inference.cache.status import OwnerStatus, Status
from services.inference.cache.table import RELEASED, Pin, Table

__all__ = ["Cache", "OwnerStatus", "Room", "Status", "Storage"]


class Storage(Protocol):
    """Where the numbers are."""

    def copy(self, source: int, target: int) -> None:
        """Write all of page `source` over page `target`."""


class Room(Enum):
    """What `extend` says. Only with `GRANTED` anything has changed."""

    GRANTED = 0
    FULL = 1  # the pool has none left: others have to end or to pause
    OVER_QUOTA = 2  # the owner may not have more: one of its own has to


class Cache:
    """All tables and cached pages of one pool."""

    def __init__(
        self,
        count: int,
        storage: Storage,
        *,
        deduplicate: bool = True,
        found_again: bool = True,
        on_evict: Callable[[int, bytes, str], None] | None = None,
        ledger: Ledger | None = None,
        page_bytes: int = 0,
    ) -> None:
        """A pool of `count` pages.

        With `deduplicate`, batch mates that compute the same page at the same time end up with one; it needs equal
        tokens to give equal bits. Without `found_again`, pages only count: none is cached, shared or copied, because
        what they stand for is elsewhere. `on_evict` is told page, key and owner before a cached page is forgotten, so
        that a lower tier can save it; it may not call the cache, and what it raises stops the eviction. Pages of
        `page_bytes` count in `ledger` too, which knows what each owner may have of the whole device.
        """
        self.on_evict = on_evict
        self.on_quotas: Callable[[], None] | None = None  # told when what owners may have is not what it was
        self._storage = storage
        self._deduplicate = deduplicate
        self._found_again = found_again
        self._pages = Pages(count, ledger=ledger, page_bytes=page_bytes)
        self._prefixes = Prefixes()
        self._hits: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._evictions = 0
        self._ledger = ledger
        self._page_bytes = page_bytes
        if ledger is not None:
            ledger.join(self)

    def begin(self, owner: str, space: bytes, tokens: Sequence[int]) -> Table:
        """A table that holds what is cached of a prompt: full pages, and never the last token.

        That one has to be computed, for its logits. `space` names what the numbers depend on beside the tokens.
        Nothing is counted: see `admit`.
        """
        table = Table(owner, space, root_key(space, owner))
        prompt = packed(tokens)
        whole = max(0, len(prompt) - 1) // PAGE if self._found_again else 0
        table.nodes = self._prefixes.longest(table.root, serialised(prompt), whole)
        table.first = table.nodes[:1]
        table.pages = [node.page for node in table.nodes]
        for node in table.nodes:
            self._hold(node)
        table.granted = len(table.nodes) * PAGE
        table.tokens = prompt[: table.granted]
        return table

    def admit(self, owner: str, space: bytes, tokens: Sequence[int], *, most: int | None = None) -> Table | Room:
        """`begin` with room for all of `tokens`, as `extend` gives it, or why there is none.

        Nor is there any where more than `most` pages would be held then. Without room nothing was taken or counted, and
        nobody who waits is told: who waits would only try as well, and tell us. With it, the tokens that were found are
        hits and the others misses, once however often it was tried.
        """
        table = self.begin(owner, space, tokens)
        crowded = most is not None and self.held + _count(len(tokens)) - len(table.pages) > most
        room = Room.FULL if crowded else self.extend(table, len(tokens))
        if room is not Room.GRANTED:
            self._release(table)
            return room
        self._hits[owner] += table.length
        self._misses[owner] += len(tokens) - table.length
        return table

    def extend(self, table: Table, length: int) -> Room:
        """See that positions from `table.length` up to `length` can be written, by this table alone.

        Free pages are taken first, then cached ones: the owner's own if it is at its quota, otherwise anybody's. A page
        that holds the last tokens and is not this table's alone is copied, so a sequence that was cut inside of a full
        page needs one page more.
        """
        if length <= table.granted:
            return Room.GRANTED
        _check(table)
        pages, tail = table.pages, table.tail
        copied = tail is not None and self._is_shared(pages[tail])
        missing = _count(length) + copied - len(pages)
        if missing > 0:
            room = self._make_room(table.owner, missing)
            if room is not Room.GRANTED:
                return room
            pages += [self._pages.take(table.owner) for _ in range(missing)]
        if copied:
            assert tail is not None
            self._storage.copy(pages[tail], pages[-1])  # should it raise, the table has a page to spare
            shared, pages[tail] = pages[tail], pages.pop()
            self._let_go(shared)
        table.granted = len(pages) * PAGE
        table.changes += 1
        return Room.GRANTED

    def advance(self, table: Table, tokens: list[int]) -> None:
        """Keys and values of `tokens` are written behind those the table has; pages that are full now can be found.

        That includes pages whose content came from a lower tier: `extend` reserves them, `page_keys` names them.
        """
        length = len(table.tokens) + len(tokens)
        if length > table.granted:
            _check(table)
            raise PreconditionFailed(
                f"{length} tokens are written to a table of '{table.owner}' that may have {table.granted}",
                remedy="extend the table before what is written",
            )
        try:
            table.tokens.fromlist(tokens)  # all or none
        except (OverflowError, TypeError) as error:
            raise bad_token(error) from error
        if length // PAGE > len(table.nodes) and self._found_again:
            self._complete(table)

    def fork(self, table: Table) -> Table:
        """A second table of the same tokens in the same pages; whoever writes into a shared page first copies it.

        Raises `PreconditionFailed` where pages only count.
        """
        _check(table)
        if not self._found_again:
            raise PreconditionFailed(
                "this model's sequences cannot be forked: their state is not in pages",
                remedy="begin another sequence with the same tokens",
            )
        fork = Table(table.owner, table.space, table.root)
        fork.pages = table.pages[: _count(table.length)]
        fork.tokens = table.tokens[:]
        fork.nodes = table.nodes[:]
        fork.first = table.first[:]
        fork.granted = table.granted = table.length  # the last page is no longer its own
        for page in fork.pages:
            self._pages.hold(page)
        return fork

    def truncate(self, table: Table, length: int) -> None:
        """Forget the tokens from `length` on, and give back the pages behind, also those that were only reserved."""
        _check(table)
        if not 0 <= length <= table.length:
            raise Invalid(
                f"a sequence of {table.length} tokens cannot be cut to {length}",
                field="length",
                remedy="cut it to a length between 0 and its own",
            )
        kept = _count(length)
        behind = table.pages[kept:]
        del table.pages[kept:], table.tokens[length:], table.nodes[length // PAGE :]
        table.granted = length
        table.changes += 1
        for page in behind:
            self._let_go(page)
        self._eased(table.owner)

    def release(self, table: Table) -> None:
        """The sequence has ended: its full pages stay cached, as used most recently; the others are free."""
        _check(table)
        self._release(table)
        self._eased(table.owner)

    def clear(self, table: Table) -> list[int]:
        """Release a table whose numbers are broken (NaN): no page that it has found or entered can be found again.

        Nor can those behind them, of whichever table. Pages that it found count too: it may not be the one that broke
        them, and would be broken by them again whenever it is tried again. Returns the pages that are free now.
        """
        _check(table)
        pages = set(table.pages)
        for first in table.first:
            for node in self._prefixes.remove(first):
                pages.add(node.page)
                if not self._pages.references(node.page):
                    self._pages.give_back(node.page)
        self.release(table)
        return [page for page in pages if not self._pages.references(page) and self._prefixes.at(page) is None]

    @property
    def held(self) -> int:
        """How many pages are in a table."""
        return self._pages.held

    def pin(self, table: Table) -> Pin:
        """Keep the table's full pages cached, also after its release, until `unpin`; they stay on their account."""
        _check(table)
        nodes = [node for node in table.nodes if node.in_tree]
        for node in nodes:
            self._prefixes.claim(node)
        return Pin(table.owner, nodes)

    def unpin(self, pin: Pin) -> None:
        """The pages may be evicted again."""
        if pin.nodes is None:
            raise PreconditionFailed("these pages are unpinned already", remedy="unpin once for each pin")
        nodes, pin.nodes = pin.nodes, None
        for node in nodes:
            if node.in_tree:
                self._prefixes.waive(node)
        self._eased(pin.owner)

    def set_quota(self, owner: str, pages: int | None) -> None:
        """Let `owner` have so many pages, held and cached together; None: as many as there are.

        What is over it is taken from its cached pages, now or when they are no longer in use, and never from a table.
        """
        self._pages.set_quota(owner, pages)
        self._eased(owner)
        self.limits_changed()

    def quota(self, owner: str) -> int | None:
        """How many pages `owner` may have; None: as many as there are."""
        return self._pages.quota(owner)

    def evict(self, count: int) -> int:
        """Make up to `count` cached pages free, the least recently used first; returns how many."""
        count = max(0, min(count, self._prefixes.idle()))
        for _ in range(count):
            self._evict()
        return count

    def resize(self, pages: int) -> int:
        """Let there be `pages` at a time: cached ones go, the least recently used first, and held ones stay.

        Returns how many there may be now.
        """
        self.evict(self._pages.taken - pages)
        self._pages.resize(pages)
        return self._pages.limit

    def cool(self) -> list[int]:
        """The free pages that still have memory; the caller gives it back to the system."""
        return self._pages.cool()

    @property
    def pages(self) -> Pages:
        """The pool, to be read."""
        return self._pages

    def wait(self, owner: str, told: Callable[[], None]) -> None:
        """Have `told` called once, when another model of the device has let something of `owner` go."""
        if self._ledger is not None:
            self._ledger.wait(owner, self, told)

    def close(self) -> None:
        """Leave the ledger; the pages are gone, and what is done with them afterwards is nobody's concern."""
        self.on_evict = self.on_quotas = None
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.leave(self, self._pages.leave())

    def idle_bytes(self, owner: str) -> int:
        """What of `owner`'s pages is only cached."""
        return self._prefixes.idle(owner) * self._page_bytes

    def evict_bytes(self, owner: str, size: int) -> int:
        """Forget cached pages of `owner`, of `size` bytes if there are so many; returns how many bytes."""
        count = min(-(-size // self._page_bytes), self._prefixes.idle(owner))
        for _ in range(count):
            self._evict(owner)
        return count * self._page_bytes

    def limits_changed(self) -> None:
        """What owners may have, here or of the device, is not what it was."""
        if self.on_quotas is not None:
            self.on_quotas()

    def status(self) -> Status:
        """The numbers as they are now."""
        pages = self._pages
        return Status(
            pages=pages.limit,
            free=pages.free,
            cached=pages.taken - pages.held,
            evictable=self._prefixes.idle(),
            held=pages.held,
            resident=pages.resident,
            hits=self._hits.total(),
            misses=self._misses.total(),
            evictions=self._evictions,
            owners={
                owner: OwnerStatus(pages.used(owner), self.quota(owner), self._hits[owner], self._misses[owner])
                for owner in sorted(pages.owners | self._hits.keys())
            },
        )

    def _complete(self, table: Table) -> None:
        """Enter the pages that have become full."""
        for index in range(len(table.nodes), table.length // PAGE):
            content = serialised(table.tokens[index * PAGE : (index + 1) * PAGE])
            parent = table.nodes[-1] if table.nodes else None
            key = page_key(parent.key if parent else table.root, content)
            table.nodes.append(self._enter(table, index, key, parent))
            if index == 0:
                table.first.append(table.nodes[0])

    def _enter(self, table: Table, index: int, key: bytes, parent: Node | None) -> Node:
        """The node for a page that has become full: a new one, or that of a batch mate who was first."""
        page = table.pages[index]
        node = Node(key, page, table.owner, parent)
        if parent is not None and not parent.in_tree:
            return node  # what it stands on was broken, or is forgotten: nobody could find it
        known = self._prefixes.find(key)
        if known is None:
            self._prefixes.enter(node)
            return node
        if self._deduplicate:
            self._hold(known)
            table.pages[index] = known.page
            table.changes += 1
            self._let_go(page)
        return known

    def _make_room(self, owner: str, count: int) -> Room:
        """See that `count` pages are free, and `owner` may have them; if not, nothing is evicted."""
        pages, idle = self._pages, self._prefixes.idle(owner)
        here, on_device = pages.excess(owner, count), pages.excess_on_device(owner, count)
        over = max(here, min(idle, on_device))
        elsewhere = (on_device - over) * self._page_bytes  # to be forgotten by other models of the device
        if here > idle or (elsewhere > 0 and not self._reclaimable(owner, elsewhere)):
            return Room.OVER_QUOTA  # said before FULL: pausing others would not help
        if count > pages.free + self._prefixes.idle():
            return Room.FULL
        if elsewhere > 0 and self._ledger is not None:
            self._ledger.reclaim(owner, elsewhere, self)
        for _ in range(over):
            self._evict(owner)
        while pages.free < count:
            self._evict()
        return Room.GRANTED

    def _reclaimable(self, owner: str, size: int) -> bool:
        return self._ledger is not None and self._ledger.idle(owner, self) >= size

    def _trim(self, owner: str) -> None:
        """Evict what `owner` has cached beyond its quota."""
        over = max(self._pages.excess(owner), self._pages.excess_on_device(owner))
        for _ in range(min(over, self._prefixes.idle(owner))):
            self._evict(owner)

    def _eased(self, owner: str) -> None:
        """Something of `owner` is no longer in use: what is over its quota goes, and who waits for it looks again."""
        self._trim(owner)
        if self._ledger is not None:
            self._ledger.eased(owner)

    def _evict(self, owner: str | None = None) -> None:
        node = self._prefixes.oldest(owner)
        assert node is not None, "only as many are evicted as are idle"
        if self.on_evict is not None:
            self.on_evict(node.page, node.key, node.owner)
        self._prefixes.remove(node)
        self._pages.give_back(node.page)
        self._evictions += 1

    def _hold(self, node: Node) -> None:
        if self._pages.hold(node.page):
            self._prefixes.claim(node)

    def _release(self, table: Table) -> None:
        pages, table.pages, table.granted = table.pages, [], RELEASED
        for page in pages:
            self._let_go(page)

    def _let_go(self, page: int) -> None:
        if self._pages.let_go(page):
            node = self._prefixes.at(page)
            if node is None:
                self._pages.give_back(page)
            else:
                self._prefixes.waive(node)

    def _is_shared(self, page: int) -> bool:
        return self._pages.references(page) > 1 or self._prefixes.at(page) is not None


def _count(length: int) -> int:
    """How many pages `length` tokens take."""
    return -(-length // PAGE)


def _check(table: Table) -> None:
    if table.granted == RELEASED:
        raise PreconditionFailed(
            f"a table of '{table.owner}' was released already", remedy="begin another one for the same tokens"
        )
