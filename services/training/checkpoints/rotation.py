"""Which checkpoints are kept: the newest ones, and the best by the loss of its evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from services.training.checkpoints.facts import EVALUATION_LOSS
from services.training.checkpoints.scan import Checkpoint

__all__ = ["best", "superfluous"]


def best(complete: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one of the least evaluation loss, of equal ones the newest; None where none was evaluated."""
    measured = [each for each in complete if EVALUATION_LOSS in each.manifest.facts.metrics]
    return min(measured, key=lambda each: (each.manifest.facts.metrics[EVALUATION_LOSS], -each.number), default=None)


def superfluous(complete: Sequence[Checkpoint], keep: int) -> list[int]:
    """The numbers of those that may go, of complete ones with the newest first; `keep` is at least 1."""
    kept = {each.number for each in complete[: max(1, keep)]}
    chosen = best(complete)
    if chosen is not None:
        kept.add(chosen.number)
    return [each.number for each in complete if each.number not in kept]
