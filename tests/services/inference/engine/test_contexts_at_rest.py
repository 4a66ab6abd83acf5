"""Generations that are paused, swapped out, saved, restored, moved or forked give the text that they would have."""

from __future__ import annotations

import msgspec
import pytest
from engine_runs import run, step
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.errors import AlreadyExists, DataLoss, NotFound, PreconditionFailed
from services.inference.cache.saved import SavedPages
from services.inference.engine.context import Context
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling

GREEDY = ResolvedSampling(temperature=0.0)
SAMPLED = ResolvedSampling(temperature=1.1, top_p=0.9, frequency_penalty=0.4, repetition_penalty=1.1, seed=3)


def request(number: int, *, params=SAMPLED, length: int = 40, max_tokens: int = 60, **more) -> Request:
    prompt = [(7 * place) % 250 for place in range(length)]
    return Request(id=number, prompt=prompt, max_tokens=max_tokens, params=params, **more)


def steps(engine: Engine, count: int) -> dict[int, list[int]]:
    """What comes in so many steps, or until there is nothing to do."""
    tokens: dict[int, list[int]] = {}
    for _ in range(count):
        if engine.idle:
            break
        step(engine, tokens)
    return tokens


@pytest.fixture
def expected(native_decoder) -> list[int]:
    engine = Engine(native_decoder)
    engine.add(request(1))
    return run(engine)[1]


@pytest.fixture
def counted(native_decoder, monkeypatch) -> list[int]:
    """How many tokens each step computes."""
    counts: list[int] = []
    forward = native_decoder.forward

    def counting(storage, parts):
        counts.append(sum(len(part.tokens) for part in parts))
        return forward(storage, parts)

    monkeypatch.setattr(native_decoder, "forward", counting)
    return counts


def test_who_is_paused_gets_no_token_until_it_goes_on(native_decoder, expected):
    engine = Engine(native_decoder)
    engine.add(request(1))
    tokens = steps(engine, 10)[1]
    assert engine.pause(1, paused=True)
    assert engine.idle
    assert (engine.running, engine.paused) == (0, 1)
    assert engine.pages.held > 0
    engine.pause(1, paused=False)
    assert tokens + run(engine)[1] == expected


@pytest.mark.parametrize("when", [0, 1, 2, 5])
def test_it_can_be_paused_while_it_waits_or_is_read(native_decoder, expected, when):
    engine = Engine(native_decoder, token_budget=16)
    engine.add(request(1))
    tokens = steps(engine, when).get(1, [])
    engine.pause(1, paused=True)
    engine.pause(1, paused=True)  # twice is once
    assert run(engine) == {}
    engine.pause(1, paused=False)
    assert tokens + run(engine)[1] == expected


def test_who_is_swapped_out_has_no_pages_and_goes_on_with_the_same_text(native_decoder, expected):
    engine = Engine(native_decoder)
    engine.add(request(1))
    tokens = steps(engine, 10)[1]
    engine.pause(1, paused=True)
    engine.swap_out(1)
    assert engine.pages.held == 0
    engine.release_cache()
    engine.pause(1, paused=False)
    assert tokens + run(engine)[1] == expected


def test_pages_of_who_is_paused_are_taken_before_anybody_gives_way(native_decoder, expected):
    page = native_decoder.storage(1).page_bytes
    engine = Engine(native_decoder, cache_bytes=10 * page)
    engine.add(request(1))
    tokens = steps(engine, 10)[1]
    engine.pause(1, paused=True)
    engine.add(request(2))
    assert run(engine)[2] == expected
    assert engine.paused == 1
    engine.pause(1, paused=False)
    assert tokens + run(engine)[1] == expected


def test_a_context_goes_on_in_another_engine_with_its_pages(native_decoder, expected, counted):
    engine, other = Engine(native_decoder), Engine(native_decoder)
    engine.add(request(1))
    tokens = steps(engine, 10)[1]
    other.restore(Context.load(engine.save(1).dump()), 9)
    counted.clear()
    assert tokens + run(other)[9] == expected
    assert set(counted) == {1}, "what it brought is not computed"
    assert run(engine)[1] == expected[10:], "where it was saved it went on undisturbed"


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["pause", "swap", "save", "move", "fork"])), max_size=10))
@settings(max_examples=25, deadline=None)
def test_a_generation_moved_about_ten_times_has_the_same_text_byte_for_byte(native_decoder, moves):
    whole = Engine(native_decoder)
    whole.add(request(1))
    expected = run(whole)[1]
    engine, number = Engine(native_decoder, token_budget=16), 1
    engine.add(request(1))
    tokens: list[int] = []
    for count, move in moves:
        tokens += steps(engine, count).get(number, [])
        if engine.idle and not engine.paused:
            break
        if move in ("pause", "swap"):
            engine.pause(number, paused=True)
            if move == "swap":
                engine.swap_out(number)
                engine.release_cache()
            engine.pause(number, paused=False)
            continue
        content = engine.save(number).dump()
        if move == "fork":
            engine.restore(Context.load(content), number + 1)
            engine.cancel(number)
        else:
            engine = Engine(native_decoder, token_budget=512)
            engine.restore(Context.load(content), number + 1)
        number += 1
    assert tokens + run(engine).get(number, []) == expected
    assert engine.pages.held == 0


