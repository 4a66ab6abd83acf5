"""How long running streams wait for their next token while somebody's long prompt is read."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from benchmarks.engine.contenders import ours, taking_part
from benchmarks.engine.line import Goal, Group, Line, Taken
from benchmarks.engine.stage import Stage
from benchmarks.engine.tasks import gaps_beside, gaps_together
from benchmarks.first_token.contender import Answer, Broken, Late
from benchmarks.measure import Measure, Round
from benchmarks.messages.stopwatch import P99, percentile

__all__ = ["GROUP", "with_and_without"]

STREAMS = 8
LENGTH = 2000  # of the prompt that comes
AFTER = 16  # tokens of each stream until it comes
# Of each stream: a step that may take twice as long reads some dozen tokens of the prompt, so it takes long enough.
TOKENS = 400

WITHOUT = Measure("gap between tokens p99, 8 streams", "ms", scale=1e3)
WITH = Measure("the same while a prompt of 2,000 tokens is read", "ms", scale=1e3)
TIMES = Measure("how many times as long that is", "x")


def _take(stage: Stage, _: Sequence[Line]) -> Taken:
    contender = ours(stage, stage.model)
    taken = taking_part([contender])
    if taken.skipped:
        return taken
    tokens = 64 if stage.quick else TOKENS

    def one(number: int) -> Round:
        stage.tell(f"round {number + 1}: stall")
        running = contender.start(stage.prompts.short()[0])
        try:
            running.generate(stage.prompts.short(STREAMS), AFTER)
            alone = running.generate(stage.prompts.short(STREAMS), tokens)
            late = Late(stage.prompts.long(LENGTH).ids, AFTER)
            beside = running.ask(stage.prompts.short(STREAMS), tokens, late=msgspec.to_builtins(late))
        finally:
            running.close()
        found = with_and_without(alone, beside)
        stage.tell(f"  {contender.name}: {found[TIMES.name]:.3g} times as long")
        return {contender.name: found}

    taken.rounds = stage.repeat(one)
    taken.notes += contender.notes()
    return taken


def with_and_without(alone: list[Answer], beside: list[Answer]) -> dict[str, float]:
    """The p99 of gaps of streams that run alone, and of those that reach into the time in which the prompt is read.

    In `beside` the last answer is that of the prompt. Its time begins when it was asked and ends with its first token,
    or with the streams if they end before.
    """
    *streams, late = beside
    without = sorted(gaps_together(alone))
    ends = min(late.first, *(answer.last for answer in streams))
    with_it = sorted(gaps_beside(streams, late.asked, ends))
    if not with_it:
        raise Broken("the streams had ended before the prompt came")
    one, other = percentile(without, P99), percentile(with_it, P99)
    return {WITHOUT.name: one, WITH.name: other, TIMES.name: other / one}


GROUP = Group(
    "8 streams run when a prompt of 2,000 tokens comes",
    (Line(name="stall", measures=(WITHOUT, WITH, TIMES), goals=(Goal(TIMES.name, 2.0),)),),
    _take,
)
