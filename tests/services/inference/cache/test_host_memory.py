"""Memory that is given back: really, and without a byte of what stays."""

from __future__ import annotations

import mmap
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.cache.host_memory import ELASTIC, give_back, runs

only_linux = pytest.mark.skipif(not ELASTIC, reason="only Linux takes parts of a mapping back")
HUGE = 2 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def resident(start: int) -> int:
    """Bytes of the mapping that begins at `start` that are in memory."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if line.split("-")[0] == f"{start:x}":
            inside = True
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no such mapping")


@given(st.sets(st.integers(0, 60)))
def test_runs_cover_the_pages_and_nothing_else_with_as_few_ranges_as_there_are_gaps(pages):
    found = list(runs(sorted(pages)))
    assert sorted(page for first, behind in found for page in range(first, behind)) == sorted(pages)
    assert all(behind < first for (_, behind), (first, _) in pairwise(found))


@only_linux
@given(pages=st.sets(st.integers(0, 15)), size=st.integers(1, 3 * mmap.PAGESIZE))
def test_what_is_given_back_is_zero_or_whole_and_what_stays_is_untouched(pages, size):
    memory = mmap.mmap(-1, 16 * size, flags=PRIVATE)
    values = np.frombuffer(memory, dtype=np.uint8)
    values[:] = 7
    give_back(values.ctypes.data, size, sorted(pages))
    for page in range(16):
        content = set(values[page * size : (page + 1) * size].tolist())
        assert content <= ({0, 7} if page in pages else {7})
    whole = [page for page in pages if page * size % mmap.PAGESIZE == 0 and size % mmap.PAGESIZE == 0]
    assert all(not values[page * size : (page + 1) * size].any() for page in whole)


@only_linux
def test_the_system_really_gets_the_memory():
    size, count = 90 * mmap.PAGESIZE, 64  # a page of the default model: no multiple of a huge one
    memory = mmap.mmap(-1, size * count + HUGE, flags=PRIVATE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    values = np.frombuffer(memory, dtype=np.uint8)
    start = values.ctypes.data
    values[: size * count] = 1
    before = resident(start)
    assert before >= size * count
    give_back(start, size, range(8, 56))
    assert before - resident(start) >= 48 * size
    assert values[8 * size : 56 * size].max() == 0
