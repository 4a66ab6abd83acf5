"""The default model, 4-bit weights and all, against an independent float32 engine on a page of English.

Teacher-forced: every engine reads the same tokens, and its prediction after each is compared. Greedy text is no
measure, as one near tie sends two faithful engines different ways.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forward_passes import in_chunks, one_by_one
from tiny_models import CPU

from formats.checkpoint.checkpoint import open_checkpoint
from formats.text.tokenizer import open_tokenizer
from services.inference.eager.decoder import Decoder, choose_dtype

pytestmark = [pytest.mark.peer, pytest.mark.model, pytest.mark.timeout(900)]

TEXT = Path(__file__).with_name("lighthouse.txt")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """These are whole models: they take the threads that there are."""


@pytest.fixture(scope="module")
def tokens(default_model) -> list[int]:
    tokenizer = open_tokenizer(open_checkpoint(default_model).tokenizer_source)
    return tokenizer.encode(TEXT.read_text(), add_bos=False, parse_special=False)


@pytest.fixture(scope="module")
def expected(default_model, tokens) -> torch.Tensor:
    pytest.importorskip("transformers")
    from reference_model import reference_logits

    return reference_logits(default_model, tokens)


def agreement(logits: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """The share of tokens with the same likeliest successor, and the mean Kullback-Leibler divergence in nats."""
    ours, theirs = logits.log_softmax(-1), expected.log_softmax(-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    return float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()), float(divergence.mean())


def test_in_float32_it_is_the_same_model(default_model, tokens, expected):
    assert len(tokens) >= 500
    same, divergence = agreement(
        in_chunks(Decoder(open_checkpoint(default_model), device=CPU, dtype=torch.float32), tokens, 256), expected
    )
    assert same >= 0.998
    assert divergence < 1e-6


@pytest.mark.parametrize("feed", [in_chunks, one_by_one], ids=["prompt", "answer"])
def test_as_it_is_served_it_agrees_with_the_dequantised_model(default_model, tokens, expected, feed):
    decoder = Decoder(open_checkpoint(default_model), device=CPU, dtype=choose_dtype(CPU))
    same, divergence = agreement(feed(decoder, tokens), expected)
    assert same >= 0.96
    assert divergence < 0.01
