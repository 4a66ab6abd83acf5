"""How a number is made of the times of tokens, and tasks that are fair to a peer with more than one way to run."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence

from benchmarks.engine.fair import RunningTuned
from benchmarks.first_token.contender import Answer, Broken, Running
from benchmarks.first_token.measures import Task
from benchmarks.measure import Measure
from benchmarks.messages.stopwatch import P50, P99, percentile

__all__ = [
    "Curve",
    "FairTask",
    "gaps_beside",
    "gaps_together",
    "p50_gap",
    "p99_gap",
    "prefill_rate",
    "rate_together",
]


class FairTask(Task, frozen=True):
    """A task for which a contender with several settings takes the one that it is fastest with."""

    def ask(self, running: Running) -> list[list[Answer]]:
        """The answers to each question, after the warm-up; before the first time, the settings are tried."""
        if isinstance(running, RunningTuned):
            running.settle(self.measure, lambda: statistics.median(map(self.value, Task.ask(self, running))))
        return Task.ask(self, running)


class Curve(FairTask, frozen=True):
    """A task whose answers give more numbers than one; the settings are chosen by the first."""

    more: dict[Measure, Callable[[list[Answer]], float]]

    def take(self, running: Running) -> tuple[dict[Measure, float], int]:
        """All numbers, each the median over the questions."""
        answers = self.ask(running)
        fewest = min(answer.tokens for together in answers for answer in together)
        values = {self.measure: self.value, **self.more}
        return {measure: statistics.median(map(value, answers)) for measure, value in values.items()}, fewest


def rate_together(answers: list[Answer]) -> float:
    """Tokens a second of all streams while all run; what their prompts cost is not in it. Raises `Broken`."""
    begun, ended = _all_run(answers)
    made = sum(begun < moment <= ended for answer in answers for moment in answer.times)
    return made / (ended - begun)


def prefill_rate(answers: list[Answer]) -> float:
    """Tokens a second of a single prompt, until the first token of its answer."""
    (answer,) = answers
    return answer.prompt_tokens / answer.first


def p50_gap(answers: list[Answer]) -> float:
    """The median of the gaps between tokens of a stream while all streams run. Raises `Broken`."""
    return percentile(sorted(gaps_together(answers)), P50)


def p99_gap(answers: list[Answer]) -> float:
    """The gap that one in a hundred exceeds."""
    return percentile(sorted(gaps_together(answers)), P99)


def gaps_together(answers: Sequence[Answer]) -> list[float]:
    """Seconds from token to token of each stream while all run. Raises `Broken`."""
    begun, ended = _all_run(answers)
    return [later - sooner for sooner, later in _pairs(answers) if sooner >= begun and later <= ended]


def gaps_beside(answers: Sequence[Answer], since: float, until: float) -> list[float]:
    """Those gaps that reach into the time from `since` to `until`."""
    return [later - sooner for sooner, later in _pairs(answers) if later > since and sooner < until]


def _pairs(answers: Sequence[Answer]) -> Iterator[tuple[float, float]]:
    """The times of each token and the one after it."""
    return (pair for answer in answers for pair in itertools.pairwise(answer.times))


def _all_run(answers: Sequence[Answer]) -> tuple[float, float]:
    """From when the last stream has begun until the first one ends."""
    begun, ended = max(answer.first for answer in answers), min(answer.last for answer in answers)
    if ended <= begun:
        raise Broken(f"of {len(answers)} streams, one had ended before the last one began")
    return begun, ended
