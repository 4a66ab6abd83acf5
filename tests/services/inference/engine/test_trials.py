"""What steps of several sizes take, measured beside a model that goes on as if nothing was."""

from __future__ import annotations

import pytest
from engine_runs import Counting, run
from tiny_models import VOCABULARY, tiny_decoder, write_gguf

from microkernel.errors import Unavailable
from services.inference.engine import trials
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling
from services.inference.engine.trials import measure, room


@pytest.fixture
def decoder(tmp_path):
    return tiny_decoder(write_gguf(tmp_path / "tiny.gguf"))


def finished(steps) -> trials.Trials:
    """What they found."""
    while True:
        try:
            next(steps)
        except StopIteration as last:
            return last.value


def test_each_size_up_to_the_largest_has_a_time(decoder, monkeypatch):
    monkeypatch.setattr(trials, "LESS", 0.0)  # however slow a larger one is
    found = finished(measure(Engine(decoder), most_slots=8, most_tokens=100))
    assert set(found.decoding) == {1, 2, 4, 8}
    assert set(found.reading) == {32, 64}
    assert all(seconds > 0.0 for seconds in (*found.decoding.values(), *found.reading.values()))


def test_a_step_computes_what_its_size_says(decoder, monkeypatch):
    monkeypatch.setattr(trials, "LESS", 0.0)
    counting = Counting(decoder)
    finished(measure(Engine(counting), most_slots=4, most_tokens=64))
    assert {1, 2, 4, 32, 64} <= set(counting.steps)


def test_sizes_that_take_too_long_or_bring_less_are_the_last_that_are_tried(decoder, monkeypatch):
    monkeypatch.setattr(trials, "LESS", 1e9)
    found = finished(measure(Engine(decoder), most_slots=8, most_tokens=100))
    assert set(found.decoding) == {1}
    monkeypatch.setattr(trials, "LESS", 0.0)
    monkeypatch.setattr(trials, "LONGEST", 0.0)
    found = finished(measure(Engine(decoder), most_slots=8, most_tokens=100))
    assert (set(found.decoding), set(found.reading)) == ({1}, {32})


def test_answers_that_come_between_two_steps_are_the_same(decoder):
    def asked(number: int) -> Request:
        prompt = [(number * 7 + place) % VOCABULARY for place in range(9)]
        return Request(id=number, prompt=prompt, max_tokens=12, params=ResolvedSampling(temperature=0.0))

    alone = Engine(decoder)
    alone.add(asked(1))
    wanted = run(alone)[1]
    engine, got = Engine(decoder), list[int]()
    engine.add(asked(1))
    for _ in measure(engine, most_slots=4, most_tokens=64):
        got += [output.token for output in engine.step()]
    assert got == wanted


def test_its_pages_are_its_own_and_gone_afterwards(decoder):
    engine = Engine(decoder)
    before = engine.pages
    finished(measure(engine, most_slots=4, most_tokens=64))
    assert engine.pages == before
    assert room(engine, 4, 64) % engine.page_bytes == 0


def test_a_model_that_is_closed_meanwhile_is_not_asked_any_more(decoder):
    engine = Engine(decoder)
    steps = measure(engine, most_slots=4, most_tokens=64)
    next(steps)
    engine.close()
    with pytest.raises(Unavailable, match="is being unloaded"):
        next(steps)


def test_limits_hold_from_the_next_step_on_and_what_runs_stays(decoder):
    engine = Engine(decoder)
    for number in range(4):
        prompt = [(number * 7 + place) % VOCABULARY for place in range(5)]
        engine.add(Request(id=number, prompt=prompt, max_tokens=6, params=ResolvedSampling(temperature=0.0)))
        if number == 2:
            engine.step()
            engine.limit(max_batch=2, token_budget=512)
    engine.step()
    assert (engine.running, engine.waiting) == (3, 1)
    tokens = run(engine)
    assert set(tokens) == {0, 1, 2, 3}
