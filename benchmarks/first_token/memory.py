"""What a process and those below it hold.

PSS is not used: contenders of a round live side by side, and a library that two of them map would count half for each.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from benchmarks.first_token.contender import Memory

__all__ = ["memory_of"]


def memory_of(pid: int) -> Memory:
    """On Linux the kernel's own high-water mark; elsewhere what is resident now."""
    peak, private, told = 0, 0, True
    process = psutil.Process(pid)
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):  # it has just ended
            status = _linux_status(each.pid)
            told = told and status is not None
            peak += status["VmHWM"] if status else each.memory_info().rss
            private += status["RssAnon"] if status else 0
    return Memory(peak, private if told else None)


def _linux_status(pid: int) -> dict[str, int] | None:
    if not Path("/proc/self/status").exists():
        return None
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if words[-1:] == ["kB"]}
