"""The engine: batch mates never change an answer, whoever leaves frees a slot, and errors stay with their request."""

from __future__ import annotations

import random

import msgspec
import pytest
import torch
from engine_runs import Counting, run
from forward_passes import one_by_one
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCABULARY, tiny_decoder, write_gguf

from microkernel.errors import AlreadyExists, DataLoss, Invalid, MicrokernelError, Overloaded, PreconditionFailed
from services.inference.cache.keys import page_keys
from services.inference.cache.saved import SavedPages
from services.inference.engine.batch import Batch
from services.inference.engine.engine import Engine, Request, check_prompt
from services.inference.engine.sampler import ResolvedSampling

GREEDY = ResolvedSampling(temperature=0.0)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return tiny_decoder(write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf"))


def request(number: int, prompt=(1, 2, 3), max_tokens: int = 8, params=GREEDY, stop=()) -> Request:
    return Request(id=number, prompt=list(prompt), max_tokens=max_tokens, params=params, stop_tokens=frozenset(stop))


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    choose = random.Random(seed)
    return [[choose.randrange(VOCABULARY) for _ in range(choose.randint(1, 40))] for _ in range(count)]


def alone(decoder, request: Request) -> list[int]:
    engine = Engine(decoder)
    engine.add(request)
    return run(engine)[request.id]


def test_greedy_text_is_what_the_decoder_finds_likeliest_token_by_token(decoder):
    prompt, tokens = [5, 9, 200, 31], []
    for _ in range(10):
        tokens.append(int(one_by_one(decoder, prompt + tokens)[-1].argmax()))
    assert alone(decoder, request(1, prompt, 10)) == tokens


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 64))
@settings(max_examples=25, deadline=None)
def test_joining_holding_and_leaving_at_any_time_changes_no_answer(decoder, seed, max_batch, budget):
    choose = random.Random(seed)
    wanted = [request(number, prompt, choose.randint(1, 20)) for number, prompt in enumerate(prompts(7, seed))]
    engine, tokens = Engine(decoder, max_batch=max_batch, token_budget=budget), {}
    cancelled = choose.choice(wanted).id
    pending = list(wanted)
    while pending or engine.running or engine.waiting:
        if pending and choose.random() < 0.4:
            engine.add(pending.pop())
        if choose.random() < 0.05:
            engine.cancel(cancelled)
        engine.hold(choose.randrange(7), held=choose.random() < 0.3)
        if engine.idle:
            for one in wanted:
                engine.hold(one.id, held=False)
        for output in engine.step():
            assert output.error is None
            tokens.setdefault(output.id, []).append(output.token)
        assert engine.running <= max_batch
    for one in wanted:
        expected = alone(decoder, one)
        got = tokens.get(one.id, [])
        assert got == (expected[: len(got)] if one.id == cancelled else expected)


def test_a_prompt_read_in_chunks_gives_the_same_answer_as_one_read_at_once(decoder):
    prompt = prompts(1, 3)[0] * 3
    whole = alone(decoder, request(1, prompt))
    for budget in (1, 7, 16):
        engine = Engine(decoder, token_budget=budget)
        engine.add(request(1, prompt))
        assert run(engine)[1] == whole


def test_a_long_prompt_delays_the_others_by_no_more_than_the_budget(decoder):
    engine = Engine(decoder, token_budget=8)
    engine.add(request(1, max_tokens=100))
    engine.step()
    engine.add(request(2, [7] * 60, 5))
    steps = 1
    while (told := {output.id for output in engine.step()}) == {1}:
        steps += 1
    assert told == {1, 2}
    assert steps >= 9, "7 tokens a step beside the one that decodes, or fewer"


def test_one_step_reads_several_short_prompts(decoder):
    engine = Engine(decoder, token_budget=32)
    for number in range(6):
        engine.add(request(number, [number] * 8))
    assert [output.id for output in engine.step()] == [0, 1, 2, 3]
    assert (engine.running, engine.waiting) == (4, 2)


