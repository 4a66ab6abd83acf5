"""Main memory that is given back to the system in parts, while the rest of its mapping stays in use.

What is given back reads as zero and takes memory again when it is written (`man 2 madvise`, MADV_DONTNEED). Neighbours
are given back in one piece: huge pages go as a whole where all that they hold is free; of others the kernel takes the
parts back when it looks for memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from microkernel.errors import Internal

__all__ = ["ELASTIC", "give_back", "runs"]

ELASTIC = sys.platform == "linux"  # elsewhere the same call keeps the content, and may keep the memory
SYSTEM_PAGE = mmap.PAGESIZE


def give_back(start: int, size: int, pages: Sequence[int]) -> None:
    """Give back pages of `size` bytes of the memory at address `start`, by number; whole pages of the system only."""
    if not ELASTIC:
        return
    for first, behind in runs(sorted(pages)):
        low = -(-(start + first * size) // SYSTEM_PAGE) * SYSTEM_PAGE
        high = (start + behind * size) // SYSTEM_PAGE * SYSTEM_PAGE
        if low < high and _libc().madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), mmap.MADV_DONTNEED):
            number = ctypes.get_errno()
            raise Internal(f"the system did not take {high - low} bytes back: {os.strerror(number)}")


def runs(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges: the first, and the one behind the last."""
    first = behind = -1
    for page in pages:
        if page != behind:
            if first >= 0:
                yield first, behind
            first = page
        behind = page + 1
    if first >= 0:
        yield first, behind


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
