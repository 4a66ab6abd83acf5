"""Curves as SVG, drawn by hand: panels side by side, a legend below, readable on light paper and on dark.

The x axis doubles from tick to tick; the y axis begins at nought.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

import msgspec

__all__ = ["Curve", "Panel", "draw"]

WIDTH, HEIGHT = 400, 260  # of a panel's plane
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 64, 48  # around it
LEGEND = 22  # a line
TICKS = 5  # at most, upwards

# Okabe and Ito's colours: told apart by those who see fewer, and on both grounds.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #222 }
.title { font-size: 16px; font-weight: 600 }
.small { font-size: 12px; fill: #555 }
.grid { stroke: #ddd }
.ground { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd }
  .small { fill: #aaa }
  .grid { stroke: #444 }
  .ground { fill: #161616 }
}"""


class Curve(msgspec.Struct, frozen=True):
    """Points in the order of x. Curves of one `place` share a name and a colour."""

    name: str
    points: list[tuple[float, float]]
    place: int
    dashed: bool = False


class Panel(msgspec.Struct, frozen=True):
    """One plane of curves."""

    title: str
    below: str
    curves: list[Curve]


def draw(title: str, panels: Sequence[Panel]) -> str:
    """The picture. Every panel has at least one curve with a point."""
    names = {curve.place: curve.name for panel in panels for curve in panel.curves}
    across = len(panels) * (LEFT + WIDTH + RIGHT)
    down = TOP + HEIGHT + BOTTOM + LEGEND * len(names) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" width="{across}" height="{down}" '
        f'role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{across}" height="{down}"/>',
        _text(LEFT, 24, title, "title"),
    ]
    for number, panel in enumerate(panels):
        lines += _panel(panel, number * (LEFT + WIDTH + RIGHT) + LEFT)
    for line, (place, name) in enumerate(sorted(names.items())):
        y = TOP + HEIGHT + BOTTOM + LEGEND * line + 8
        lines += [f'<path d="M{LEFT} {y - 4}h24" {_stroke(place)}/>', _text(LEFT + 32, y, name)]
    return "\n".join([*lines, "</svg>", ""])


def _panel(panel: Panel, left: int) -> Iterator[str]:
    points = [point for curve in panel.curves for point in curve.points]
    first, last = math.log2(min(x for x, _ in points)), math.log2(max(x for x, _ in points))
    step = _step(max(y for _, y in points))
    most = step * math.ceil(max(y for _, y in points) / step) or step

    def across(x: float) -> float:
        return left + (WIDTH * (math.log2(x) - first) / (last - first) if last > first else WIDTH / 2)

    def up(y: float) -> float:
        return TOP + HEIGHT * (1 - y / most)

    yield _text(left, TOP - 14, panel.title)
    for tick in range(round(most / step) + 1):
        y = up(tick * step)
        yield f'<path class="grid" d="M{left} {y:.1f}h{WIDTH}"/>'
        yield _text(left - 8, y + 4, f"{tick * step:,.10g}", "small", anchor="end")
    for x in sorted({x for x, _ in points}):
        yield _text(across(x), TOP + HEIGHT + 18, f"{x:g}", "small", anchor="middle")
    yield _text(left + WIDTH / 2, TOP + HEIGHT + 36, panel.below, "small", anchor="middle")
    for curve in panel.curves:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve.points)
        yield f'<polyline points="{path}" {_stroke(curve.place, dashed=curve.dashed)}/>'
        for x, y in curve.points:
            yield f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{_colour(curve.place)}"/>'


def _step(most: float) -> float:
    """1, 2 or 5 times a power of ten, so that not more than `TICKS` of it reach `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most / TICKS))
    return next((power * each for each in (1, 2, 5) if power * each * TICKS >= most), power * 10)


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{name} text-anchor="{anchor}">{escape(text)}</text>'


def _stroke(place: int, *, dashed: bool = False) -> str:
    return f'stroke="{_colour(place)}" stroke-width="2" fill="none"' + (' stroke-dasharray="6 4"' if dashed else "")


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]
