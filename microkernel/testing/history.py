"""What happened in a simulation, in order: for the digest that proves a replay, and for whoever reads a failure."""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any

__all__ = ["History"]

KEPT = 5_000  # lines; the digest is of all


class History:
    """Lines with the virtual time; the last 5,000 are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._closed = False
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._digest = hashlib.blake2b(digest_size=16)

    def note(self, now: float, what: str, **details: Any) -> None:
        """Add a line, unless it is closed."""
        if self._closed:
            return
        line = f"{now:10.6f} {what}" + "".join(f" {name}={value}" for name, value in details.items())
        self.count += 1
        self._lines.append(line)
        self._digest.update(line.encode(errors="replace"))

    def close(self) -> None:
        """Take no more lines: the run has failed, and what is cleared away is no part of it."""
        self._closed = True

    @property
    def digest(self) -> str:
        """The same for the same lines."""
        return self._digest.hexdigest()

    def last(self, number: int) -> list[str]:
        """The newest `number` of the lines that are kept."""
        return list(self._lines)[-number:]