def test_cancelling_frees_the_slot_and_gives_no_more_output(decoder):
    engine = Engine(decoder, max_batch=1)
    engine.add(request(1, max_tokens=100))
    engine.add(request(2))
    engine.step()
    assert (engine.running, engine.waiting) == (1, 1)
    assert engine.cancel(1)
    assert not engine.cancel(1)
    assert list(run(engine)) == [2]


def test_a_request_cancelled_while_it_waits_or_is_read_never_answers(decoder):
    engine = Engine(decoder, max_batch=2, token_budget=4)
    engine.add(request(1, [3] * 30))
    engine.add(request(2))
    assert engine.cancel(2)
    assert engine.step() == []
    assert engine.cancel(1)
    assert engine.idle


def test_a_stop_token_ends_the_answer_and_is_reported(decoder):
    tokens = alone(decoder, request(1, max_tokens=8))
    stop = tokens[3]
    engine = Engine(decoder)
    engine.add(request(1, max_tokens=8, stop=[stop]))
    outputs = [output for _ in range(tokens.index(stop) + 1) for output in engine.step()]
    assert engine.idle
    assert (outputs[-1].token, outputs[-1].finish_reason) == (stop, "stop")
    assert all(output.finish_reason is None for output in outputs[:-1])


def test_max_tokens_ends_the_answer_with_length(decoder):
    engine = Engine(decoder)
    engine.add(request(1, max_tokens=3))
    outputs = [output for _ in range(3) for output in engine.step()]
    assert [output.finish_reason for output in outputs] == [None, None, "length"]
    assert engine.idle


def test_an_answer_that_reaches_the_context_ends_with_length(decoder):
    engine = Engine(decoder)
    engine.add(request(1, [1] * 120, max_tokens=1000))
    tokens = run(engine)[1]
    assert len(tokens) == decoder.config.context_length - 120


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(decoder):
    with pytest.raises(Invalid, match="500 tokens.*128"):
        check_prompt([1] * 500, 5, context_length=128, vocab_size=VOCABULARY)
    engine = Engine(decoder)
    engine.add(request(1, [1] * 500))
    engine.add(request(2))
    outputs = engine.step()
    assert [output.id for output in outputs] == [1, 2]
    assert isinstance(outputs[0].error, Invalid)
    assert outputs[1].error is None


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field"),
    [([], 5, "prompt"), ([VOCABULARY], 5, "prompt"), ([-1], 5, "prompt"), ([1], 0, "max_tokens")],
)
def test_a_request_that_cannot_run_is_refused_and_names_the_field(decoder, prompt, max_tokens, field):
    with pytest.raises(Invalid) as refused:
        Engine(decoder).check(prompt, max_tokens)
    assert refused.value.field == field


def test_the_same_id_twice_at_once_is_refused(decoder):
    engine = Engine(decoder)
    engine.add(request(1))
    with pytest.raises(AlreadyExists, match="1"):
        engine.add(request(1))


def test_a_row_without_finite_numbers_ends_and_its_mates_go_on(decoder, monkeypatch):
    engine = Engine(decoder, max_batch=2)
    expected = {number: alone(decoder, request(number, [number, 50])) for number in (1, 3)}
    for number in (1, 2, 3):
        engine.add(request(number, [number, 50]))
    engine.step()
    forward, poisoned = decoder.forward, []

    def damaged(storage, parts):
        logits = forward(storage, parts)
        if not poisoned and len(parts) == 2:
            logits[1] = float("nan")
            storage._tensors[0][parts[1].table] = float("nan")
            poisoned.append(True)
        return logits

    monkeypatch.setattr(decoder, "forward", damaged)
    tokens, errors = {1: [expected[1][0]]}, {}
    while not engine.idle:
        for output in engine.step():
            if output.error:
                errors[output.id] = output.error
            else:
                tokens.setdefault(output.id, []).append(output.token)
    assert isinstance(errors.pop(2), DataLoss)
    assert not errors
    assert {number: tokens[number] for number in (1, 3)} == expected


