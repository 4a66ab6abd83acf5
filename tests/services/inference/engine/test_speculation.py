"""Guessing ahead never changes a text, and saves steps where the guesses are right."""

from __future__ import annotations

import random

import pytest
from engine_runs import run, step
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_decoder, write_gguf

from microkernel.errors import PreconditionFailed
from services.inference.engine.draft import DraftModel
from services.inference.engine.engine import Engine, Request
from services.inference.engine.guess import MOST, Guess
from services.inference.engine.pace import Pace
from services.inference.engine.proposers import PromptLookup
from services.inference.engine.sampler import ResolvedSampling
from services.inference.engine.sequence import Sequence
from services.inference.native.pages import HostPages

PARAMS = (
    ResolvedSampling(temperature=0.0),
    ResolvedSampling(temperature=1.2, seed=5),
    ResolvedSampling(temperature=0.8, top_p=0.7, frequency_penalty=0.6, repetition_penalty=1.2, seed=6),
)


class Oracle:
    """Guesses what is known to come, with some mistakes."""

    def __init__(self, texts: dict[int, list[int]], mistakes: float, seed: int = 0) -> None:
        self.texts = texts
        self.mistakes = mistakes
        self.choose = random.Random(seed)

    def propose(self, asked):
        guesses = []
        for sequence, most in asked:
            come = self.texts[sequence.request.id][sequence.generated :][:most]
            guesses.append([(token + (self.choose.random() < self.mistakes)) % 250 for token in come])
        return guesses

    resident_bytes = 0

    def give_back(self) -> None:
        pass


def request(number: int, *, params=PARAMS[0], prompt=(1, 2, 3), max_tokens: int = 40, stop=()) -> Request:
    return Request(id=number, prompt=list(prompt), max_tokens=max_tokens, params=params, stop_tokens=frozenset(stop))


def run_counted(engine: Engine) -> tuple[dict[int, list[int]], int]:
    """All tokens by request, and how many steps that took."""
    tokens: dict[int, list[int]] = {}
    steps = 0
    while not engine.idle:
        step(engine, tokens)
        steps += 1
    return tokens, steps


def plain(decoder, requests) -> dict[int, list[int]]:
    engine = Engine(decoder)
    for one in requests:
        engine.add(one)
    return run(engine)


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.2, 0.7, 1.0]), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_the_text_is_the_same_however_often_guesses_are_wrong(native_decoder, seed, mistakes, count):
    choose = random.Random(seed)
    requests = [
        request(
            number,
            params=choose.choice(PARAMS),
            prompt=[choose.randrange(250) for _ in range(choose.randint(1, 30))],
            max_tokens=choose.randint(1, 40),
            stop=[choose.randrange(250) for _ in range(10)],
        )
        for number in range(count)
    ]
    expected = plain(native_decoder, requests)
    engine = Engine(native_decoder, proposer=Oracle(expected, mistakes, seed))
    for one in requests:
        engine.add(one)
    assert run(engine) == expected
    assert engine.pages.held == 0


def test_right_guesses_save_steps(native_decoder):
    expected = plain(native_decoder, [request(1)])
    engine = Engine(native_decoder, proposer=Oracle(expected, 0.0))
    engine.add(request(1))
    tokens, steps = run_counted(engine)
    assert tokens == expected
    assert steps <= 40 / 4
    guessed, right = engine.guessed
    assert guessed == right


def test_what_a_token_of_a_prompt_takes_is_not_learnt_from_guesses(native_decoder, monkeypatch):
    noted = []
    monkeypatch.setattr(Pace, "note", lambda _, *step: noted.append(step[:2]))
    prompt = list(range(20))
    expected = plain(native_decoder, [request(1, prompt=prompt)])
    noted.clear()
    engine = Engine(native_decoder, proposer=Oracle(expected, 0.3))
    engine.add(request(1, prompt=prompt))
    run(engine)
    assert engine.guessed[0] > 0
    assert noted[0] == (0, 20)
    assert set(noted[1:]) <= {(1, 0)}


def test_a_guess_takes_pages_from_nobody(native_decoder):
    expected = plain(native_decoder, [request(1, max_tokens=60), request(2, max_tokens=60)])
    page = native_decoder.storage(1).page_bytes
    engine = Engine(native_decoder, cache_bytes=8 * page, proposer=Oracle(expected, 0.5))
    engine.add(request(1, max_tokens=60))
    engine.add(request(2, max_tokens=60))
    assert run(engine) == expected


