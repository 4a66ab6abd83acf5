"""How far a preparation is, told at most twice a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Progress", "Report", "Told"]

BETWEEN = 0.5  # seconds between two reports


class Progress(NamedTuple):
    """How far a preparation is: `done` of `total` bytes, counting each file twice, and what came of them so far."""

    file: str
    done: int
    total: int
    documents: int
    tokens: int


Report = Callable[[Progress], None]


class Told:
    """What was read and written so far, told to `report` now and then."""

    def __init__(self, report: Report | None, total: int) -> None:
        self._total = total
        self._report = report
        self._before = 0  # bytes of the files that were read to their end
        self._here = 0
        self._file = ""
        self._documents = 0
        self._tokens = 0
        self._last = time.monotonic()

    def at(self, file: str) -> Callable[[int], None]:
        """Another file is read; returns what is called with how many of its bytes were."""
        self._before += self._here
        self._here = 0
        self._file = file

        def taken(size: int) -> None:
            self._here = size
            now = time.monotonic()
            if self._report is not None and now - self._last >= BETWEEN:
                self._last = now
                self._tell(self._report)

        return taken

    def wrote(self, tokens: int) -> None:
        """One more document."""
        self._documents += 1
        self._tokens += tokens

    def finish(self) -> None:
        """All is done."""
        if self._report is not None:
            self._before, self._here = self._total, 0
            self._tell(self._report)

    def _tell(self, report: Report) -> None:
        report(Progress(self._file, self._before + self._here, self._total, self._documents, self._tokens))
