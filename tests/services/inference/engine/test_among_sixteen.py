"""A request among 16 others gets the very bits that it gets alone: not only its tokens, but every number of its logits.

The others come in any order and at any time, with prompts that begin alike, are read in chunks of any budget, and some
wait for pages. On the kernels' decoder.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling

MATES = 16
BEGINNINGS = [[(start + 3 * place) % 250 for place in range(300)] for start in (0, 0, 40)]
SAMPLINGS = (
    ResolvedSampling(temperature=0.0),
    ResolvedSampling(temperature=1.3, seed=7),
    ResolvedSampling(temperature=0.9, top_p=0.8, frequency_penalty=0.5, seed=8),
)


class Watched:
    """A decoder whose logits are counted, row by row."""

    def __init__(self, decoder) -> None:
        self._decoder = decoder
        self.seen: Counter[bytes] = Counter()

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def forward(self, storage, parts):
        logits = self._decoder.forward(storage, parts)
        self.seen.update(row.numpy().tobytes() for row in logits)
        return logits


def random_request(number: int, chance: random.Random) -> Request:
    length = chance.choice((1, 15, 16, 17, 40, 90, 258, 290))
    return Request(
        id=number,
        prompt=[*chance.choice(BEGINNINGS)[:length], chance.randrange(6)],
        max_tokens=chance.choice((1, 2, 9, 25)),
        params=chance.choice(SAMPLINGS),
        owner=chance.choice(("ann", "bob")),
    )


def answers(decoder, requests: list[Request], chance: random.Random | None = None, **limits) -> dict[int, list[int]]:
    """What each request gets; with `chance` they come while others run."""
    engine, coming = Engine(decoder, max_length=400, **limits), list(requests)
    given: dict[int, list[int]] = {request.id: [] for request in requests}
    while coming or not engine.idle:
        for _ in range(len(coming) if chance is None else chance.randint(0, min(4, len(coming)))):
            engine.add(coming.pop())
        for output in engine.step():
            assert output.error is None
            given[output.id].append(output.token)
    return given


def check(decoder, seed: int) -> None:
    chance = random.Random(seed)
    requests = [random_request(number, chance) for number in range(MATES + 1)]
    alone, expected = Watched(decoder), {}
    for request in requests:
        expected |= answers(alone, [request])
    pages = chance.choice((60, 400))  # with 60, some have to wait, and some give theirs back and are read again
    limits = {
        "max_batch": MATES + 1,
        "token_budget": chance.choice((1, 7, 16, 33, 100, 512)),
        "cache_bytes": pages * decoder.storage(1).page_bytes,
    }
    for _ in range(2):
        chance.shuffle(requests)
        together = Watched(decoder)
        assert answers(together, requests, chance, **limits) == expected
        assert together.seen == alone.seen


@pytest.mark.parametrize("page_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("seed", range(4))
def test_every_bit_is_what_the_request_gets_alone(native_decoders, page_dtype, seed):
    check(native_decoders[page_dtype], seed)


@pytest.mark.slow
@pytest.mark.parametrize("page_dtype", ["bfloat16", "int8"])
def test_every_bit_is_what_the_request_gets_alone_a_hundred_times(native_decoders, page_dtype):
    for seed in range(100, 200):
        check(native_decoders[page_dtype], seed)
