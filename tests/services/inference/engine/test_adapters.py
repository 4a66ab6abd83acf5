"""Adapters in the engine: each request gets its own, pages are never shared across them, and none leaves in use."""

from __future__ import annotations

import random

import pytest
from engine_runs import run
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_adapters import peft_tensors, random_pairs, write_peft
from tiny_models import VOCABULARY, tiny_decoder, write_gguf

from formats.checkpoint.adapter import open_adapter
from microkernel.errors import NotFound, PreconditionFailed
from services.inference.cache.saved import SavedPages
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling

PROMPT = list(range(1, 50))


@pytest.fixture(scope="module")
def adapters(native_decoder, tmp_path_factory):
    """Two, and the first once more."""
    folder, config = tmp_path_factory.mktemp("adapters"), native_decoder.config
    written = [
        write_peft(folder / str(seed), peft_tensors(random_pairs(config, seed=seed), config), lora_alpha=4)
        for seed in (1, 2)
    ]
    return [open_adapter(path, config, max_rank=16) for path in (*written, written[0])]


def asking(number: int, adapter: int | None, prompt=(1, 2, 3), max_tokens: int = 8) -> Request:
    params = ResolvedSampling(temperature=0.0)
    return Request(id=number, prompt=list(prompt), max_tokens=max_tokens, params=params, adapter=adapter)


def by_itself(decoder, adapter, prompt, max_tokens: int) -> list[int]:
    engine = Engine(decoder)
    number = None if adapter is None else engine.add_adapter(adapter)
    engine.add(asking(1, number, prompt=prompt, max_tokens=max_tokens))
    return run(engine)[1]


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(4, 64))
@settings(max_examples=15, deadline=None)
def test_every_answer_is_what_its_request_gets_alone(native_decoder, adapters, seed, max_batch, budget):
    choose = random.Random(seed)
    engine = Engine(native_decoder, max_batch=max_batch, token_budget=budget)
    numbers = [None, *(engine.add_adapter(each) for each in adapters[:2])]
    expected = {}
    for row in range(8):
        which, length = choose.randrange(3), choose.randint(1, 12)
        prompt = [choose.randrange(VOCABULARY) for _ in range(choose.randint(1, 40))]
        if choose.random() < 0.5:
            prompt = PROMPT[: len(prompt)]  # that others begin with too
        engine.add(asking(row, numbers[which], prompt=prompt, max_tokens=length))
        expected[row] = by_itself(native_decoder, [None, *adapters][which], prompt, length)
    assert run(engine) == expected


def test_a_prompt_read_under_another_adapter_or_none_is_not_found(native_decoder, adapters):
    engine = Engine(native_decoder)
    one, two, same = (engine.add_adapter(each) for each in adapters)
    hits = []
    for row, number in enumerate([None, one, two, None, one, two, same]):
        engine.add(asking(row, number, prompt=PROMPT))
        before = engine.pages.hits
        run(engine)
        hits.append(engine.pages.hits - before)
    assert hits == [0, 0, 0, 48, 48, 48, 48], "the same content under another number is the same adapter"


def test_contexts_on_disk_are_kept_apart_too(native_decoder, adapters, tmp_path):
    prompt = [token % VOCABULARY for token in range(300)]
    loaded = []
    saved = SavedPages(tmp_path, 1 << 30)
    for which in (None, 0, 1, 0, None):
        engine = Engine(native_decoder, saved=saved, space=b"model")
        engine.add_adapter(adapters[1])  # numbers are no names
        number = None if which is None else engine.add_adapter(adapters[which])
        engine.add(asking(1, number, prompt=prompt))
        engine.step()
        loaded.append(engine._batch.places.running[0].loading is not None)
        run(engine)
        saved.flush()
    saved.close()
    assert loaded == [False, False, False, True, True]


def test_one_in_use_is_not_removed_running_or_waiting(native_decoder, adapters):
    engine = Engine(native_decoder, max_batch=1)
    one, two, free = (engine.add_adapter(each) for each in adapters)
    engine.add(asking(1, one))
    engine.step()
    engine.add(asking(2, two))
    for number in (one, two):
        with pytest.raises(PreconditionFailed, match="1 requests use the adapter"):
            engine.remove_adapter(number)
    engine.remove_adapter(free)
    engine.remove_adapter(free)
    run(engine)
    engine.remove_adapter(one)
    assert native_decoder._adapters._packed.keys() >= {two}
    assert one not in native_decoder._adapters._packed


def test_a_request_for_one_that_is_gone_gets_its_error_and_the_others_go_on(native_decoder, adapters):
    engine = Engine(native_decoder)
    gone = engine.add_adapter(adapters[0])
    engine.remove_adapter(gone)
    engine.add(asking(1, gone))
    engine.add(asking(2, None))
    outputs = engine.step()
    assert [type(output.error) for output in outputs if output.id == 1] == [NotFound]
    assert run(engine)[2]


def test_an_answer_that_gave_its_pages_to_others_goes_on_with_its_adapter(native_decoder, adapters):
    page = Engine(native_decoder).page_bytes
    engine = Engine(native_decoder, max_batch=4, cache_bytes=8 * page)
    one, two = (engine.add_adapter(each) for each in adapters[:2])
    expected = {}
    for row, which in enumerate([None, 0, 1, 0]):
        number = None if which is None else (one, two)[which]
        engine.add(asking(row, number, prompt=[row + 1] * 20, max_tokens=40))
        adapter = None if which is None else adapters[which]
        expected[row] = by_itself(native_decoder, adapter, [row + 1] * 20, 40)
    assert run(engine) == expected
    assert engine.pages.misses > 4 * 20, "somebody was computed again"


def test_plain_torch_keeps_them_apart_as_well(tmp_path, adapters):
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf", context=512))
    engine = Engine(decoder)
    number = engine.add_adapter(adapters[0])
    engine.add(asking(1, number, prompt=PROMPT))
    engine.add(asking(2, None, prompt=PROMPT))
    got = run(engine)
    assert got[2] == by_itself(decoder, None, PROMPT, 8)
    assert got[1] != got[2]
