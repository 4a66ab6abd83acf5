"""The default model on the kernels, as it is served, against the dequantised model in float32, on texts of ours.

Teacher-forced: all read the same tokens, and what each expects after every one of them is compared. What differs is
what rounding inputs to 8 bits costs: a scale for each 16 of them loses 0.0017 nats, and 97.2 % of the likeliest tokens
are the same; one for each 32 lost 0.0031 nats, and 95.6 % were. Pages of 8 bits add 0.0005 nats.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from forward_passes import in_chunks, one_by_one

from formats.checkpoint.checkpoint import open_checkpoint
from formats.text.tokenizer import open_tokenizer
from services.inference.native.decoder import NativeDecoder
from services.inference.native.weights import open_weights

pytestmark = [pytest.mark.peer, pytest.mark.model, pytest.mark.timeout(900)]

LIGHTHOUSE = Path(__file__).parents[1] / "eager" / "lighthouse.txt"
DECISIONS = Path(__file__).parents[4] / "docs" / "decisions"
PIECE = 1000  # tokens: contexts of several spans


class Agreement(NamedTuple):
    """Over all tokens of all texts, beside the dequantised model."""

    same: float  # share of tokens after which the same one is the likeliest
    divergence: float  # mean Kullback-Leibler divergence, nats
    perplexity: float  # of the texts, as a ratio


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """These are whole models: they take the threads that there are."""


@pytest.fixture(scope="module")
def texts(default_model) -> list[list[int]]:
    tokenizer = open_tokenizer(open_checkpoint(default_model).tokenizer_source)
    decisions = "".join(path.read_text() for path in sorted(DECISIONS.glob("0*.md"))[:12])
    story, rest = (
        tokenizer.encode(text, add_bos=False, parse_special=False) for text in (LIGHTHOUSE.read_text(), decisions)
    )
    return [story, *(rest[start : start + PIECE] for start in range(0, len(rest), PIECE))]


@pytest.fixture(scope="module")
def expected(default_model, texts) -> list[torch.Tensor]:
    pytest.importorskip("transformers")
    from reference_model import logits_of, reference_model

    model = reference_model(default_model)
    return [logits_of(model, tokens) for tokens in texts]


@pytest.fixture
def native(default_model, opened):
    """Makes a decoder on the kernels."""
    teams = []

    def make(variant: str, page_dtype: str = "bfloat16") -> NativeDecoder:
        kernels, checkpoint = opened(variant), open_checkpoint(default_model)
        teams.append(kernels.team(2))
        weights = open_weights(checkpoint, kernels, file=None)
        return NativeDecoder(checkpoint, weights, teams[-1], page_dtype=page_dtype)

    yield make
    for team in teams:
        team.close()


def agreement(decoder: NativeDecoder, texts: list[list[int]], expected: list[torch.Tensor]) -> Agreement:
    same, divergence, surprise, tokens = 0.0, 0.0, 0.0, 0
    for text, exact in zip(texts, expected, strict=True):
        ours, theirs = in_chunks(decoder, text, 256).log_softmax(-1), exact.log_softmax(-1)
        same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        divergence += float((theirs.exp() * (theirs - ours)).sum())
        following = torch.tensor(text[1:])[:, None]
        surprise += float((theirs[:-1].gather(1, following) - ours[:-1].gather(1, following)).sum())
        tokens += len(text)
    return Agreement(same / tokens, divergence / tokens, math.exp(surprise / (tokens - len(texts))))


def test_the_kernels_agree_with_the_dequantised_model(native, variant, texts, expected):
    got = agreement(native(variant), texts, expected)
    assert got.same >= 0.96, got
    assert got.divergence < 0.006, got
    assert abs(got.perplexity - 1) < 0.01, got


def test_with_pages_of_8_bits_they_agree_a_little_less(native, variant, texts, expected):
    got = agreement(native(variant, "int8"), texts, expected)
    assert got.same >= 0.955, got
    assert got.divergence < 0.007, got
    assert abs(got.perplexity - 1) < 0.01, got


@pytest.mark.parametrize("page_dtype", ["bfloat16", "int8"])
def test_an_answer_has_the_bits_of_a_prompt(page_dtype, native, variant, texts):
    decoder = native(variant, page_dtype)
    assert torch.equal(one_by_one(decoder, texts[0]), in_chunks(decoder, texts[0], 256))
