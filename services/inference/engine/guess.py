"""How far ahead it is worth to guess for one sequence, from how its last guesses went; hot: once a step."""

from __future__ import annotations

__all__ = ["Guess"]

FIRST = 4  # tokens guessed at first
MOST = 8  # tokens guessed at the most
LONGEST_REST = 64  # steps


class Guess:
    """Guesses more after a guess that was all right, less after one that was all wrong, and rests after several."""

    __slots__ = ("_misses", "_rest", "width")

    def __init__(self) -> None:
        self.width = FIRST
        self._misses = 0
        self._rest = 0

    def wanted(self) -> int:
        """How many tokens to guess in this step; 0 while it rests."""
        if self._rest > 0:
            self._rest -= 1
            return 0
        return self.width

    def note(self, guessed: int, right: int) -> None:
        """Of so many tokens that were guessed, the first `right` came."""
        if right == guessed:
            self.width = min(MOST, 2 * self.width)
        elif right == 0:
            self.width = max(1, self.width // 2)
        self._misses = self._misses + 1 if right == 0 else 0
        self._rest = min(LONGEST_REST, 1 << self._misses) - 1 if self._misses > 1 else 0