def test_a_step_that_fails_ends_what_runs_and_the_engine_goes_on(decoder, monkeypatch):
    engine = Engine(decoder, max_batch=2)
    for number in (1, 2, 3):
        engine.add(request(number))
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("out of memory")))
        outputs = engine.step()
    assert {output.id for output in outputs} == {1, 2}
    assert all("out of memory" in str(output.error) for output in outputs)
    assert run(engine) == {3: alone(decoder, request(3))}


def test_a_step_that_the_decoder_refuses_gives_each_an_error_of_its_own(decoder, monkeypatch):
    engine = Engine(decoder)
    engine.add(request(1))
    engine.add(request(2))
    refused = PreconditionFailed("it cannot be cut", remedy="begin anew")
    monkeypatch.setattr(decoder, "forward", lambda *_: (_ for _ in ()).throw(refused))
    first, second = (output.error for output in engine.step())
    assert [(type(error), error.message, error.remedy) for error in (first, second)] == [
        (PreconditionFailed, "it cannot be cut", "begin anew")
    ] * 2
    assert first is not second


def test_parameters_that_spoil_sampling_end_their_own_request_only(decoder, monkeypatch):
    import services.inference.engine.choice as module

    real, bad = module.sample, ResolvedSampling(temperature=0.0, seed=666)

    def sample(logits, states):
        if any(state.params is bad for state in states):
            raise RuntimeError("unusable parameters")
        return real(logits, states)

    engine = Engine(decoder)
    engine.add(request(1))
    engine.add(request(2))
    engine.step()
    engine._batch.places.running[1].sampler.params = bad
    monkeypatch.setattr(module, "sample", sample)
    outputs = engine.step()
    assert outputs[0].error is None
    assert "unusable parameters" in str(outputs[1].error)
    assert engine.running == 1


def test_the_same_seed_gives_the_same_answer_alone_and_in_a_batch(decoder):
    warm = ResolvedSampling(temperature=1.5, top_p=0.95, seed=42)
    first = alone(decoder, request(1, params=warm, max_tokens=30))
    engine = Engine(decoder)
    for number in (1, 2, 3):
        engine.add(
            request(
                number, params=warm if number == 2 else ResolvedSampling(temperature=1.0, seed=number), max_tokens=30
            )
        )
    tokens = run(engine)
    assert tokens[2] == first
    assert tokens[1] != first
    other = ResolvedSampling(temperature=1.5, top_p=0.95, seed=43)
    assert alone(decoder, request(1, params=other, max_tokens=30)) != first


def test_a_cache_limit_shortens_the_batch_and_never_the_answers(decoder):
    wanted = [request(number, [number + 1] * 20, 30) for number in range(5)]
    engine = Engine(decoder, cache_bytes=8 * Engine(decoder).page_bytes)
    for one in wanted:
        engine.add(one)
    most, tokens = 0, {}
    while not engine.idle:
        for output in engine.step():
            tokens.setdefault(output.id, []).append(output.token)
        most = max(most, engine.running)
    assert most == 3, "each needs 2 pages at first and 4 in the end"
    assert tokens == {one.id: alone(decoder, one) for one in wanted}


def test_an_idle_engine_forgets_its_pages(decoder):
    engine = Engine(decoder)
    with_prompt = request(1, [5] * 40)
    engine.add(with_prompt)
    first = run(engine)[1]
    assert engine.pages.cached > 0
    engine.release_cache()
    assert engine.pages.free == engine.pages.pages
    engine.add(with_prompt)
    assert run(engine)[1] == first


def test_a_prompt_that_was_read_before_is_found_and_gives_the_same_answer(decoder):
    engine = Engine(decoder)
    one = request(1, list(range(1, 60)))
    engine.add(one)
    first = run(engine)[1]
    engine.add(one)
    assert run(engine)[1] == first
    assert engine.pages.hits == 48, "full pages, and never the last token"


def test_nobody_finds_the_prompt_of_another_owner(decoder):
    engine = Engine(decoder)
    prompt = list(range(1, 60))
    for number, owner in enumerate(("one", "other", "one", "other")):
        engine.add(msgspec.structs.replace(request(number, prompt), owner=owner))
        run(engine)
        owners = engine.pages.owners
        assert owners[owner].hits == (0 if number < 2 else 48)