def test_long_contexts_that_were_swapped_out_come_back_from_disk(native_decoder, tmp_path, monkeypatch, counted):
    monkeypatch.setattr("services.inference.engine.contexts.LONG", 32)
    monkeypatch.setattr("services.inference.engine.contexts.WORTH", 1)
    saved = SavedPages(tmp_path, 1 << 30)
    engine = Engine(native_decoder, saved=saved)
    engine.add(request(1, length=120))
    steps(engine, 5)
    engine.pause(1, paused=True)
    engine.swap_out(1)
    saved.flush()
    engine.release_cache()
    engine.pause(1, paused=False)
    counted.clear()
    run(engine)
    assert max(counted) < 20, "what is on disk is not computed"
    saved.close()


def test_a_context_saved_inside_of_a_page_takes_nothing_from_disk_behind_it(native_decoder, tmp_path, monkeypatch):
    """Pages would stand where others belong, and be found there by who asks next."""
    monkeypatch.setattr("services.inference.engine.contexts.LONG", 32)
    monkeypatch.setattr("services.inference.engine.contexts.WORTH", 1)
    saved = SavedPages(tmp_path, 1 << 30)
    engine, other = (Engine(native_decoder, token_budget=37, saved=saved) for _ in range(2))
    engine.add(request(1, length=120))
    steps(engine, 1)
    context = engine.save(1)
    assert context.length == 37
    expected = run(engine)[1]
    saved.flush()
    other.restore(context, 2)
    assert run(other)[2] == expected
    other.add(request(3, length=120))
    assert run(other)[3] == expected, "what it left behind is right, too"
    saved.close()


def test_a_context_of_another_model_is_refused(native_decoder):
    engine = Engine(native_decoder, space=b"one")
    engine.add(request(1))
    steps(engine, 3)
    with pytest.raises(PreconditionFailed, match="another model"):
        Engine(native_decoder, space=b"two").restore(engine.save(1), 1)


def test_a_context_is_not_restored_under_the_number_of_another(native_decoder):
    engine = Engine(native_decoder)
    engine.add(request(1))
    steps(engine, 3)
    with pytest.raises(AlreadyExists):
        engine.restore(engine.save(1), 1)


def test_what_is_not_there_cannot_be_saved_or_paused(native_decoder):
    engine = Engine(native_decoder)
    with pytest.raises(NotFound, match="7"):
        engine.save(7)
    assert not engine.pause(7, paused=True)
    assert not engine.swap_out(7)


@given(st.integers(0, 10**9), st.integers(1, 255))
def test_a_damaged_context_is_found_out(native_decoder, place, flip):
    engine = Engine(native_decoder)
    engine.add(request(1, length=4, max_tokens=4))
    steps(engine, 1)
    content = bytearray(engine.save(1).dump())
    content[place % len(content)] ^= flip
    with pytest.raises(DataLoss):
        Context.load(bytes(content))


@given(st.binary(max_size=200))
def test_what_is_no_context_is_refused(content):
    with pytest.raises(DataLoss):
        Context.load(content)


def test_a_context_with_pages_of_another_size_is_refused(native_decoder):
    engine = Engine(native_decoder)
    engine.add(request(1))
    steps(engine, 3)
    context = engine.save(1)
    with pytest.raises(PreconditionFailed):
        engine.restore(msgspec.structs.replace(context, pages=[b"short"]), 2)


# Several answers to one prompt


def answers(decoder, count: int, **settings_of_engine) -> tuple[dict[int, list[int]], Engine]:
    engine = Engine(decoder, **settings_of_engine)
    for number in range(count):
        params = msgspec.structs.replace(SAMPLED, seed=number)
        engine.add(request(number, params=params, fork_of=0 if number else None))
    return run(engine), engine


@pytest.mark.parametrize("batch", [8, 2, 1])
def test_each_of_several_answers_is_what_it_would_be_alone(native_decoder, batch):
    found, engine = answers(native_decoder, 4, max_batch=batch)
    for number in range(4):
        alone = Engine(native_decoder)
        alone.add(request(number, params=msgspec.structs.replace(SAMPLED, seed=number)))
        assert found[number] == run(alone)[number]
    assert engine.pages.held == 0


def test_a_prompt_with_several_answers_is_read_once(native_decoder, counted):
    answers(native_decoder, 4)
    assert counted[:2] == [40, 4]


def test_when_who_reads_the_prompt_is_cancelled_the_next_one_reads_it(native_decoder):
    engine = Engine(native_decoder, token_budget=16)
    for number in range(3):
        engine.add(request(number, params=GREEDY, fork_of=0 if number else None))
    engine.step()
    assert engine.waiting == 2
    engine.cancel(0)
    found = run(engine)
    assert found[1] == found[2]
    assert len(found[1]) == 60


def test_who_waits_for_anothers_prompt_can_be_cancelled_and_paused(native_decoder):
    engine = Engine(native_decoder, token_budget=16)
    for number in range(3):
        engine.add(request(number, params=GREEDY, fork_of=0 if number else None))
    engine.step()
    engine.cancel(1)
    engine.pause(2, paused=True)
    first = run(engine)
    assert list(first) == [0]
    engine.pause(2, paused=False)
    assert run(engine)[2] == first[0]


def test_who_asks_to_follow_what_has_answered_already_runs_by_itself(native_decoder):
    engine = Engine(native_decoder)
    engine.add(request(0, params=GREEDY))
    before = steps(engine, 5)[0]
    engine.add(request(1, params=GREEDY, fork_of=0))
    found = run(engine)
    assert found[1] == before + found[0]
