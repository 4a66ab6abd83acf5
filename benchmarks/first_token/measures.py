"""What is measured, and how a number is made of answers."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import msgspec

from benchmarks.first_token.contender import Answer, Prompt, Running
from benchmarks.first_token.prompts import Prompts
from benchmarks.measure import Measure

__all__ = ["FIRST_START", "MEMORY", "PRIVATE", "READY", "Task", "measures", "tasks"]


FIRST_START = Measure("first start, on empty state", "s")
READY = Measure("start: process to first token", "s")
MEMORY = Measure("memory, peak resident", "MiB", scale=1 / 2**20)
PRIVATE = Measure("memory, without mapped files", "MiB", scale=1 / 2**20)


class Task(msgspec.Struct, frozen=True):
    """A measure with its questions, the same for every contender of a round."""

    measure: Measure
    warm_up: list[list[Prompt]]
    questions: list[list[Prompt]]
    tokens: int
    value: Callable[[list[Answer]], float]

    def run(self, running: Running) -> tuple[float, int]:
        """The median over the questions, each a list of prompts asked together; and the fewest tokens of any answer."""
        answers = self.ask(running)
        fewest = min(answer.tokens for together in answers for answer in together)
        return statistics.median(map(self.value, answers)), fewest

    def take(self, running: Running) -> tuple[dict[Measure, float], int]:
        """The same as `run`, by measure: there may be more than one."""
        value, fewest = self.run(running)
        return {self.measure: value}, fewest

    def ask(self, running: Running) -> list[list[Answer]]:
        """The answers to each question, after the warm-up."""
        for prompts in self.warm_up:
            running.generate(prompts, 2)
        return [running.generate(prompts, self.tokens) for prompts in self.questions]


def tasks(prompts: Prompts, *, quick: bool) -> list[Task]:
    """One round's tasks, with prompts that were never used before."""
    samples, tokens = (2, 32) if quick else (5, 128)
    return [
        _first_token("first token, short prompt", [prompts.short() for _ in range(samples)]),
        _first_token("first token, 600-token prompt", [[prompts.long(600)] for _ in range(samples // 2 + 1)]),
        _prefill([[prompts.long(1536)]]),
        *(
            _decode(prompts.short(streams), prompts.short(streams), tokens)
            for streams in ((1, 8) if quick else (1, 8, 16))
        ),
    ]


def measures(made: list[Task]) -> list[Measure]:
    """All rows, in the table's order."""
    return [FIRST_START, READY, *(task.measure for task in made), MEMORY, PRIVATE]


def _first_token(name: str, questions: list[list[Prompt]]) -> Task:
    # Four tokens and not one: an answer of one would be flushed by its end.
    return Task(Measure(name, "ms", scale=1e3), [], questions, 4, lambda answers: answers[0].first)


def _prefill(questions: list[list[Prompt]]) -> Task:
    measure = Measure("prompt of 1,536 tokens", "tokens/s", less_is_better=False)
    return Task(measure, [], questions, 4, lambda answers: answers[0].prompt_tokens / answers[0].first)


def _decode(warm_up: list[Prompt], prompts: list[Prompt], tokens: int) -> Task:
    streams = len(prompts)
    name = "1 stream, after the first token" if streams == 1 else f"{streams} streams, in all"
    value = rate_of_one if streams == 1 else rate_of_all
    return Task(Measure(name, "tokens/s", less_is_better=False), [warm_up], [prompts], tokens, value)


def rate_of_one(answers: list[Answer]) -> float:
    """Tokens a second of a single stream once it runs: its prompt does not count."""
    (answer,) = answers
    return (answer.tokens - 1) / (answer.last - answer.first)


def rate_of_all(answers: list[Answer]) -> float:
    """Tokens a second of all streams together, from asking to the last token: their prompts count."""
    return sum(answer.tokens for answer in answers) / max(answer.last for answer in answers)
