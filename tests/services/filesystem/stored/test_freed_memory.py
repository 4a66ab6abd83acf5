"""Pieces that come and go are not asked of the system each time."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from services.filesystem.stored.freed_memory import SETTINGS

SCRIPT = """
import resource
from services.filesystem.stored.freed_memory import keep_freed_memory
print(keep_freed_memory())
def turn():
    pieces = [bytes([number]) * (1 << 20) for number in range(8)]
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 20 * 8 * (1 << 20) // os.sysconf("SC_PAGE_SIZE")

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")


def told(**environment: str) -> tuple[bool, int]:
    """Whether it was set, and how many pages the system had to give."""
    usual = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=usual | environment, capture_output=True, text=True, check=True
    )
    is_set, pages = done.stdout.split()
    return is_set == "True", int(pages)


def test_what_was_freed_is_used_again_without_asking_the_system():
    is_set, pages = told()
    assert is_set
    assert pages < PAGES // 10


def test_what_the_environment_says_holds():
    is_set, pages = told(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert not is_set
    assert pages > PAGES // 2
