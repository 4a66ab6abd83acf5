"""The curve of a training job as an SVG picture (https://www.w3.org/TR/SVG2): losses, held-out losses, and events.

Its ground is transparent and its greys are readable on white and on black, so that it fits any page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

__all__ = ["curve_svg", "ticks"]

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 56, 48  # pixels around the axes
LINE = 18  # pixels of a line of text
SPAN = 24  # the smoothed curve follows about a 24th of all steps
MOST_EVENTS = 8  # that are told below the picture; all are marked
LARGEST = 1e9  # a loss above it says nothing more than that
SAME = 1e-9  # parts of a number by which another one is not told from it
CUT = 110  # characters of one of them
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #808791; }
.title { font-size: 15px; font-weight: 600; }
.grid { stroke: #808791; stroke-opacity: .25; }
.axis { stroke: #808791; }
.loss { fill: none; stroke: #3b8eea; stroke-opacity: .35; }
.mean { fill: none; stroke: #3b8eea; stroke-width: 2; }
.held { fill: none; stroke: #e08a1e; stroke-width: 2; }
.dot { fill: #e08a1e; }
.event { stroke: #d9534f; stroke-dasharray: 4 3; }
.mark { fill: #d9534f; text-anchor: middle; }
"""


def curve_svg(title: str, points: Sequence[dict[str, Any]]) -> str:
    """A picture of `points`, those of `training.curve`; events are marked by numbers, and told below it."""
    losses = _pairs(points, "loss")
    held_out = _pairs(points, "evaluation_loss")
    events = [(int(point["step"]), str(point["event"])) for point in points if point["event"] is not None]
    steps = [step for step, _ in (*losses, *held_out, *events)] or [0]
    values = [value for _, value in (*losses, *held_out)] or [0.0]
    axes = _Axes(min(steps), max(steps), values)
    told = events[:MOST_EVENTS]
    height = HEIGHT + LINE * (len(told) + (len(events) > len(told)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>',
        *_legend(has_held_out=bool(held_out), has_events=bool(events)),
        *axes.drawn(),
        _line("loss", axes, losses),
        _line("mean", axes, _smoothed(losses)),
        _line("held", axes, held_out),
        *_dots(axes, held_out),
        *_events(axes, events),
    ]
    parts += [
        f'<text x="{LEFT}" y="{HEIGHT + LINE * place + 8}">{place + 1}  step {step}: {escape(_cut(event))}</text>'
        for place, (step, event) in enumerate(told)
    ]
    if len(events) > len(told):
        parts.append(
            f'<text x="{LEFT}" y="{HEIGHT + LINE * len(told) + 8}">and {len(events) - len(told)} more events</text>'
        )
    return "\n".join([*(part for part in parts if part), "</svg>", ""])


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """About `wanted` round numbers from the last one below `low` to the first one above `high`."""
    size = max(abs(low), abs(high))
    span = high - low if high - low > SAME * size and size > SAME else max(size, 1.0)
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * each for each in (1, 2, 5, 10) if span / (power * each) <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


class _Axes:
    """Where steps and losses are in the picture."""

    def __init__(self, first: int, last: int, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        self._ticks = ticks(
            0.0 if 0 < low < high / 2 else low, high
        )  # a curve that fell by half shows how near 0 it is
        self._low, self._high = self._ticks[0], self._ticks[-1]
        self._first, self._last = first, max(last, first + 1)

    def x(self, step: float) -> float:
        return LEFT + (step - self._first) / (self._last - self._first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self._high - value) / (self._high - self._low) * (HEIGHT - TOP - BOTTOM)

    def drawn(self) -> Iterable[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for value in self._ticks:
            y = self.y(value)
            yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        for step in ticks(self._first, self._last, 8):
            if step != int(step) or not self._first <= step <= self._last:
                continue
            x = self.x(step)
            yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>'
            yield f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{step:g}</text>'
        yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
        yield f'<text x="{right}" y="{bottom + 36}" text-anchor="end">step</text>'
        middle = (TOP + bottom) / 2
        turned = f'transform="rotate(-90 16 {middle:.0f})" text-anchor="middle"'
        yield f'<text {turned} x="16" y="{middle:.0f}">loss of a token</text>'


def _pairs(points: Sequence[dict[str, Any]], field: str) -> list[tuple[int, float]]:
    return [
        (int(point["step"]), float(point[field]))
        for point in points
        if point[field] is not None and abs(point[field]) <= LARGEST
    ]


def _smoothed(losses: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A mean that forgets, corrected for its beginning as Adam's are (https://arxiv.org/abs/1412.6980)."""
    if len(losses) < SPAN:
        return list(losses)
    keep = 1 - 1 / max(1.0, len(losses) / SPAN)
    mean, weight, found = 0.0, 0.0, []
    for step, loss in losses:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        found.append((step, mean / weight))
    return found


def _line(kind: str, axes: _Axes, pairs: Sequence[tuple[int, float]]) -> str:
    if len(pairs) < 2:
        return ""
    places = " ".join(f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in pairs)
    return f'<polyline class="{kind}" points="{places}"/>'


def _dots(axes: _Axes, pairs: Sequence[tuple[int, float]]) -> Iterable[str]:
    for step, value in pairs:
        place = f'cx="{axes.x(step):.1f}" cy="{axes.y(value):.1f}"'
        yield f'<circle class="dot" {place} r="3.5"><title>step {step}: {value:.4g} held out</title></circle>'


def _events(axes: _Axes, events: Sequence[tuple[int, str]]) -> Iterable[str]:
    for place, (step, event) in enumerate(events, 1):
        x = axes.x(step)
        yield f'<line class="event" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        yield (
            f'<text class="mark" x="{x:.1f}" y="{TOP - 4}">{place}<title>step {step}: {escape(event)}</title></text>'
        )


def _legend(*, has_held_out: bool, has_events: bool) -> Iterable[str]:
    entries = [("mean", "loss", True), ("held", "held out", has_held_out), ("event", "what happened", has_events)]
    x = WIDTH - RIGHT
    for kind, word, there in reversed(entries):
        if there:
            x -= 30 + 7 * len(word)
            yield f'<line class="{kind}" x1="{x}" x2="{x + 18}" y1="20" y2="20"/>'
            yield f'<text x="{x + 23}" y="24">{word}</text>'


def _cut(text: str) -> str:
    return text if len(text) <= CUT else text[: CUT - 1] + "…"
