"""The records that could not be read: named and left out, up to a limit."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from microkernel.errors import Invalid

__all__ = ["BadRecord", "BadRecords"]

NAMED = 100  # are kept by name; what is wrong with so many is wrong with all
SHOWN = 5  # are named in an error


class BadRecord(msgspec.Struct, frozen=True):
    """One of them: its file, its place there ("line 3"), and why, in words that follow its place."""

    file: str
    place: str
    why: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place} {self.why}"


class BadRecords:
    """Counts them, and says when there are too many."""

    def __init__(self, allowed: int, count: int = 0, named: Iterable[BadRecord] = ()) -> None:
        self.count = count
        self.named = list(named)
        self._allowed = allowed

    def add(self, bad: BadRecord) -> None:
        """One more. Raises `Invalid` that names the first few where that is one too many."""
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(bad)
        self.check()

    def check(self) -> None:
        """Raises `Invalid` where there are too many."""
        if self.count > self._allowed:
            first = "; ".join(map(str, self.named[:SHOWN]))
            more = f"; and {self.count - SHOWN} more" if self.count > SHOWN else ""
            raise Invalid(
                f"{self.count} records cannot be taken, and data.bad_records allows {self._allowed}: {first}{more}",
                field="data.bad_records",
                remedy="mend them, or raise data.bad_records",
            )
