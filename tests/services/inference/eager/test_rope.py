"""Rotary positions: the scalings as their papers define them, and GGUF's table for Llama 3.1."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest
import torch
from forward_passes import in_chunks
from tiny_models import random_weights, tiny_decoder, write_gguf

from formats.checkpoint.architecture import DecoderConfig, RopeScaling
from formats.checkpoint.rope import frequencies, rotations


def config(**fields) -> DecoderConfig:
    sizes = {"layers": 1, "hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn_size": 64}
    return DecoderConfig(architecture="llama", vocab_size=256, context_length=128, **(sizes | fields))


def test_a_rotation_turns_each_pair_by_position_times_its_frequency():
    turned = rotations(config(), torch.tensor([0, 3, 100]))
    assert turned.shape == (3, 8)
    assert torch.allclose(turned[0], torch.ones(8, dtype=torch.complex64))
    assert torch.allclose(
        turned[2, 5].angle(), torch.tensor(100 * 10000 ** (-10 / 16)).remainder(2 * math.pi), atol=1e-4
    )
    assert torch.allclose(turned.abs(), torch.ones(3, 8))


def test_linear_scaling_is_the_same_as_positions_divided():
    scaled = rotations(config(rope_scaling=RopeScaling(kind="linear", factor=4.0)), torch.tensor([40]))
    assert torch.allclose(scaled, rotations(config(), torch.tensor([10])))


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_scaling_leaves_fast_pairs_alone_and_slows_the_slowest_by_the_factor(kind):
    scaling = RopeScaling(kind=kind, factor=8.0, original_length=4096)
    plain, _ = frequencies(config(head_dim=64, rope_theta=1e6))
    scaled, magnitude = frequencies(config(head_dim=64, rope_theta=1e6, rope_scaling=scaling))
    assert scaled[0] == plain[0]
    assert scaled[-1] == pytest.approx(float(plain[-1]) / 8)
    assert ((scaled <= plain) & (scaled >= plain / 8 * 0.999999)).all()
    assert magnitude == (pytest.approx(0.1 * math.log(8) + 1) if kind == "yarn" else 1.0)


def test_the_table_of_factors_in_a_gguf_file_slows_pairs(tmp_path):
    weights = random_weights(layers=2, tied=True)
    plain = write_gguf(tmp_path / "plain.gguf", weights=weights)
    same = write_gguf(tmp_path / "same.gguf", weights=weights | {"rope_freqs.weight": np.ones(8, np.float32)})
    halved = write_gguf(tmp_path / "half.gguf", weights=weights | {"rope_freqs.weight": np.full(8, 2, np.float32)})
    linear = write_gguf(
        tmp_path / "linear.gguf",
        weights=weights,
        metadata={gguf.Keys.Rope.SCALING_TYPE.format(arch="llama"): "linear", "llama.rope.scaling.factor": 2.0},
    )
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    logits = {path.stem: in_chunks(tiny_decoder(path), tokens) for path in (plain, same, halved, linear)}
    assert torch.equal(logits["plain"], logits["same"])
    assert torch.allclose(logits["half"], logits["linear"], atol=1e-5)
    assert not torch.allclose(logits["plain"], logits["half"], atol=1e-3)
