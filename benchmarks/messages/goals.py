"""Whether a goal was met: what was aimed at, what was found, and the verdict, misses as plain as hits."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.messages.line import Goal, Line
from benchmarks.spread import Spread
from benchmarks.table import Row

__all__ = ["Outcome", "outcomes", "render_outcomes"]


class Outcome(msgspec.Struct, frozen=True):
    """One goal, judged by the median; `found` is None where nobody could be compared with."""

    measure: str
    goal: str
    found: Spread | None
    met: bool | None


def outcomes(line: Line, rows: Sequence[Row], ours: str) -> list[Outcome]:
    """All goals of `line`, judged by its rows; those against a contender that took no part are left open."""
    return [_outcome(line, goal, rows, ours) for goal in line.goals]


def render_outcomes(found: Sequence[Outcome]) -> str:
    """For people, a goal a line."""
    words = {True: "met", False: "MISSED", None: "open"}
    lines = [
        (each.measure, each.goal, "" if each.found is None else _shown(each.found), words[each.met]) for each in found
    ]
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _outcome(line: Line, goal: Goal, rows: Sequence[Row], ours: str) -> Outcome:
    measure = line.measures[goal.key]
    shown = next((row for row in rows if row.measure == measure and row.contender == (goal.against or ours)), None)
    if goal.against is None:
        spread = None if shown is None else shown.value
        better = "below" if measure.less_is_better else "above"
        met = None if spread is None else (spread.median < goal.bound) == measure.less_is_better
        return Outcome(measure.name, f"{better} {goal.bound:g} {measure.unit}", spread, met)
    spread = None if shown is None else shown.ratio
    met = None if spread is None else spread.median >= goal.bound
    return Outcome(measure.name, f"at least {goal.bound:.3g}x {goal.against}", spread, met)


def _shown(spread: Spread) -> str:
    if spread.count == 1:
        return f"{spread.median:.3g}"
    return f"{spread.median:.3g} ({spread.low:.3g}..{spread.high:.3g})"
