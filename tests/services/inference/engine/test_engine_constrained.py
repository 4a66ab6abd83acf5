"""Grammars, biases and log-probabilities in an engine, in batches with requests that ask for none of it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from constrained_writing import Letters
from forward_passes import one_by_one
from tiny_models import VOCABULARY, tiny_decoder, write_gguf

from microkernel.errors import Invalid
from services.inference.engine.engine import Engine, Request
from services.inference.engine.output import Output
from services.inference.engine.sampler import ResolvedSampling
from services.inference.grammar.compiler import GrammarCompiler
from services.inference.messages import Grammar

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "string", "maxLength": 3}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return tiny_decoder(write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", context=512))


@pytest.fixture(scope="module")
def compiler():
    made = GrammarCompiler(Letters(), VOCABULARY)
    yield made
    made.close()


def request(number: int, *, seed: int = 0, **fields) -> Request:
    fields = {"max_tokens": 300, "stop_tokens": frozenset({0}), **fields}
    params = ResolvedSampling(temperature=1.5, seed=seed)
    return Request(id=number, prompt=[1 + number, 2, 3], params=params, **fields)


def run(engine: Engine) -> dict[int, list[Output]]:
    outputs: dict[int, list[Output]] = {}
    while not engine.idle:
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
    return outputs


def alone(decoder, one: Request) -> list[Output]:
    engine = Engine(decoder)
    engine.add(one)
    return run(engine)[one.id]


def text(outputs: list[Output]) -> str:
    return bytes(output.token for output in outputs if output.finish_reason != "stop").decode()


def test_answers_of_a_mixed_batch_fit_their_grammars_and_are_those_that_each_gives_alone(decoder, compiler):
    regex = r"[a-z]{2,9}-[0-9]+"
    schema, expression = Grammar(json_schema=SCHEMA), Grammar(regex=regex)
    wanted = [
        request(0, max_tokens=40),
        request(1, seed=1, grammar=compiler.compile_now(schema)),
        request(2, seed=2, grammar=compiler.compile_now(expression), logprobs=3),
        request(3, seed=3, max_tokens=40, logit_bias=((65, 30.0),)),
        request(4, seed=4, grammar=compiler.compile_now(schema)),
        request(5, seed=5, grammar=compiler.compile_now(Grammar(choice=["yes", "no"]))),
    ]
    engine = Engine(decoder, max_batch=4, token_budget=5)
    for one in wanted:
        engine.add(one)
    outputs = run(engine)
    for one in wanted:
        assert [output.token for output in outputs[one.id]] == [output.token for output in alone(decoder, one)]
    for number in (1, 4):
        assert set(json.loads(text(outputs[number]))) == {"a", "b"}
        assert outputs[number][-1].finish_reason == "complete"
    assert re.fullmatch(regex, text(outputs[2]))
    assert {output.token for output in outputs[3]} == {65}
    assert text(outputs[5]) in {"yes", "no"}


def test_an_answer_ends_with_its_grammar_also_where_the_model_has_no_token_for_it(decoder, compiler):
    grammar = compiler.compile_now(Grammar(choice=["abc"]))
    outputs = alone(decoder, request(1, grammar=grammar, stop_tokens=frozenset()))
    assert (text(outputs), outputs[-1].finish_reason) == ("abc", "complete")


def test_an_answer_that_reaches_its_limit_is_cut_there(decoder, compiler):
    outputs = alone(decoder, request(1, grammar=compiler.compile_now(Grammar(regex="a*b")), max_tokens=1))
    assert outputs[-1].finish_reason in {"length", "complete"}
    assert len(outputs) == 1


def test_an_answer_that_cannot_go_on_ends_with_an_error_of_its_own(decoder, compiler):
    # The only way to go on is a token that would end the answer.
    grammar = compiler.compile_now(Grammar(regex="ab"))
    engine = Engine(decoder)
    engine.add(request(1, grammar=grammar, stop_tokens=frozenset({ord("b")})))
    engine.add(request(2, max_tokens=5))
    outputs = run(engine)
    error = outputs[1][-1].error
    assert isinstance(error, Invalid)
    assert error.field == "grammar"
    assert "allows nothing" in error.message
    assert [output.error for output in outputs[2]] == [None] * len(outputs[2])


def test_a_sequence_that_gave_its_pages_up_goes_on_in_its_grammar(decoder, compiler):
    grammar = compiler.compile_now(Grammar(regex="[a-z]{60}"))
    wanted = [request(number, seed=number, grammar=grammar) for number in range(4)]
    engine = Engine(decoder, max_batch=4, cache_bytes=decoder.storage(1).page_bytes * 8)
    for one in wanted:
        engine.add(one)
    outputs = run(engine)
    for one in wanted:
        assert re.fullmatch("[a-z]{60}", text(outputs[one.id]))


def test_log_probabilities_are_those_of_the_models_own_logits_whatever_changes_the_choice(decoder, compiler):
    grammar = compiler.compile_now(Grammar(regex="[a-z]{5}"))
    one = request(1, grammar=grammar, logit_bias=((97, 5.0),), logprobs=4)
    outputs = alone(decoder, one)
    tokens = list(one.prompt)
    for output in outputs:
        raw = torch.log_softmax(one_by_one(decoder, tokens)[-1].double(), dim=-1)
        assert output.logprobs.logprob == pytest.approx(float(raw[output.token]), abs=1e-3)
        assert [value for _, value in output.logprobs.top] == pytest.approx(raw.topk(4).values.tolist(), abs=1e-3)
        tokens.append(output.token)


def test_who_asks_for_no_log_probabilities_gets_none(decoder):
    engine = Engine(decoder)
    engine.add(request(1, max_tokens=3, logprobs=0))
    engine.add(request(2, max_tokens=3))
    outputs = run(engine)
    assert all(output.logprobs is not None and output.logprobs.top == () for output in outputs[1])
    assert all(output.logprobs is None for output in outputs[2])
