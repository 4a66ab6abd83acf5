"""A matcher: what may come next, where the text may end, and that its tokens alone bring it back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microkernel.errors import Invalid
from services.inference.messages import Grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "true": {"type": "boolean"},
        "n": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["name"],
}


def allowed(matcher, vocab_size: int) -> tuple[list[int], bool]:
    bits = np.zeros(-(-vocab_size // 8), dtype=np.uint8)
    ends = matcher.fill(bits)
    return np.flatnonzero(np.unpackbits(bits, count=vocab_size, bitorder="little")).tolist(), ends


def ids(tokenizer, text: str) -> list[int]:
    return [
        next(t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t) == bytes([byte]))
        for byte in text.encode()
    ]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices=st.lists(st.integers(0, 10_000), max_size=30))
def test_the_tokens_of_an_answer_bring_its_matcher_back_exactly(compiler, choices):
    grammar = compiler.compile_now(Grammar(json_schema=SCHEMA))
    matcher, tokens = grammar.start(), []
    for choice in choices:
        some, ends = allowed(matcher, grammar.vocab_size)
        again = grammar.start(tokens)
        assert allowed(again, grammar.vocab_size) == (some, ends)
        assert again.complete == matcher.complete
        if not some:
            break
        tokens.append(some[choice % len(some)])
        matcher.advance(tokens[-1])


def test_only_tokens_that_go_on_are_allowed_and_no_control_token_or_padding(compiler, tokenizer):
    grammar = compiler.compile_now(Grammar(regex="ab?"))
    some, ends = allowed(grammar.start(), grammar.vocab_size)
    assert not ends
    assert {tokenizer.token_bytes(token) for token in some} <= {b"a", b"ab"}
    assert not set(some) & tokenizer.special_ids
    assert max(some) < tokenizer.vocab_size


def test_it_says_where_the_text_may_end_and_where_it_must(compiler, tokenizer):
    grammar = compiler.compile_now(Grammar(regex="ab?"))
    matcher = grammar.start(ids(tokenizer, "a"))
    some, ends = allowed(matcher, grammar.vocab_size)
    assert (bool(some), ends, matcher.complete) == (True, True, False)
    matcher.advance(ids(tokenizer, "b")[0])
    assert matcher.complete
    assert allowed(matcher, grammar.vocab_size) == ([], True)


def test_what_must_come_is_one_token_as_the_model_was_taught_to_cut_it(one_compiler, byte_level):
    grammar = one_compiler.compile_now(Grammar(json_schema={"const": True}))
    some, _ = allowed(grammar.start(), grammar.vocab_size)
    assert [byte_level.token_bytes(token) for token in some] == [b"true"]


def test_answers_by_one_grammar_do_not_touch_each_other(compiler, tokenizer):
    grammar = compiler.compile_now(Grammar(regex="[ab]{3}"))
    one, other = grammar.start(), grammar.start()
    before = allowed(other, grammar.vocab_size)
    one.advance(ids(tokenizer, "a")[0])
    assert allowed(other, grammar.vocab_size) == before


def test_after_a_token_that_was_not_allowed_it_says_so(compiler, tokenizer):
    grammar = compiler.compile_now(Grammar(regex="ab"))
    matcher = grammar.start()
    matcher.advance(ids(tokenizer, "b")[0])
    with pytest.raises(Invalid, match="cannot be followed") as failure:
        allowed(matcher, grammar.vocab_size)
    assert failure.value.field == "grammar"
    assert not matcher.complete


@pytest.mark.parametrize("text", ["é\u0301", "e\u0301 \u212b", "日本語", "\x02\x02", "  a", "▁a"])
def test_texts_that_the_encoder_would_change_are_written_byte_by_byte(compiler, tokenizer, text):
    grammar = compiler.compile_now(Grammar(choice=[text]))
    matcher, raw = grammar.start(), b""
    while not matcher.complete:
        some, ends = allowed(matcher, grammar.vocab_size)
        assert not ends
        matcher.advance(some[-1])
        raw += tokenizer.token_bytes(some[-1])
    assert raw == text.encode()
