"""What steps of several sizes take: measured beside a model's engine, on one of its weights that nobody else uses.

Each size is tried several times, in turns with the others, and the shortest time counts: what else the machine does
makes steps longer, never shorter.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator

import msgspec

from microkernel.errors import Unavailable
from services.inference.cache.keys import PAGE
from services.inference.engine.engine import Engine
from services.inference.engine.sampler import ResolvedSampling
from services.inference.engine.sequence import Request
from services.inference.engine.torch_threads import TorchThreads

__all__ = ["Trials", "measure", "room"]

PROMPT = 16  # tokens of the prompt of each that decodes
PATIENCE = 64  # tokens of its answer: the last prompt is read before the first answer ends
STEPS = 6  # that are measured of each batch, in each round
ROUNDS = 3
SHORTEST = 32  # tokens of a prompt: fewer are less than a step of answers has
LONGEST = 1.0  # seconds of a step: nobody who is more urgent should wait longer
LESS = 0.9  # part of the best throughput below which larger sizes are not tried any more


class Trials(msgspec.Struct):
    """Seconds of a step, by how many sequences decode in it, and by how many tokens of a prompt it reads."""

    decoding: dict[int, float] = {}
    reading: dict[int, float] = {}


def measure(engine: Engine, *, most_slots: int, most_tokens: int) -> Generator[None, None, Trials]:
    """Try batches of up to `most_slots`, and prompts of up to `most_tokens`; hands the turn over after each step.

    Raises what a step raises, and `Unavailable` once `engine` is closed.
    """
    if engine.relief.closed:
        raise _closed()
    trials = Trials()
    slots = list(_doubled(1, most_slots))
    tokens = list(_doubled(min(SHORTEST, most_tokens), most_tokens))
    steps = _Steps(engine, most_slots, most_tokens)
    try:
        for _ in range(ROUNDS):
            slots = yield from _try(steps.decode, slots, trials.decoding)
            tokens = yield from _try(steps.read, tokens, trials.reading)
        return trials
    finally:
        steps.close()


def room(engine: Engine, most_slots: int, most_tokens: int) -> int:
    """Bytes of pages that `measure` takes."""
    pages = most_slots * -(-(PROMPT + PATIENCE) // PAGE) + -(-most_tokens // PAGE)
    return pages * engine.page_bytes


def _try(
    trial: Callable[[int], Generator[None, None, float]], counts: Iterable[int], found: dict[int, float]
) -> Generator[None, None, list[int]]:
    """Try all of them, up to the first that is not worth it; returns those before."""
    worth, best = list[int](), 0.0
    for count in counts:
        took = yield from trial(count)
        if worth and took > LONGEST:
            break
        found[count] = min(took, found.get(count, took))
        best = max(best, count / found[count])
        if count / found[count] < LESS * best:
            break
        worth.append(count)
    return worth


class _Steps:
    """Steps of one size or another."""

    def __init__(self, engine: Engine, most_slots: int, most_tokens: int) -> None:
        self._model = engine
        self._threads = TorchThreads()
        self._engine = engine.beside(
            max_batch=most_slots, token_budget=most_tokens, cache_bytes=room(engine, most_slots, most_tokens)
        )
        self._chance = random.Random(0)  # noqa: S311 - no two prompts begin alike: nothing is found again

    def close(self) -> None:
        """Give the pages back."""
        self._engine.close()

    def decode(self, count: int) -> Generator[None, None, float]:
        """Seconds of a step in which so many decode."""
        ids = range(count)
        for each in ids:
            self._add(each, min(PROMPT, self._model.context_length // 2), answer=PATIENCE)
        begun = set[int]()
        while len(begun) < count:
            begun |= self._step()
            yield
        shortest = math.inf
        for _ in range(STEPS):
            began = time.perf_counter()
            self._step()
            shortest = min(shortest, time.perf_counter() - began)
            yield
        for each in ids:
            self._engine.cancel(each)
        return shortest

    def read(self, count: int) -> Generator[None, None, float]:
        """Seconds of a step that reads a prompt of so many tokens."""
        self._add(0, count, answer=1)
        began = time.perf_counter()
        self._step()
        took = time.perf_counter() - began
        yield
        return took

    def _add(self, id: int, length: int, *, answer: int) -> None:  # noqa: A002 - the request's own field
        prompt = [self._chance.randrange(self._model.vocab_size) for _ in range(length)]
        self._engine.add(Request(id=id, prompt=prompt, max_tokens=answer, params=ResolvedSampling()))

    def _step(self) -> set[int]:
        """Whose tokens came."""
        if self._model.relief.closed:
            raise _closed()
        with self._threads:
            outputs = self._engine.step()
        for output in outputs:
            if output.error is not None:
                raise output.error
        return {output.id for output in outputs}


def _closed() -> Unavailable:
    return Unavailable("the model is being unloaded", retry_after=1.0, may_have_run=True)


def _doubled(first: int, last: int) -> Iterator[int]:
    while first <= last:
        yield first
        first *= 2
