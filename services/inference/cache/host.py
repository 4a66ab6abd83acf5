"""Pages in the machine's memory, by content key: what a device's cache forgets comes back without being computed again.

A tier below the pages of a device with memory of its own. Copies are asked of the device's one stream, so they are done
in the order in which they are asked for: a page may be written again as soon as `keep` has returned, and read as soon
as `lift` has, and nobody waits. That needs pinned memory, which is taken in slabs as it is needed: pinning takes its
time, and all of it at once would hold up everybody.

The cache forgets the end of a prefix before its beginning, and so do we: least recently used first, where a prefix that
was found is used from its end to its beginning. What is left of it can be found from its first page on.
Plain class for one thread, the device's.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from microkernel.errors import Invalid

__all__ = ["HostTier", "Lowers"]

SLAB = 64 << 20  # bytes that are taken at once; torch rounds what is pinned up to a power of two

_log = logging.getLogger("microkernel.inference")


@runtime_checkable
class Lowers(Protocol):
    """Pages of a device that can be copied to the machine's memory and back."""

    @property
    def page_bytes(self) -> int:
        """What one page takes."""
        ...

    def lower(self, page: int, into: torch.Tensor) -> None:
        """Ask for a copy of a page in `into`, `page_bytes` as uint8 on the CPU."""
        ...

    def lift(self, page: int, source: torch.Tensor) -> None:
        """Ask for what `lower` gave to be copied back, over any page."""
        ...


class HostTier:
    """Up to `limit_bytes` of pages of one storage."""

    def __init__(self, storage: Lowers, limit_bytes: int, *, pinned: bool) -> None:
        """Empty; memory is taken when it is needed, and then kept. `pinned` for storages on CUDA devices."""
        if limit_bytes < 0:
            raise Invalid(f"{limit_bytes} bytes are no limit", field="limit_bytes", remedy="0 keeps nothing")
        self._storage = storage
        self._pinned = pinned
        self._room = limit_bytes // storage.page_bytes  # pages that there may be
        self._step = max(1, SLAB // storage.page_bytes)
        self._taken = 0
        self._free: list[torch.Tensor] = []
        self._places: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # by key, last used last

    @property
    def count(self) -> int:
        """How many pages are kept."""
        return len(self._places)

    @property
    def nbytes(self) -> int:
        """Memory that was taken so far."""
        return self._taken * self._storage.page_bytes

    def keep(self, key: bytes, page: int) -> None:
        """Keep a page's content, in the place of what was used longest ago where there is no room."""
        if key in self._places:
            self._places.move_to_end(key)  # equal keys, equal content
            return
        place = self._place()
        if place is not None:
            self._storage.lower(page, place)
            self._places[key] = place

    def find(self, keys: Sequence[bytes]) -> int:
        """How many of `keys`, from the first on, are here without a gap."""
        for index, key in enumerate(keys):
            if key not in self._places:
                return index
        return len(keys)

    def lift(self, keys: Sequence[bytes], pages: Sequence[int]) -> None:
        """Write what was found to `pages` of the device; it stays here too, so that forgetting it again is free."""
        for key, page in zip(keys, pages, strict=True):
            self._storage.lift(page, self._places[key])
        for key in reversed(keys):
            self._places.move_to_end(key)

    def forget(self) -> None:
        """Keep nothing that is here now."""
        self._free += self._places.values()
        self._places.clear()

    def _place(self) -> torch.Tensor | None:
        if not self._free and self._taken < self._room:
            self._take(min(self._step, self._room - self._taken))
        if self._free:
            return self._free.pop()
        return self._places.popitem(last=False)[1] if self._places else None

    def _take(self, pages: int) -> None:
        """Take memory for so many pages; where that is refused, what there is has to do."""
        try:
            with torch.inference_mode(mode=False):
                slab = torch.empty(pages, self._storage.page_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        except (RuntimeError, MemoryError) as error:
            _log.warning("no more than %d bytes of pages are kept in the machine's memory: %s", self.nbytes, error)
            self._room = self._taken
            return
        self._taken += pages
        self._free += slab.unbind()