def test_an_owner_over_its_quota_waits_while_others_run_and_all_answers_are_right(decoder):
    engine = Engine(decoder)
    engine.set_quota("small", 4)
    wanted = [
        msgspec.structs.replace(request(number, [number + 1] * 20, 30), owner="small" if number < 3 else "large")
        for number in range(6)
    ]
    for one in wanted:
        engine.add(one)
    tokens = {}
    while not engine.idle:
        for output in engine.step():
            assert output.error is None
            tokens.setdefault(output.id, []).append(output.token)
        assert engine.pages.owners.get("small", None) is None or engine.pages.owners["small"].used <= 4
    assert tokens == {one.id: alone(decoder, one) for one in wanted}


def test_everybody_has_a_share_unless_a_quota_says_otherwise(decoder):
    engine = Engine(decoder, cache_bytes=16 * Engine(decoder).page_bytes, owner_share=0.25)
    engine.set_quota("large", 9)
    for number, owner in enumerate(("small", "large")):
        engine.add(msgspec.structs.replace(request(number, [number] * 20), owner=owner))
    run(engine)
    assert {name: owner.quota for name, owner in engine.pages.owners.items()} == {"small": 4, "large": 9}


def test_what_its_quota_can_never_hold_is_refused_with_the_numbers(decoder):
    engine = Engine(decoder)
    engine.set_quota("small", 2)
    engine.add(msgspec.structs.replace(request(1, [1] * 60), owner="small"))
    engine.add(request(2))
    outputs = [output for _ in range(10) for output in engine.step()]
    refused = [output for output in outputs if output.id == 1]
    assert len(refused) == 1
    assert isinstance(refused[0].error, Overloaded)
    assert "4 pages" in refused[0].error.message
    assert "'small' may have 2" in refused[0].error.message
    assert sum(output.id == 2 for output in outputs) == 8


def test_bfloat16_and_many_mates_keep_answers_finite(tmp_path):
    small = tiny_decoder(write_gguf(tmp_path / "tiny.gguf"), torch.bfloat16)
    engine = Engine(small)
    for number, prompt in enumerate(prompts(16, 9)):
        engine.add(request(number, prompt, 100 - len(prompt)))
    assert all(len(tokens) > 0 for tokens in run(engine).values())


def test_a_held_sequence_gives_nothing_until_it_goes_on(decoder):
    engine = Engine(decoder)
    engine.add(request(1))
    engine.add(request(2))
    engine.step()
    engine.hold(1, held=True)
    assert [output.id for output in engine.step()] == [2]
    engine.hold(2, held=True)
    assert engine.idle
    assert engine.step() == []
    engine.hold(1, held=False)
    assert not engine.idle
    assert [output.id for output in engine.step()] == [1]


def test_an_answer_that_outgrows_its_quota_ends_with_an_error_and_what_came_is_right(decoder):
    engine = Engine(decoder)
    engine.set_quota("small", 3)
    one = msgspec.structs.replace(request(1, [9] * 30, 60), owner="small")
    engine.add(one)
    outputs = []
    while not engine.idle:
        outputs += engine.step()
    assert isinstance(outputs.pop().error, Overloaded)
    assert [output.token for output in outputs] == alone(decoder, one)[: len(outputs)]
    assert len(outputs) == 48 - 30 + 1, "the last token was chosen, and its keys found no room"
    assert engine.pages.held == 0


def errors_in(engine: Engine, steps: int) -> dict[int, MicrokernelError]:
    """By request, those that come in so many steps."""
    outputs = [output for _ in range(steps) for output in engine.step()]
    return {output.id: output.error for output in outputs if output.error is not None}


def test_an_answer_that_outgrows_its_quota_ends_though_others_run(decoder):
    engine = Engine(decoder)
    engine.set_quota("small", 3)
    engine.add(msgspec.structs.replace(request(1, [9] * 30, 60), owner="small"))
    engine.add(request(2, [8] * 10, 100))
    assert isinstance(errors_in(engine, 48 - 30 + 3)[1], Overloaded)
    assert engine.running == 1
    assert len(run(engine)[2]) > 50, "the other one goes on"


