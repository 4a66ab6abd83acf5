"""A curve as lines of text, in braille: each character has 2 by 4 dots (https://www.unicode.org/charts/PDF/U2800.pdf)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

__all__ = ["LARGEST", "chart"]

BLANK = 0x2800
LARGEST = 1e9  # a loss above it, or that is no number, is left out
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row, then column, of a character


def chart(losses: Mapping[int, float], held_out: Mapping[int, float], width: int, height: int) -> list[str]:
    """`height` lines with a curve of `width` characters over the steps, and below them a line that says which steps.

    Losses are dots, several at a place their mean, with a line between places. What is held out is marked by `o`.
    The highest and the lowest value stand at the left; what is above `LARGEST` or no number is left out.
    """
    shown = {step: loss for step, loss in losses.items() if abs(loss) <= LARGEST}
    marked = {step: loss for step, loss in held_out.items() if abs(loss) <= LARGEST}
    if not shown and not marked:
        return []
    values, steps = [*shown.values(), *marked.values()], [*shown, *marked]
    low, high, first, last = min(values), max(values), min(steps), max(steps)

    def column(step: int, columns: int) -> int:
        return round((step - first) / max(1, last - first) * (columns - 1))

    def row(value: float, rows: int) -> int:
        return round((high - value) / ((high - low) or 1.0) * (rows - 1))

    cells = [[BLANK] * width for _ in range(height)]
    for place, value in _joined(_means(shown, lambda step: column(step, 2 * width))):
        down = row(value, 4 * height)
        cells[down // 4][place // 2] |= DOTS[down % 4][place % 2]
    drawn = [[chr(cell) if cell != BLANK else " " for cell in line] for line in cells]
    for step, value in marked.items():
        drawn[row(value, height)][column(step, width)] = "o"
    labels = {0: f"{high:.3g}", height - 1: f"{low:.3g}"}
    space = max(map(len, labels.values()))
    lines = [f"{labels.get(place, ''):>{space}} {''.join(line)}".rstrip() for place, line in enumerate(drawn)]
    ends = f"step {first}", f"{last}" + ("   o held out" if marked else "")
    return [*lines, f"{'':>{space}} {ends[0]:<{max(len(ends[0]) + 1, width - len(str(last)))}}{ends[1]}"]


def _joined(values: Mapping[int, float]) -> Iterator[tuple[int, float]]:
    """A value for each column between the first and the last one; those between two are on the line between them."""
    places = sorted(values)
    yield from ((place, values[place]) for place in places[:1])
    for left, right in pairwise(places):
        for place in range(left + 1, right + 1):
            share = (place - left) / (right - left)
            yield place, (1 - share) * values[left] + share * values[right]


def _means(values: Mapping[int, float], place: Callable[[int], int]) -> dict[int, float]:
    sums: dict[int, list[float]] = {}
    for step, value in values.items():
        sums.setdefault(place(step), []).append(value)
    return {at: sum(each) / len(each) for at, each in sums.items()}
