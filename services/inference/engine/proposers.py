"""Speculative decoding (https://arxiv.org/abs/2211.17192): who guesses what follows; hot: once a step.

Guesses never change a text: the engine computes them as if they were prompt, chooses each token as it would have
anyway, and goes on only as far as what was chosen is what was guessed.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Protocol
from weakref import WeakKeyDictionary

from services.inference.engine.sequence import Sequence

__all__ = ["PromptLookup", "Proposer"]


class Proposer(Protocol):
    """Guesses what may follow."""

    def propose(self, asked: Several[tuple[Sequence, int]]) -> list[list[int]]:
        """For each sequence up to so many tokens that may come next; none where it has no idea."""
        ...

    @property
    def resident_bytes(self) -> int:
        """What it takes on the device."""
        ...

    def give_back(self) -> None:
        """Give memory that it has no use for now back to the system."""
        ...


class PromptLookup:
    """What followed the last three tokens when they stood in prompt or answer before follows again.

    https://github.com/apoorvumang/prompt-lookup-decoding: summaries, code and tables repeat what they are about.
    """

    def __init__(self) -> None:
        self._indexes: WeakKeyDictionary[Sequence, _Index] = WeakKeyDictionary()

    def propose(self, asked: Several[tuple[Sequence, int]]) -> list[list[int]]:
        """As `Proposer` says."""
        return [self._indexes.setdefault(sequence, _Index()).find(sequence.tokens, most) for sequence, most in asked]

    @property
    def resident_bytes(self) -> int:
        """Nothing worth counting."""
        return 0

    def give_back(self) -> None:
        """There is nothing to give."""


class _Index:
    """Where each run of three tokens of one sequence stood last."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, int, int], int] = {}  # the place behind it
        self._known = 3  # runs that end before this place are known

    def find(self, tokens: list[int], most: int) -> list[int]:
        """Up to `most` tokens that followed what `tokens` ends with."""
        for place in range(self._known, len(tokens)):  # the run at the end has nothing behind it yet
            self._after[tokens[place - 3], tokens[place - 2], tokens[place - 1]] = place
        self._known = max(3, len(tokens))
        if len(tokens) < 3:
            return []
        found = self._after.get((tokens[-3], tokens[-2], tokens[-1]))
        return [] if found is None else tokens[found : found + most]
