"""Freed memory stays with the process, up to a limit: pieces of a MiB come and go a thousand times a second.

glibc gives such a piece back to the system when it is freed and asks for the next one, which the system clears and maps
page by page: it doubles what it takes to read a file that is in memory anyway. Elsewhere than on glibc nothing is done.
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["keep_freed_memory"]

KEPT = 32 << 20  # bytes that each arena of the allocator may hold without use
MAPPED = 32 << 20  # bytes from which on an allocation is mapped by itself: the most that glibc takes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Set it for the process; False where the environment has set it, or where the C library is another one."""
    if any(name in os.environ for name in SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    mapped: int = library.mallopt(M_MMAP_THRESHOLD, MAPPED)
    kept: int = library.mallopt(M_TRIM_THRESHOLD, KEPT)
    return bool(mapped and kept)
