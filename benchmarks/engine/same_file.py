"""The lines against llama.cpp and transformers on one file: decoding alone, at a long context, together; prefill."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.engine.contenders import AS_Q4_0, SAME_FILE, llama, llama_as_q4_0, ours, questions, rounds_of
from benchmarks.engine.line import Goal, Group, Line, Question, Taken
from benchmarks.engine.stage import Stage
from benchmarks.engine.tasks import FairTask, prefill_rate, rate_together
from benchmarks.first_token.contender import Contender, Prompt
from benchmarks.first_token.prompts import Prompts
from benchmarks.first_token.transformers_peer import transformers
from benchmarks.measure import Measure

__all__ = ["GROUP", "alone", "prefill", "together"]

FLOAT32 = "transformers, float32"
TEN_TIMES = 10.0  # what all lines are to be against float32


def alone(measure: Measure, tokens: int, context: int | None = None) -> Callable[[Prompts, bool], FairTask]:
    """Decode one stream after a short prompt, or one of `context` tokens."""

    def make(prompts: Prompts, quick: bool) -> FairTask:
        def question() -> list[Prompt]:
            return prompts.short() if context is None else [prompts.long(context)]

        return FairTask(measure, [prompts.short()], [question()], 16 if quick else tokens, rate_together)

    return make


def together(measure: Measure, streams: int, tokens: int) -> Callable[[Prompts, bool], FairTask]:
    """Decode `streams` streams at once."""

    def make(prompts: Prompts, quick: bool) -> FairTask:
        questions = [prompts.short(streams)]
        return FairTask(measure, [prompts.short(streams)], questions, 12 if quick else tokens, rate_together)

    return make


def prefill(measure: Measure, length: int) -> Callable[[Prompts, bool], FairTask]:
    """Read a prompt of `length` tokens."""

    def make(prompts: Prompts, quick: bool) -> FairTask:
        asked = [[prompts.long(length)] for _ in range(1 if quick else 3)]
        # Four tokens and not one, as in `first_token`: an answer of one would be flushed by its end.
        return FairTask(measure, [prompts.short()], asked, 4, prefill_rate)

    return make


def _line(name: str, what: str, same: float, q4_0: float, make: Callable[[Measure], Callable[..., FairTask]]) -> Line:
    measure = Measure(what, "tokens/s", less_is_better=False)
    goals = (
        Goal(what, same, SAME_FILE),
        Goal(what, q4_0, AS_Q4_0),
        Goal(what, TEN_TIMES, FLOAT32),
    )
    return Question(name=name, measures=(measure,), goals=goals, make=make(measure))


def _take(stage: Stage, lines: Sequence[Line]) -> Taken:
    contenders: list[Contender] = [
        ours(stage, stage.model),
        llama(stage, stage.model),
        *llama_as_q4_0(stage),
        transformers(stage.model, stage.threads, stage.log("transformers")),
    ]
    wanted = [line for line in lines if isinstance(line, Question)]
    return rounds_of(stage, contenders, questions(stage, wanted))


GROUP = Group(
    "the model, against engines that run the same file",
    (
        _line("decode", "decode, one stream, short context", 2.5, 1.8, lambda measure: alone(measure, 128)),
        _line("context", "decode, one stream, at context 1,500", 2.0, 1.5, lambda measure: alone(measure, 64, 1500)),
        _line("streams-8", "decode, 8 streams", 6.0, 3.0, lambda measure: together(measure, 8, 64)),
        _line("streams-16", "decode, 16 streams", 5.0, 2.0, lambda measure: together(measure, 16, 64)),
        _line("prefill", "prefill of 600 tokens", 6.0, 2.5, lambda measure: prefill(measure, 600)),
    ),
    _take,
)
