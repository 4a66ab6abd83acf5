"""What the system costs: eight streams through the gateway of a node, against the engine in a plain loop."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.engine.contenders import ours, rounds_of
from benchmarks.engine.line import Goal, Group, Line, Taken
from benchmarks.engine.stage import Stage
from benchmarks.first_token.measures import Task, rate_of_all
from benchmarks.first_token.node import Node
from benchmarks.measure import Measure

__all__ = ["GROUP"]

STREAMS = 8
TOKENS = 128

# Prompts included: over HTTP it is text that has a time, and not tokens.
RATE = Measure("8 streams through the gateway, prompts included", "tokens/s", less_is_better=False)


def _take(stage: Stage, _: Sequence[Line]) -> Taken:
    node, bare = Node(stage.model, stage.folder("gateway")), ours(stage, stage.model)
    tokens = 24 if stage.quick else TOKENS

    def tasks() -> list[Task]:
        prompts = stage.prompts
        return [Task(RATE, [prompts.short(STREAMS)], [prompts.short(STREAMS)], tokens, rate_of_all)]

    return rounds_of(stage, [node, bare], tasks)


GROUP = Group(
    "a node asked over HTTP, against the engine in a plain loop",
    (Line(name="gateway", measures=(RATE,), goals=(Goal(RATE.name, 0.95, "engine alone"),)),),
    _take,
)
