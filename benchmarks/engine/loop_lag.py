"""How late the loop of a node is while both cores compute: a beat of 5 ms on it, with eight streams over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine import lag_service
from benchmarks.engine.contenders import taking_part
from benchmarks.engine.line import Goal, Group, Line, Taken
from benchmarks.engine.stage import Stage
from benchmarks.first_token.node import Node
from benchmarks.measure import Measure, Round
from microkernel.wire.client import connect_sync

__all__ = ["GROUP"]

STREAMS = 8
TOKENS = 128

P99 = Measure("loop lag of a node p99, 8 streams", "ms", scale=1e3)
MOST = Measure("loop lag of a node max, 8 streams", "ms", scale=1e3)


def _take(stage: Stage, _: Sequence[Line]) -> Taken:
    root = stage.folder("lag")
    node = Node(stage.model, root, service=Path(lag_service.__file__))
    taken = taking_part([node])
    tokens = 24 if stage.quick else TOKENS

    def one(number: int) -> Round:
        stage.tell(f"round {number + 1}: loop lag")
        running = node.start(stage.prompts.short()[0])
        try:
            running.generate(stage.prompts.short(STREAMS), 4)
            with connect_sync(root=root) as system:
                system.call("lag.begin")
                running.generate(stage.prompts.short(STREAMS), tokens)
                late = system.call("lag.end", result_type=lag_service.Late)
        finally:
            running.close()
        stage.tell(f"  {node.name}: p99 {late.p99 * 1e3:.3g} ms, max {late.max * 1e3:.3g} ms")
        return {node.name: {P99.name: late.p99, MOST.name: late.max}}

    taken.rounds = stage.repeat(one)
    return taken


GROUP = Group(
    "the loop of a node while it computes on all cores",
    (Line(name="lag", measures=(P99, MOST), goals=(Goal(P99.name, 20.0),)),),
    _take,
)
