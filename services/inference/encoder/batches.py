"""Which texts are computed together: those of about the same length, with so many tokens in all."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["plan_batches"]


def plan_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places of texts, by batches of at most `budget` tokens, the longest texts first; a longer text goes alone.

    >>> plan_batches([3, 9, 3, 2], 6)
    [[1], [0, 2], [3]]
    """
    batches: list[list[int]] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not batches or lengths[place] > room:
            batches.append([])
            room = budget
        batches[-1].append(place)
        room -= lengths[place]
    return batches
