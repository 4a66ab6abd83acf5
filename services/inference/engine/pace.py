"""How many tokens of prompts a step may read beside those that decode, so that nobody waits long; hot: once a step.

A step with a chunk of a prompt takes longer than one without, and all who decode wait for it. How long a step of so
many tokens takes is learnt from the steps themselves: a token that is decoded costs about as much as one of a prompt.
Steps with guesses are neither. Sarathi (https://arxiv.org/abs/2308.16369) fixes the chunk by hand; here it follows the
machine and its load. A plain class; it is told the times.
"""

from __future__ import annotations

__all__ = ["Pace"]

LEAST = 4  # tokens of prompts a step reads in any case: they must come to an end, too
NEWEST = 0.2  # weight of the newest measurement


class Pace:
    """Keeps steps with prompts below `slowdown` times what they would take without."""

    def __init__(self, slowdown: float) -> None:
        """`slowdown` is above 1."""
        self._slowdown = slowdown
        # Mean tokens and seconds of steps, by powers of two and whether there was a prompt.
        self._measured: dict[tuple[int, bool], tuple[float, float]] = {}

    def budget(self, decoding: int, most: int, *, waiting: int = 1) -> int:
        """How many tokens of prompts may go into a step in which so many decode; the whole is `most` at the most.

        `waiting` have a prompt to be read. Who waits for a first token counts as who waits for the next one, so beside
        one prompt the step may take `slowdown` times as long, and each further one lets it take longer by its part.
        """
        left = max(1, most - decoding)
        if decoding == 0:
            return left
        curve = self._curve()
        if not curve:
            return min(left, LEAST)
        alone = _seconds(curve, decoding)
        longer = (self._slowdown - 1.0) * alone * (decoding + max(1, waiting) - 1) / decoding
        return min(left, max(LEAST, int(_tokens(curve, alone + longer) - decoding)))

    def note(self, decoding: int, reading: int, seconds: float) -> None:
        """A step in which so many decoded and so many tokens of prompts were read took so long."""
        tokens = decoding + reading
        kind = (tokens.bit_length(), reading > 0)
        known = self._measured.get(kind)
        if known is None:
            self._measured[kind] = float(tokens), seconds
        else:
            self._measured[kind] = _follow(known[0], tokens), _follow(known[1], seconds)

    def _curve(self) -> list[tuple[float, float]]:
        """Tokens and seconds, rising: a step of more tokens never takes less, whatever disturbed the one that did."""
        curve: list[tuple[float, float]] = []
        longest = 0.0
        for tokens, seconds in sorted(self._measured.values()):
            longest = max(longest, seconds)
            if curve and tokens == curve[-1][0]:
                curve.pop()
            curve.append((tokens, longest))
        return curve


def _follow(known: float, measured: float) -> float:
    return known + NEWEST * (measured - known)


def _seconds(curve: list[tuple[float, float]], tokens: float) -> float:
    """How long a step of so many tokens takes: on the line through the measurements around it, or the first two.

    Behind the last it is in proportion to that, and nowhere is it less than in proportion to the next one.
    """
    place = next((place for place, (end, _) in enumerate(curve) if tokens <= end), len(curve) - 1)
    end, longest = curve[place]
    least = longest * tokens / end
    if tokens > end or len(curve) == 1:
        return least
    (first, before), (last, behind) = curve[max(0, place - 1) :][:2]
    return max(least, before + (behind - before) * (tokens - first) / (last - first))


def _tokens(curve: list[tuple[float, float]], seconds: float) -> float:
    """How many tokens a step has that takes so long; behind the last measurement, no more than twice as many."""
    before = beyond = (0.0, 0.0)
    for point in curve:
        if seconds < point[1]:
            return before[0] + (point[0] - before[0]) * (seconds - before[1]) / (point[1] - before[1])
        before, beyond = point, before
    more = (seconds - before[1]) * (before[0] - beyond[0])
    rise = before[1] - beyond[1]
    return before[0] + min(before[0], more / rise if rise else before[0])
