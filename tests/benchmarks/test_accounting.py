"""The lines on what counting costs compare what they say that they do."""

from __future__ import annotations

import msgspec
import pytest
from tiny_models import tiny_decoder, write_gguf

from benchmarks.engine.accounting import _Timed, _without_prefixes
from services.inference.engine.engine import Engine, Request
from services.inference.engine.sampler import ResolvedSampling

REQUEST = Request(id=1, prompt=list(range(40)), max_tokens=8, params=ResolvedSampling(temperature=0.0))


@pytest.fixture
def engine(tmp_path) -> Engine:
    return Engine(_Timed(tiny_decoder(write_gguf(tmp_path / "tiny.gguf"))))


def run(engine: Engine, request: Request) -> list[int]:
    engine.add(request)
    tokens = []
    while not engine.idle:
        tokens += [output.token for output in engine.step()]
    return tokens


def test_without_prefixes_nothing_is_cached_or_found_and_the_answer_is_the_same(engine):
    expected = run(engine, REQUEST)
    assert engine.pages.cached > 0
    engine.relief.resize(engine.pages.pages)
    engine.release_cache()
    _without_prefixes(engine)
    for number in (2, 3):
        assert run(engine, msgspec.structs.replace(REQUEST, id=number)) == expected
    assert (engine.pages.cached, engine.pages.held, engine.pages.hits) == (0, 0, 0)


def test_a_timed_decoder_says_how_long_its_pass_took(engine):
    run(engine, REQUEST)
    assert engine._decoder.seconds > 0
