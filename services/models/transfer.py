"""One pull under way: what it tells of its progress, and how it hears that nobody wants it any more."""

from __future__ import annotations

import threading
from collections.abc import Callable

from microkernel.errors import CallCancelled

__all__ = ["Report", "Transfer"]

Report = Callable[[str, int, int | None], None]
"""Hears of stage, bytes done, and bytes in all (None while that is not known)."""


class Transfer:
    """The thread that pulls calls `tell` and `check`; any other thread may call `cancel`.

    `reserve_bytes` of free space are left alone on the disk that is written to.
    """

    def __init__(self, report: Report | None = None, *, reserve_bytes: int = 0) -> None:
        self.reserve_bytes = reserve_bytes
        self._report = report
        self._cancelled = threading.Event()

    def tell(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Report progress; cheap enough for every chunk as long as the report is."""
        if self._report is not None:
            self._report(stage, done, total)

    def check(self) -> None:
        """Raise `CallCancelled` once the pull was cancelled; called between any two chunks."""
        if self._cancelled.is_set():
            raise CallCancelled("the pull was cancelled")

    def pause(self, seconds: float) -> None:
        """Wait, but not after the pull was cancelled: then raise as `check` does."""
        self._cancelled.wait(seconds)
        self.check()

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the pull any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Make the pull end at its next check, a fraction of a second from now."""
        self._cancelled.set()
