"""Who has no part in a step because somebody more urgent waits for a first token; hot: once a step."""

from __future__ import annotations

from collections.abc import Iterable

from services.inference.engine.sequence import Sequence

__all__ = ["SAT_OUT", "SittingOut"]

SAT_OUT = 16  # steps in a row in which the less urgent may have no part


class SittingOut:
    """Lets the less urgent sit out while a prompt is read, or could be, and not for ever."""

    def __init__(self) -> None:
        self._steps = 0  # in a row

    def part(self, decoding: Iterable[Sequence], reading: Iterable[Sequence], urgency: int | None) -> list[Sequence]:
        """Those of `decoding` that have a part in this step; `urgency` is the rank of who waits for a place."""
        taking = list(decoding)
        ranks = [sequence.rank for sequence in reading]
        ranks += [] if urgency is None else [urgency]
        most = min(ranks, default=None)
        if most is None or all(sequence.rank <= most for sequence in taking):
            self._steps = 0
            return taking
        self._steps += 1
        if self._steps > SAT_OUT:
            self._steps = 0
            return taking
        return [sequence for sequence in taking if sequence.rank <= most]
