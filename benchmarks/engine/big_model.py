"""The lines on a model of 0.7 billion parameters in Q4_K_M, against llama.cpp on the same file.

Its weights are random: what is measured does not depend on them, and nobody has to fetch them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.engine.contenders import SAME_FILE, llama, ours, questions, rounds_of, taking_part
from benchmarks.engine.line import Goal, Group, Line, Question, Taken
from benchmarks.engine.same_file import alone, prefill, together
from benchmarks.engine.stage import Stage
from benchmarks.engine.tasks import FairTask
from benchmarks.first_token.contender import Contender
from benchmarks.measure import Measure

__all__ = ["GROUP"]


def _line(name: str, what: str, bound: float, make: Callable[[Measure], Callable[..., FairTask]]) -> Line:
    measure = Measure(f"0.7 billion as Q4_K_M: {what}", "tokens/s", less_is_better=False)
    return Question(name=name, measures=(measure,), goals=(Goal(measure.name, bound, SAME_FILE),), make=make(measure))


def _take(stage: Stage, lines: Sequence[Line]) -> Taken:
    if llama(stage, stage.model).missing():  # it writes the file
        return taking_part([ours(stage, stage.model), llama(stage, stage.model)])
    contenders: list[Contender] = [ours(stage, stage.big), llama(stage, stage.big)]
    wanted = [line for line in lines if isinstance(line, Question)]
    return rounds_of(stage, contenders, questions(stage, wanted))


GROUP = Group(
    "a model of 0.7 billion random weights as Q4_K_M, against llama.cpp on the same file",
    (
        _line("big-decode", "decode, one stream", 1.2, lambda measure: alone(measure, 64)),
        _line("big-prefill", "prefill of 600 tokens", 1.5, lambda measure: prefill(measure, 600)),
        _line("big-streams-8", "decode, 8 streams", 2.0, lambda measure: together(measure, 8, 32)),
    ),
    _take,
)
