"""The pool of pages: which are free, how many tables hold each, and on whose account it is; hot: runs once a page.

A page is free, or on the account of one owner until it is given back: held by tables, or by none and kept for later.
Why it is kept is not known here. Every operation takes constant time.
"""

from __future__ import annotations

from microkernel.errors import Invalid

__all__ = ["Pages"]


class Pages:
    """Page ids from 0 to `count` - 1.

    Last freed, first taken: its memory is likeliest to be in the processor's caches, and pages that were never needed
    are never touched, so that the system need not find memory for them.
    """

    def __init__(self, count: int) -> None:
        """All are free, the lowest to be taken first."""
        if count < 1:
            raise Invalid(f"a pool of {count} pages can hold nothing", field="count", remedy="give it at least 1 page")
        self.count = count
        self.held = 0  # pages that some table holds
        self._free = list(reversed(range(count)))
        self._references = [0] * count
        self._owners = [""] * count  # whose account a page is on; stale where it is free
        self._used: dict[str, int] = {}
        self._quotas: dict[str, int] = {}

    @property
    def free(self) -> int:
        """How many pages can be taken."""
        return len(self._free)

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

    def references(self, page: int) -> int:
        """How many tables hold it."""
        return self._references[page]

    def take(self, owner: str) -> int:
        """A free page, held once and on the account of `owner`. The caller has seen that there is one."""
        page = self._free.pop()
        self._references[page] = 1
        self._owners[page] = owner
        self._used[owner] = self._used.get(owner, 0) + 1
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
