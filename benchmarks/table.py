"""The table: a block for each measure, ours first, then the others with the ratio to it; losses as plain as wins."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.measure import Measure, Round
from benchmarks.spread import Spread, ratio, spread_of

__all__ = ["Row", "render", "rows_of"]

HEAD = ("", "median", "ratio", "quartiles", "range", "")


class Row(msgspec.Struct, frozen=True):
    """One contender in one measure. `ratio` says how many times better ours is; None for ours itself."""

    measure: Measure
    contender: str
    value: Spread
    ratio: Spread | None


def rows_of(rounds: Sequence[Round], measures: Sequence[Measure], ours: str, others: Sequence[str]) -> list[Row]:
    """All rows for which there are numbers. A ratio is made of two numbers of one round, never across rounds."""
    rows = []
    for measure in measures:
        for name in (ours, *others):
            values = [found[name][measure.name] for found in rounds if measure.name in found.get(name, {})]
            if not values:
                continue
            scaled = spread_of([value * measure.scale for value in values])
            rows.append(Row(measure, name, scaled, None if name == ours else _ratio(rounds, measure, ours, name)))
    return rows


def render(rows: Sequence[Row]) -> str:
    """For people, in columns."""
    lines: list[tuple[str, ...]] = [HEAD]
    shown: Measure | None = None
    for row in rows:
        if row.measure != shown:
            shown = row.measure
            lines += [(), (row.measure.name, row.measure.unit, "", "", "", "")]
        lines.append(_line(row))
    widths = [max(len(line[column]) for line in lines if line) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    )


def _ratio(rounds: Sequence[Round], measure: Measure, ours: str, theirs: str) -> Spread | None:
    pairs = [(found.get(ours, {}).get(measure.name), found.get(theirs, {}).get(measure.name)) for found in rounds]
    ratios = [
        ratio(mine, other, less_is_better=measure.less_is_better)
        for mine, other in pairs
        if mine is not None and other is not None
    ]
    return spread_of(ratios) if ratios else None


def _line(row: Row) -> tuple[str, ...]:
    name, value = f"  {row.contender}", _number(row.value.median)
    if row.ratio is None:
        return (name, value, "", "", "", "")
    spread = row.ratio
    if spread.count == 1:
        return (name, value, f"{spread.median:.2f}x", "", "", spread.verdict)
    quartiles = f"{spread.low:.2f}..{spread.high:.2f}"
    return (name, value, f"{spread.median:.2f}x", quartiles, f"{spread.least:.2f}..{spread.most:.2f}", spread.verdict)


def _number(value: float) -> str:
    """Three digits that mean something, and no more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
