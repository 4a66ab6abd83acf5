"""The table: what was found, against whom, and whether it is what it was to be; misses as plain as hits."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.engine.columns import columns
from benchmarks.engine.line import Goal, Line
from benchmarks.measure import Measure
from benchmarks.spread import Spread
from benchmarks.table import Row

__all__ = ["Finding", "findings", "render"]

HEAD = ("", "unit", "ours", "against", "theirs", "ratio", "low..high", "goal", "")
WORDS = {True: "met", False: "MISSED", None: ""}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One number of ours, or how many times better it is than a peer's. `met` is None where there is no goal."""

    measure: Measure
    ours: Spread
    against: str | None = None
    theirs: Spread | None = None
    ratio: Spread | None = None
    goal: str = ""
    met: bool | None = None


def findings(line: Line, rows: Sequence[Row], ours: str) -> list[Finding]:
    """Of all measures that were taken: against each peer that was there, or ours alone.

    A goal is judged by the median. A measure with a goal of its own has a finding for that beside those for peers.
    """
    found = []
    for measure in line.measures:
        mine = next((row.value for row in rows if (row.measure, row.contender) == (measure, ours)), None)
        if mine is None:
            continue
        goals = {goal.against: goal for goal in line.goals if goal.key == measure.name}
        peers = [row for row in rows if row.measure == measure and row.ratio is not None]
        if None in goals or not peers:
            found.append(_alone(measure, mine, goals.get(None)))
        found += [_against(mine, row, goals.get(row.contender)) for row in peers]
    return found


def render(found: Sequence[Finding]) -> str:
    """For people: a line for each; what it is about and ours only where they change."""
    lines = [HEAD]
    shown: Measure | None = None
    for each in found:
        fresh = each.measure != shown
        shown = each.measure
        spread = each.ours if each.ratio is None else each.ratio
        lines.append(
            (
                each.measure.name if fresh else "",
                each.measure.unit if fresh else "",
                _number(each.ours.median) if fresh else "",
                each.against or "",
                "" if each.theirs is None else _number(each.theirs.median),
                "" if each.ratio is None else f"{each.ratio.median:.2f}x",
                "" if spread.count == 1 else f"[{_number(spread.low)}..{_number(spread.high)}]",
                each.goal,
                WORDS[each.met],
            )
        )
    return columns(lines, left=(0, 1, 3))


def _alone(measure: Measure, mine: Spread, goal: Goal | None) -> Finding:
    if goal is None:
        return Finding(measure=measure, ours=mine)
    met = mine.median < goal.bound if measure.less_is_better else mine.median > goal.bound
    return Finding(
        measure=measure,
        ours=mine,
        goal=f"{'below' if measure.less_is_better else 'above'} {goal.bound:g}",
        met=met,
    )


def _against(mine: Spread, row: Row, goal: Goal | None) -> Finding:
    assert row.ratio is not None
    return Finding(
        measure=row.measure,
        ours=mine,
        against=row.contender,
        theirs=row.value,
        ratio=row.ratio,
        goal="" if goal is None else f"{goal.bound:g}x",
        met=None if goal is None else row.ratio.median >= goal.bound,
    )


def _number(value: float) -> str:
    """Three digits that mean something, and no more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
