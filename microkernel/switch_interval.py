"""How often Python's threads take turns, while some of them compute."""

from __future__ import annotations

import sys

__all__ = ["switch_interval"]

SHORT = 0.001  # seconds; Python's 5 ms would let a thread in Python code delay the loop by that much


class _SwitchInterval:
    """How often Python's threads take turns: shortened from the first executor's start to the last one's end."""

    def __init__(self) -> None:
        self._executors: set[object] = set()
        self._usual = 0.0

    def shorten(self, executor: object) -> None:
        if not self._executors:
            self._usual = sys.getswitchinterval()
            sys.setswitchinterval(min(self._usual, SHORT))
        self._executors.add(executor)

    def restore(self, executor: object) -> None:
        if executor not in self._executors:
            return
        self._executors.remove(executor)
        if not self._executors:
            sys.setswitchinterval(self._usual)


switch_interval = _SwitchInterval()  # of the process, as is what it sets
