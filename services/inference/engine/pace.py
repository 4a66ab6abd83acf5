"""How many tokens of prompts a step may read beside those that decode, so that nobody waits long; hot: once a step.

A step with a chunk of a prompt takes longer than one without, and all who decode wait for it. How much longer a token
makes it is learnt from the steps themselves: from those that only decode, and from what those with prompts took beyond.
Steps with guesses are neither. Sarathi (https://arxiv.org/abs/2308.16369) fixes the chunk by hand; here it follows the
machine and its load. A plain class; it is told the times.
"""

from __future__ import annotations

__all__ = ["Pace"]

LEAST = 4  # tokens of prompts a step reads in any case: they must come to an end, too
LEAST_ALONE = 0.2  # of a step with a prompt, the share that those who decode are taken to need at least
NEWEST = 0.2  # weight of the newest measurement


class Pace:
    """Keeps steps with prompts below `slowdown` times what they would take without."""

    def __init__(self, slowdown: float) -> None:
        """`slowdown` is above 1."""
        self._slowdown = slowdown
        self._decoding: dict[int, float] = {}  # seconds of a step that only decodes, by how many do, in powers of two
        self._beside = 0.0  # seconds that a token of a prompt adds to a step in which others decode
        self._apart = 0.0  # the same where nobody does: what there is to go by until some have

    def budget(self, decoding: int, most: int, *, waiting: int = 1) -> int:
        """How many tokens of prompts may go into a step in which so many decode; the whole is `most` at the most.

        `waiting` have a prompt to be read. Who waits for a first token counts as who waits for the next one, so beside
        one prompt the step may take `slowdown` times as long, and each further one lets it take longer by its part.
        """
        left = max(1, most - decoding)
        if decoding == 0:
            return left
        alone, token = self._decoding.get(decoding.bit_length()), self._beside or self._apart
        if alone is None or token == 0.0:
            return min(left, LEAST)
        longer = (self._slowdown - 1.0) * alone * (decoding + max(1, waiting) - 1) / decoding
        return min(left, max(LEAST, int(longer / token)))

    def note(self, decoding: int, reading: int, seconds: float) -> None:
        """A step in which so many decoded and so many tokens of prompts were read took so long."""
        size = decoding.bit_length()
        alone = self._decoding.get(size)
        if decoding == 0:
            self._apart = _follow(self._apart, seconds / reading)
        elif reading == 0:
            self._decoding[size] = _follow(alone or 0.0, seconds)
        elif alone is None:  # a guess, until a step has come in which they only decode
            self._decoding[size] = max(seconds - reading * self._apart, LEAST_ALONE * seconds)
        elif seconds > alone:
            self._beside = _follow(self._beside, (seconds - alone) / reading)


def _follow(known: float, measured: float) -> float:
    return measured if known == 0.0 else known + NEWEST * (measured - known)
