"""Compilers of grammars for small vocabularies of both kinds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tiny_tokenizers
from tiny_model import write_tiny_model

from formats.text.tokenizer import Tokenizer, open_tokenizer
from services.inference.grammar.compiler import GrammarCompiler

PADDING = 5  # logits that no token has


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return open_tokenizer(tiny_tokenizers.byte_level(words=('{"', '":', "tr", "ue", "true", "12", "hello", "Ġhello")))


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    return open_tokenizer(tiny_tokenizers.sentencepiece())


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece", "folder"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(tokenizer, tokenizer.vocab_size + PADDING)
    yield made
    made.close()


@pytest.fixture(scope="module")
def one_compiler(byte_level: Tokenizer) -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(byte_level, byte_level.vocab_size + PADDING)
    yield made
    made.close()
