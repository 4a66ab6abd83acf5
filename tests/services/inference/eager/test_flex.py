"""Attention over pages where they lie: the logits of the gathering one, or it is not used."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from forward_passes import lanes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import CPU, VOCABULARY, tiny_decoder, write_gguf
from torch.nn.attention.flex_attention import flex_attention

from formats.checkpoint.checkpoint import open_checkpoint
from services.inference.cache.keys import PAGE
from services.inference.eager.decoder import Decoder
from services.inference.eager.fixed import FixedAttention, FixedSteps
from services.inference.eager.flex import FlexAttention, fused

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

TOKENS = [int(token) for token in torch.randint(0, VOCABULARY, (200,), generator=torch.Generator().manual_seed(4))]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
WINDOWS = {"full": {}, "window": {"llama.attention.sliding_window": 20}}


def flexible(path, attend=flex_attention, *, attends=None) -> Decoder:
    decoder = Decoder(open_checkpoint(path), device=CPU, dtype=torch.float32, fixed=True)
    decoder._steps = FixedSteps(decoder, CPU, fused=attends or partial(FlexAttention, attend))
    return decoder


def decode(decoder: Decoder, lengths: list[int], steps: int) -> list[torch.Tensor]:
    several = lanes(decoder, len(lengths), length=180)
    for number, (lane, length) in enumerate(zip(several, lengths, strict=True)):
        decoder.forward(lane.storage, [lane.part(TOKENS[number : number + length], 0)])
    return [
        decoder.forward(several[0].storage, [lane.part([TOKENS[lane.length]]) for lane in several])
        for _ in range(steps)
    ]


@pytest.fixture(scope="module", params=WINDOWS)
def path(request, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("flex") / "tiny.gguf", context=256, metadata=WINDOWS[request.param])


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(1, 150), min_size=1, max_size=4), st.integers(1, 4))
def test_it_gives_the_logits_of_plain_steps(path, lengths, steps):
    decoder = flexible(path)
    for ours, expected in zip(decode(decoder, lengths, steps), decode(tiny_decoder(path), lengths, steps), strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)
    assert decoder._steps._trusted


@pytest.mark.parametrize("window", [None, 1, 16, 20, 40])
def test_its_blocks_are_the_pages_that_hold_what_the_mask_shows(window, tmp_path):
    """The compiled kernel looks at these blocks only; uncompiled, torch looks at the mask only."""
    decoder = tiny_decoder(write_gguf(tmp_path / "tiny.gguf"))
    pages = decoder.storage(1).__class__(decoder.config, 12, CPU, torch.float32, by_layer=True)
    scratch = pages.scratch
    tables = torch.tensor([[7, 2, 9, 7], [4, 4, 4, 4], [scratch] * 4, [2, 3, 11, 0]])
    positions = torch.tensor([37, 0, 0, 63])
    mask = FlexAttention(flex_attention, pages, positions, tables)._mask(window)
    for row, (table, position) in enumerate(zip(tables.tolist(), positions.tolist(), strict=True)):
        keys = torch.arange(PAGE * (pages.count + 1))
        at = torch.full_like(keys, row)
        shown = keys[mask.mask_mod(at, at, at, keys)].tolist()
        first = 0 if window is None else max(0, position + 1 - window)
        assert sorted(shown) == sorted(
            table[place // PAGE] * PAGE + place % PAGE for place in range(first, position + 1)
        )
        blocks = mask.kv_indices[row, 0, 0, : mask.kv_num_blocks[row, 0, 0]].tolist()
        assert sorted(blocks) == sorted({key // PAGE for key in shown})


def test_where_it_gives_other_logits_pages_are_gathered_and_it_is_said(path, caplog):
    decoder = flexible(path, lambda q, *_, **__: torch.zeros_like(q))
    with caplog.at_level(logging.WARNING):
        ours = decode(decoder, [40, 3], 2)
    for mine, expected in zip(ours, decode(tiny_decoder(path), [40, 3], 2), strict=True):
        torch.testing.assert_close(mine, expected, **CLOSE)
    assert ["differ" in record.message for record in caplog.records] == [True]


def test_where_it_cannot_be_compiled_pages_are_gathered_and_it_is_said(path, caplog):
    def refuse(*_, **__):
        raise ImportError("no module named triton")

    decoder = flexible(path, refuse)
    with caplog.at_level(logging.WARNING):
        ours = decode(decoder, [40], 2)
    torch.testing.assert_close(ours[1], decode(tiny_decoder(path), [40], 2)[1], **CLOSE)
    assert ["triton" in record.message for record in caplog.records] == [True]
    assert next(iter(decoder._steps._steps.values())).attends is FixedAttention


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_it_gives_the_same(path):
    decoder = flexible(path, attends=fused())
    expected = decode(tiny_decoder(path), [150, 3, 40, 17], 5)
    for ours, right in zip(decode(decoder, [150, 3, 40, 17], 5), expected, strict=True):
        torch.testing.assert_close(ours, right, **CLOSE)
    assert decoder._steps._trusted


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_on_a_gpu_it_is_compiled_recorded_and_trusted(tmp_path, head_dim):
    path = write_gguf(tmp_path / "tiny.gguf", context=256, head_dim=head_dim)
    decoder = Decoder(open_checkpoint(path), device=torch.device("cuda"), dtype=torch.bfloat16, flex=True)
    expected = decode(tiny_decoder(path), [150, 3, 40, 17], 5)
    for ours, right in zip(decode(decoder, [150, 3, 40, 17], 5), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), right, atol=0.1, rtol=0.05)
    assert decoder._steps._trusted
