"""Examples of texts and completions: which tokens they have, and which of them are learned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_tokenizers import byte_level, sentencepiece

from formats.text.tokenizer import Tokenizer, open_tokenizer
from microkernel.errors import Invalid
from services.training.data.examples import Example, Examples
from services.training.data.records import Completion, Record, Text

BYTES = open_tokenizer(byte_level())
PIECES = open_tokenizer(sentencepiece())


def example(tokenizer: Tokenizer, record: Record) -> Example:
    (found,) = Examples(tokenizer, "text").of(record)
    return found


def test_a_text_begins_with_the_models_first_token_where_it_wants_one_and_ends_with_its_last():
    tokens = example(PIECES, Text("ab")).tokens.tolist()
    assert (tokens[0], tokens[-1]) == (PIECES.bos_id, PIECES.special_tokens["</s>"])
    tokens = example(BYTES, Text("hello")).tokens.tolist()
    assert tokens == [*BYTES.encode("hello", add_bos=False, parse_special=False), 2]


def test_all_of_a_text_is_learned_but_its_first_token():
    assert example(BYTES, Text("abc")).learned.tolist() == [False, True, True, True]


def test_names_of_control_tokens_in_a_text_are_text():
    assert BYTES.special_ids & set(example(BYTES, Text("<|im_start|>a<|im_end|>")).tokens.tolist()) == {2}


def test_a_model_without_a_token_for_it_ends_texts_with_nothing():
    tokenizer = open_tokenizer(byte_level())
    tokenizer.template_tokens, tokenizer.eos_ids = {}, frozenset()
    assert example(tokenizer, Text("ab")).tokens.tolist() == tokenizer.encode("ab", add_bos=False, parse_special=False)


def test_a_single_token_without_one_before_or_behind_it_is_refused():
    tokenizer = open_tokenizer(byte_level())
    tokenizer.template_tokens, tokenizer.eos_ids = {}, frozenset()
    with pytest.raises(Invalid, match="nothing to learn"):
        example(tokenizer, Text("a"))


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_a_completion_is_learned_and_its_prompt_is_not(tokenizer):
    found = example(tokenizer, Completion("ab ab", " ba"))
    learned = found.tokens[found.learned].tolist()
    assert tokenizer.decode(learned, continues=True) == " ba"
    assert learned[-1] in tokenizer.eos_ids
    assert tokenizer.decode(found.tokens[~found.learned].tolist()) == "ab ab"


TEXTS = st.text(st.sampled_from("helo abc\n"), min_size=1, max_size=12)


@given(prompt=TEXTS, completion=TEXTS.filter(lambda text: text.strip()))
def test_a_prompts_tokens_are_those_that_it_has_alone(prompt: str, completion: str):
    found = example(BYTES, Completion(prompt, completion))
    alone = BYTES.encode(prompt, add_bos=False, parse_special=False)
    assert found.tokens[: len(alone)].tolist() == alone
    assert found.learned.tolist() == [False] * len(alone) + [True] * (len(found.tokens) - len(alone))
    assert BYTES.decode(found.tokens.tolist()) == prompt + completion


def test_a_completion_without_a_prompt_is_learned_but_for_its_first_token():
    assert example(BYTES, Completion("", "abc")).learned.tolist() == [False, True, True, True]