def test_a_decoder_whose_bits_depend_on_the_batch_does_not_guess(tmp_path):
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf"))
    engine = Engine(decoder, proposer=Oracle({1: [0] * 40}, 0.0))
    engine.add(request(1))
    run(engine)
    assert engine.guessed == (0, 0)


# What follows a run of three tokens


def looked_up(tokens: list[int], most: int = 4) -> list[int]:
    sequence = Sequence(request(1, prompt=tokens), None, 1000)  # type: ignore[arg-type] - its sampler is not asked
    return PromptLookup().propose([(sequence, most)])[0]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], [4, 5, 6, 7]),
        ([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], [5, 1, 2, 3]),  # the last time counts
        ([1, 2, 3, 4, 5], []),
        ([7, 7, 7, 7], [7]),
        ([1, 2], []),
        ([], []),
    ],
)
def test_what_stood_behind_the_same_three_tokens_is_guessed(tokens, expected):
    assert looked_up(tokens) == expected


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 8))
def test_looking_up_token_by_token_finds_what_looking_up_at_once_finds(tokens, most):
    lookup = PromptLookup()
    sequence = Sequence(request(1, prompt=[0]), None, 1000)  # type: ignore[arg-type] - as above
    sequence.tokens = []
    for token in tokens:
        sequence.tokens.append(token)
        found = lookup.propose([(sequence, most)])[0]
    if tokens:
        assert found == looked_up(tokens, most)


def tried(guess: Guess, steps: int, right: int) -> int:
    """How often in so many steps something was guessed, of which so many came."""
    tries = 0
    for _ in range(steps):
        if (width := guess.wanted()) > 0:
            tries += 1
            guess.note(width, min(width, right))
    return tries


def test_who_guesses_wrong_guesses_less_and_rests_ever_longer():
    guess = Guess()
    assert tried(guess, 200, 0) < 12
    assert guess.width == 1


def test_who_guesses_right_guesses_more_and_never_rests():
    guess = Guess()
    assert tried(guess, 50, MOST) == 50
    assert guess.width == MOST


# A draft model


def test_a_draft_model_that_is_the_model_itself_is_always_right_where_it_is_greedy(native_decoder):
    requests = [request(number, prompt=range(number, number + 30)) for number in (1, 2, 3)]
    expected = plain(native_decoder, requests)
    draft = DraftModel(native_decoder, native_decoder.config, pages=64)
    engine = Engine(native_decoder, proposer=draft)
    for one in requests:
        engine.add(one)
    tokens, steps = run_counted(engine)
    assert tokens == expected
    guessed, right = engine.guessed
    assert guessed == right > 0
    assert steps < 40


@pytest.mark.parametrize("params", PARAMS, ids=["greedy", "sampled", "penalised"])
def test_a_draft_model_changes_no_text_and_its_pages_come_back(native_decoder, params, monkeypatch):
    monkeypatch.setattr("services.inference.engine.draft.CHUNK", 16)
    requests = [request(number, params=params, prompt=range(number, number + 70), max_tokens=50) for number in range(6)]
    expected = plain(native_decoder, requests)
    draft = DraftModel(native_decoder, native_decoder.config, pages=24)  # not enough for all
    engine = Engine(native_decoder, proposer=draft)
    for one in requests:
        engine.add(one)
    assert run(engine) == expected
    assert sorted(draft._free) == list(range(24))


@pytest.mark.parametrize("elastic", [True, False])
def test_a_draft_model_counts_its_weights_and_the_pages_that_it_uses(native_decoder, elastic, monkeypatch):
    monkeypatch.setattr(HostPages, "elastic", elastic)
    draft = DraftModel(native_decoder, native_decoder.config, pages=64)
    engine = Engine(native_decoder, proposer=draft)
    nothing = native_decoder.weight_bytes
    assert engine.relief.use().beside_bytes == draft.resident_bytes == nothing
    engine.add(request(1))
    step(engine, {})
    step(engine, {})
    assert draft.resident_bytes - nothing == (64 - len(draft._free)) * engine.page_bytes > 0
    run(engine)
    assert (draft.resident_bytes > nothing) == elastic, "free pages keep their memory until it is given back"
    engine.relief.give_back()
    assert draft.resident_bytes == nothing


def test_a_draft_model_of_another_vocabulary_is_refused_with_both_numbers(native_decoder):
    import msgspec

    other = msgspec.structs.replace(native_decoder.config, vocab_size=99)
    with pytest.raises(PreconditionFailed, match="256 tokens.*99"):
        DraftModel(native_decoder, other, pages=4)
