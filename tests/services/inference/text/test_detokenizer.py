"""Text that grows token by token is the text of all tokens, and never shows half a character."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_level, sentencepiece

from formats.text.tokenizer import Tokenizer, open_tokenizer
from services.inference.text.detokenizer import IncrementalText

BYTES = open_tokenizer(byte_level())
PIECEWISE = open_tokenizer(sentencepiece())
BOTH = st.sampled_from([BYTES, PIECEWISE])
TEXTS = ["🦊👩‍👩‍👧‍👦", "日本語 한국어", "e\u0301 a\u0308\u0323", "नमस्ते", " leading", "plain"]


def pieces_of(tokenizer: Tokenizer, ids: list[int], *, continues: bool = False) -> list[str]:
    text = IncrementalText(tokenizer, continues=continues)
    return [*(text.push(token) for token in ids), text.flush()]


@given(tokenizer=BOTH, ids=st.lists(st.integers(-1, 300), max_size=40), continues=st.booleans())
@settings(deadline=None)
def test_any_tokens_give_in_pieces_what_they_give_at_once(tokenizer, ids, continues):
    assert "".join(pieces_of(tokenizer, ids, continues=continues)) == tokenizer.decode(ids, continues=continues)


@given(tokenizer=BOTH, text=st.text(st.characters(exclude_categories=["Cs"])), cut=st.integers(0, 30))
@example(tokenizer=BYTES, text="🦊", cut=2)
@settings(deadline=None)
def test_text_cut_anywhere_gives_in_pieces_what_it_gives_at_once(tokenizer, text, cut):
    ids = tokenizer.encode(text, add_bos=False, parse_special=False)[:cut]
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [BYTES, PIECEWISE], ids=["bytes", "pieces"])
def test_a_character_comes_whole_with_its_last_byte(tokenizer, text):
    pieces = pieces_of(tokenizer, tokenizer.encode(text, add_bos=False, parse_special=False))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert pieces[-1] == ""


def test_bytes_of_a_character_are_held_back_until_it_is_complete():
    ids = BYTES.encode("🦊!", add_bos=False, parse_special=False)
    assert pieces_of(BYTES, ids) == ["", "", "", "🦊", "!", ""]


def test_a_character_that_cannot_be_completed_any_more_becomes_a_replacement_at_once():
    fox = BYTES.encode("🦊", add_bos=False, parse_special=False)
    letter = BYTES.encode("x", add_bos=False, parse_special=False)
    assert pieces_of(BYTES, fox[:2] + letter) == ["", "", "\ufffdx", ""]
    assert pieces_of(BYTES, fox[:2]) == ["", "", "\ufffd"]


def test_control_tokens_are_not_shown_and_do_not_break_a_character():
    fox = BYTES.encode("🦊", add_bos=False, parse_special=False)
    assert pieces_of(BYTES, [1, *fox[:2], 3, *fox[2:], 2]) == ["", "", "", "", "", "🦊", "", ""]


def test_a_first_space_stays_when_the_answer_goes_on_from_a_text():
    ids = PIECEWISE.encode("ab", add_bos=False, parse_special=False)
    assert "".join(pieces_of(PIECEWISE, ids)) == "ab"
    assert "".join(pieces_of(PIECEWISE, ids, continues=True)) == " ab"
