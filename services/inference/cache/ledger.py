"""What each owner may have on one device, over the pages of all of its models, in bytes; hot: runs once a page.

The models of a device step on one thread, so one plain object counts for all of them, exactly. An owner at its limit
gets room where it has cached pages that nobody holds, in whichever model; where all are held, it waits until one of its
own is let go. Others are not concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

__all__ = ["NODE", "Ledger", "Lender"]

NODE = ""  # the owner of what the node does for itself, such as a model's first token; no quota is for it


class Lender(Protocol):
    """The pages of one model, as far as a ledger asks them to give some back."""

    def idle_bytes(self, owner: str) -> int:
        """What of `owner`'s pages is only cached."""
        ...

    def evict_bytes(self, owner: str, size: int) -> int:
        """Forget cached pages of `owner`, of `size` bytes if there are so many; returns how many bytes."""
        ...

    def limits_changed(self) -> None:
        """What owners may have of the device is not what it was."""
        ...


class Ledger:
    """Bytes of pages by owner, and what each may have."""

    def __init__(self) -> None:
        """Nobody is limited."""
        self._limits: dict[str, int | None] = {}
        self._default: int | None = None
        self._used: dict[str, int] = {}
        self._lenders: list[Lender] = []
        self._waiting: dict[str, dict[Lender, Callable[[], None]]] = {}

    def set_limits(self, limits: Mapping[str, int | None], default: int | None) -> None:
        """Let owners have so much from now on, and all others `default`; what is over it goes, or waits for its end."""
        self._limits, self._default = dict(limits), default
        for owner in tuple(self._used):
            self._trim(owner)
        for owner in tuple(self._waiting):
            self.eased(owner)
        for lender in self._lenders:
            lender.limits_changed()

    def limit(self, owner: str) -> int | None:
        """What `owner` may have; None: as much as there is."""
        return self._limits.get(owner, self._default) if owner != NODE else None

    def used(self, owner: str) -> int:
        """What `owner` has, held and cached."""
        return self._used.get(owner, 0)

    def join(self, lender: Lender) -> None:
        """One more model counts here."""
        self._lenders.append(lender)

    def leave(self, lender: Lender, owned: Mapping[str, int]) -> None:
        """A model is gone, and with it the bytes that it held for its owners."""
        if lender not in self._lenders:
            return
        self._lenders.remove(lender)
        for waiting in self._waiting.values():
            waiting.pop(lender, None)
        for owner, size in owned.items():
            self.give_back(owner, size)
            self.eased(owner)

    def take(self, owner: str, size: int) -> None:
        """A page of so many bytes is on this account."""
        self._used[owner] = self._used.get(owner, 0) + size

    def give_back(self, owner: str, size: int) -> None:
        """It is not any more."""
        left = self._used.get(owner, 0) - size
        if left > 0:
            self._used[owner] = left
        else:
            self._used.pop(owner, None)

    def excess(self, owner: str, more: int = 0) -> int:
        """By how many bytes `owner` would be over its limit, had it taken `more`."""
        limit = self.limit(owner)
        return 0 if limit is None else max(0, self._used.get(owner, 0) + more - limit)

    def idle(self, owner: str, asking: Lender) -> int:
        """How many bytes the other models have only cached for `owner`."""
        return sum(lender.idle_bytes(owner) for lender in self._lenders if lender is not asking)

    def reclaim(self, owner: str, size: int, asking: Lender) -> None:
        """Have the other models forget so many bytes of what they have cached for `owner`."""
        for lender in self._lenders:
            if size > 0 and lender is not asking:
                size -= lender.evict_bytes(owner, size)

    def wait(self, owner: str, lender: Lender, told: Callable[[], None]) -> None:
        """Have `told` called once, when `owner` may have room again."""
        self._waiting.setdefault(owner, {})[lender] = told

    def eased(self, owner: str) -> None:
        """Something of `owner` was let go: who waits for it looks again."""
        for told in self._waiting.pop(owner, {}).values():
            told()

    def _trim(self, owner: str) -> None:
        for lender in self._lenders:
            over = self.excess(owner)
            if over:
                lender.evict_bytes(owner, over)
