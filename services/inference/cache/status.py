"""What a cache says of its pages."""

from __future__ import annotations

import msgspec

__all__ = ["OwnerStatus", "Status"]


class OwnerStatus(msgspec.Struct, frozen=True):
    """One owner's pages, and tokens of its prompts that were found (`hits`) or not (`misses`)."""

    used: int
    quota: int | None
    hits: int
    misses: int


class Status(msgspec.Struct, frozen=True):
    """Pages by what they are: free, cached, held. The rest is counted since the start."""

    pages: int
    free: int
    cached: int  # in the tree, and in no table
    evictable: int  # those of the cached that are not pinned, nor before a page that is
    held: int  # in a table
    resident: int  # with memory of the system: cached, held, and free ones that were not given back
    hits: int
    misses: int
    evictions: int
    owners: dict[str, OwnerStatus]
