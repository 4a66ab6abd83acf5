"""Texts as tokens, and which of them are computed together."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_bert import LONGEST, WORDS, write_tiny_bert

from microkernel.errors import DataLoss, NotFound
from services.inference.encoder.batches import plan_batches
from services.inference.encoder.tokens import TextTokens, open_tokens

CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> TextTokens:
    return open_tokens(write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny"), LONGEST)


def test_each_text_has_marks_of_its_begin_and_end_and_no_padding(tokens):
    found = tokens.encode(["The cat.", "", "dogs"])
    words = [[WORDS[token] for token in row] for row in found.ids]
    assert words == [["[CLS]", "the", "cat", ".", "[SEP]"], ["[CLS]", "[SEP]"], ["[CLS]", "dog", "##s", "[SEP]"]]
    assert (found.count, found.truncated) == (11, 0)


def test_a_long_text_is_cut_before_its_end_mark(tokens):
    exact, longer = "a " * (LONGEST - 2), "a " * (LONGEST - 1)
    found = tokens.encode([exact, longer + "cat"])
    assert found.ids[0] == found.ids[1]
    assert len(found.ids[1]) == LONGEST
    assert (found.ids[1][0], found.ids[1][-1]) == (CLS, SEP)
    assert found.truncated == 1


@given(
    words=st.lists(st.sampled_from(["a", "cat", "dogs", "??", "x" * 150, "…", "猫"]), max_size=120),
    space=st.sampled_from([" ", "\n", "   ", "\t", " \n"]),
)
def test_of_a_long_text_the_begin_gives_the_same_tokens_as_the_whole(tokens, words, space):
    text = space.join(words)
    whole = tokens._encode([text])[0]
    assert tokens.encode([text]).ids == [tokens._cut(whole)]


def test_a_long_text_of_few_tokens_is_read_to_its_end(tokens):
    text = "x" * 1000 + " " + "y" * 1000 + " cat"
    assert tokens.encode([text]).ids == [[CLS, WORDS.index("[UNK]"), WORDS.index("[UNK]"), WORDS.index("cat"), SEP]]


def test_many_texts_keep_their_order(tokens):
    texts = [("a " * (place % 9)) + "cat" for place in range(600)]
    assert [len(row) for row in tokens.encode(texts).ids] == [place % 9 + 3 for place in range(600)]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = write_tiny_bert(tmp_path / "tiny")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(NotFound, match=r"tokenizer\.json does not exist"):
        open_tokens(folder, LONGEST)
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "nothing"}}))
    with pytest.raises(DataLoss, match="is not a tokenizer"):
        open_tokens(folder, LONGEST)


@given(lengths=st.lists(st.integers(1, 300), max_size=80), budget=st.integers(1, 600))
def test_every_text_is_in_one_batch_and_no_batch_has_more_than_its_tokens(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[place] for place in batch]
        assert sizes == sorted(sizes, reverse=True)
        assert sum(sizes) <= budget or len(batch) == 1