def test_who_waits_for_more_than_a_lowered_quota_allows_is_refused_though_others_run(decoder):
    engine = Engine(decoder, max_batch=1)
    engine.add(request(1, max_tokens=100))
    for number, length in ((2, 60), (3, 20)):
        engine.add(msgspec.structs.replace(request(number, [number] * length), owner="small"))
    engine.add(msgspec.structs.replace(request(4, [2] * 60), owner="small", fork_of=2))
    engine.step()
    engine.set_quota("small", 2)
    assert set(errors_in(engine, 1)) == {2, 4}, "who follows it too"
    assert (engine.running, engine.waiting) == (1, 1)
    assert len(run(engine)[3]) == 8


def test_who_waits_is_not_looked_at_in_every_step(decoder, monkeypatch):
    looked = []
    hopeless = Batch.is_hopeless
    monkeypatch.setattr(Batch, "is_hopeless", lambda batch, one: looked.append(one) or hopeless(batch, one))
    engine = Engine(decoder, max_batch=1)
    for number in range(5):
        engine.add(request(number, max_tokens=50))
    looked.clear()
    for _ in range(20):
        engine.step()
    assert looked == []


@pytest.fixture(scope="module")
def long_decoder(tmp_path_factory):
    return tiny_decoder(write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", context=1024))


def long_request(number: int, owner: str = "local") -> Request:
    prompt = [(7 * place) % VOCABULARY for place in range(500)]
    return msgspec.structs.replace(request(number, prompt, 20), owner=owner)


def test_a_long_prompt_goes_on_in_another_engine_without_being_read_again(long_decoder, tmp_path):
    expected = alone(long_decoder, long_request(1))
    saved = SavedPages(tmp_path, 1 << 30)
    first = Engine(long_decoder, saved=saved)
    first.add(long_request(1))
    assert run(first)[1] == expected
    saved.close()

    found = SavedPages(tmp_path, 1 << 30)
    assert found.count == 519 // 16, "the last token's keys and values were never needed"
    counting = Counting(long_decoder)
    second = Engine(counting, saved=found)
    second.add(long_request(2))
    assert run(second)[2] == expected
    assert counting.prompt_tokens == 500 - 496, "31 full pages came from the disk"
    found.close()


def test_a_saved_page_that_is_damaged_is_computed_and_the_answer_is_the_same(long_decoder, tmp_path):
    saved = SavedPages(tmp_path, 1 << 30)
    first = Engine(long_decoder, saved=saved)
    first.add(long_request(1))
    expected = run(first)[1]
    saved.flush()
    keys = page_keys(first._space, "local", long_request(1).prompt)
    (tmp_path / keys[10].hex()).write_bytes(b"damaged")
    counting = Counting(long_decoder)
    second = Engine(counting, saved=saved)
    second.add(long_request(2))
    assert run(second)[2] == expected
    assert counting.prompt_tokens == 500 - 160
    saved.close()


def test_nobody_finds_the_saved_prompt_of_another_owner(long_decoder, tmp_path):
    saved = SavedPages(tmp_path, 1 << 30)
    first = Engine(long_decoder, saved=saved)
    first.add(long_request(1, "one"))
    run(first)
    saved.flush()
    counting = Counting(long_decoder)
    second = Engine(counting, saved=saved)
    second.add(long_request(2, "other"))
    run(second)
    assert counting.prompt_tokens == 500
    saved.close()


def test_a_sequence_cancelled_while_its_pages_come_from_disk_leaves_nothing_behind(long_decoder, tmp_path):
    saved = SavedPages(tmp_path, 1 << 30)
    first = Engine(long_decoder, saved=saved)
    first.add(long_request(1))
    expected = run(first)[1]
    saved.flush()
    second = Engine(long_decoder, saved=saved)
    second.add(long_request(2))
    second.step()
    assert second.cancel(2)
    assert second.idle
    assert second.pages.held == 0
    second.add(long_request(3))
    assert run(second)[3] == expected
    saved.close()
