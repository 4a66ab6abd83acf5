"""The pool of pages: which are free, how many tables hold each, and on whose account it is; hot: runs once a page.

A page is free, or on the account of one owner until it is given back: held by tables, or by none and kept for later.
Why it is kept is not known here. Every operation that runs once a page takes constant time.
"""

from __future__ import annotations

from microkernel.errors import Invalid
from services.inference.cache.ledger import Ledger

__all__ = ["Pages"]


class Pages:
    """Page ids from 0 to `count` - 1.

    Last freed, first taken: its memory is likeliest to be in the processor's caches, and pages that were never needed
    are never touched, so that the system need not find memory for them.
    """

    def __init__(self, count: int, *, ledger: Ledger | None = None, page_bytes: int = 0) -> None:
        """All are free, the lowest to be taken first. Pages of `page_bytes` count in `ledger`, the device's, too."""
        if count < 1:
            raise Invalid(f"a pool of {count} pages can hold nothing", field="count", remedy="give it at least 1 page")
        self.count = count
        self.limit = count  # how many of them there may be at a time, by what the device has to give
        self.held = 0  # pages that some table holds
        self._free = list(reversed(range(count)))
        self._references = [0] * count
        self._owners = [""] * count  # whose account a page is on; stale where it is free
        self._warm = 0  # free pages, the last of the list, whose memory the system has not got back
        self._used: dict[str, int] = {}
        self._quotas: dict[str, int] = {}
        self._ledger = ledger
        self._page_bytes = page_bytes

    @property
    def free(self) -> int:
        """How many pages can be taken."""
        return self.limit - self.taken

    @property
    def taken(self) -> int:
        """How many pages are on somebody's account."""
        return self.count - len(self._free)

    @property
    def resident(self) -> int:
        """How many pages have memory of the system: all that are taken, and free ones that were."""
        return self.taken + self._warm

    def resize(self, limit: int) -> None:
        """Let there be so many pages at a time, never fewer than are taken, never more than there are ids."""
        self.limit = max(self.taken, min(limit, self.count))

    def cool(self) -> list[int]:
        """The free pages that have memory, which the caller gives back to the system; the lowest are taken next."""
        warm = sorted(self._free[len(self._free) - self._warm :])
        self._free.sort(reverse=True)
        self._warm = 0
        return warm

    @property
    def owners(self) -> set[str]:
        """Those who have a page or a quota."""
        return self._used.keys() | self._quotas.keys()

    def used(self, owner: str) -> int:
        """How many pages are on this account, each counted once however many tables hold it."""
        return self._used.get(owner, 0)

    def quota(self, owner: str) -> int | None:
        """How many pages may be on this account; None: all there are."""
        return self._quotas.get(owner)

    def set_quota(self, owner: str, pages: int | None) -> None:
        """Change what `owner` may have. What it has already stays its own."""
        if pages is None:
            self._quotas.pop(owner, None)
        elif pages < 0:
            raise Invalid(f"a quota of {pages} pages", field="pages", remedy="0 allows none, None as many as there are")
        else:
            self._quotas[owner] = pages

    def excess(self, owner: str, more: int = 0) -> int:
        """By how many pages `owner` would be over its quota, had it taken `more`."""
        quota = self._quotas.get(owner)
        return 0 if quota is None else max(0, self.used(owner) + more - quota)

    def excess_on_device(self, owner: str, more: int = 0) -> int:
        """The same for what it may have of the whole device, in pages of this pool."""
        if self._ledger is None:
            return 0
        return -(-self._ledger.excess(owner, more * self._page_bytes) // self._page_bytes)

    def most(self, owner: str) -> int | None:
        """How many pages `owner` may come to have, by its quotas here and on the device; None: all there are."""
        quotas = [self.quota(owner)]
        if self._ledger is not None and (limit := self._ledger.limit(owner)) is not None:
            quotas.append(limit // self._page_bytes)
        return min((quota for quota in quotas if quota is not None), default=None)

    def leave(self) -> dict[str, int]:
        """Count in the ledger no more; returns the bytes of each owner, which are still on its account there."""
        self._ledger = None
        return {owner: pages * self._page_bytes for owner, pages in self._used.items()}

    def owns_elsewhere(self, owner: str) -> bool:
        """Whether `owner` has pages in other pools of the device."""
        return self._ledger is not None and self._ledger.used(owner) > self.used(owner) * self._page_bytes

    def references(self, page: int) -> int:
        """How many tables hold it."""
        return self._references[page]

    def take(self, owner: str) -> int:
        """A free page, held once and on the account of `owner`. The caller has seen that there is one."""
        page = self._free.pop()
        if self._warm:
            self._warm -= 1
        self._references[page] = 1
        self._owners[page] = owner
        self._used[owner] = self._used.get(owner, 0) + 1
        if self._ledger is not None:
            self._ledger.take(owner, self._page_bytes)
        self.held += 1
        return page

    def hold(self, page: int) -> bool:
        """One more table holds it; True if it is the first."""
        self._references[page] += 1
        first = self._references[page] == 1
        self.held += first
        return first

    def let_go(self, page: int) -> bool:
        """One table less holds it; True if it was the last: the page is to be kept for later, or given back."""
        assert self._references[page] > 0, f"nobody holds page {page}"
        self._references[page] -= 1
        last = self._references[page] == 0
        self.held -= last
        return last

    def give_back(self, page: int) -> None:
        """A page that nobody holds is free again, and leaves its account."""
        assert self._references[page] == 0, f"page {page} is still held"
        owner = self._owners[page]
        self._used[owner] -= 1
        if not self._used[owner]:
            del self._used[owner]
        self._free.append(page)
        self._warm += 1
        if self._ledger is not None:
            self._ledger.give_back(owner, self._page_bytes)
