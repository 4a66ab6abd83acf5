"""How throughput and the gaps between tokens go with the number of streams: a table, and a picture of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.engine.columns import columns
from benchmarks.engine.contenders import llama, llama_as_q4_0, ours, rounds_of
from benchmarks.engine.line import Group, Line, Taken
from benchmarks.engine.stage import Stage
from benchmarks.engine.tasks import Curve, p50_gap, p99_gap, rate_together
from benchmarks.first_token.contender import Contender
from benchmarks.first_token.measures import Task
from benchmarks.measure import Measure
from benchmarks.plot import Curve as Drawn
from benchmarks.plot import Panel, draw
from benchmarks.spread import Spread
from benchmarks.table import Row

__all__ = ["GROUP", "NAME", "picture"]

NAME = "streams"
COUNTS = (1, 2, 4, 8, 16, 32)
TOKENS = 96  # all 32 are to decode together for a while, whoever was read last

STREAMS = {count: "1 stream" if count == 1 else f"{count} streams" for count in COUNTS}
RATE = {count: Measure(name, "tokens/s", less_is_better=False) for count, name in STREAMS.items()}
P50 = {count: Measure(f"{name}, gap p50", "ms", scale=1e3) for count, name in STREAMS.items()}
P99 = {count: Measure(f"{name}, gap p99", "ms", scale=1e3) for count, name in STREAMS.items()}


def picture(taken: Taken, title: str) -> str:
    """The curves of all who took part, as SVG."""
    found = _found(taken.rows(GROUP.lines[0]))

    def points(name: str, measures: dict[int, Measure]) -> list[tuple[float, float]]:
        return [(count, found[name, measure].median) for count, measure in measures.items() if (name, measure) in found]

    names = list(dict.fromkeys(name for name, _ in found))
    return draw(
        title,
        [
            Panel(
                "tokens a second, all streams",
                "streams",
                [Drawn(name, each, place) for place, name in enumerate(names) if (each := points(name, RATE))],
            ),
            Panel(
                "ms from token to token: p50, and p99 dashed",
                "streams",
                [
                    Drawn(name, each, place, dashed=dashed)
                    for place, name in enumerate(names)
                    for dashed, measures in ((False, P50), (True, P99))
                    if (each := points(name, measures))
                ],
            ),
        ],
    )


def _take(stage: Stage, _: Sequence[Line]) -> Taken:
    contenders: list[Contender] = [
        ours(stage, stage.model, slots=max(COUNTS)),
        llama(stage, stage.model),
        *llama_as_q4_0(stage),
    ]
    return rounds_of(stage, contenders, lambda: [_task(stage, count) for count in COUNTS])


def _task(stage: Stage, count: int) -> Task:
    prompts = stage.prompts
    more: dict[Measure, Callable[..., float]] = {P50[count]: p50_gap, P99[count]: p99_gap}
    tokens = 12 if stage.quick else TOKENS
    return Curve(RATE[count], [prompts.short(count)], [prompts.short(count)], tokens, rate_together, more)


def _show(rows: Sequence[Row]) -> str:
    """A line for each number of streams, three columns for each contender."""
    found = _found(rows)
    names = list(dict.fromkeys(row.contender for row in rows))
    heads = [("streams", *(cell for name in names for cell in (name, "p50 ms", "p99 ms")))]
    lines = [
        (
            str(count),
            *(_shown(found.get((name, measures[count]))) for name in names for measures in (RATE, P50, P99)),
        )
        for count in COUNTS
    ]
    return columns(heads + lines, left=(0,))


def _found(rows: Sequence[Row]) -> dict[tuple[str, Measure], Spread]:
    return {(row.contender, row.measure): row.value for row in rows}


def _shown(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:,.0f}" if spread.median >= 100 else f"{spread.median:.3g}"


GROUP = Group(
    "throughput and gaps between tokens by the number of streams",
    (
        Line(
            name=NAME,
            measures=tuple(each[count] for count in COUNTS for each in (RATE, P50, P99)),
            show=_show,
        ),
    ),
    _take,
)
