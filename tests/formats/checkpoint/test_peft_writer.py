"""Adapters as they are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_adapters import random_pairs
from tiny_training import FAMILIES, tiny_config

from formats.checkpoint.adapter import open_adapter
from formats.checkpoint.peft_writer import write_peft_adapter
from microkernel.errors import AlreadyExists, Invalid


def tensors_of(pairs):
    return {name: (torch.from_numpy(a), torch.from_numpy(b)) for name, (a, b) in pairs.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_that_is_read_is_the_one_that_was_written(tmp_path, family):
    config = tiny_config(family)
    pairs = random_pairs(config, rank=4)
    write_peft_adapter(tmp_path / "out", tensors_of(pairs), config, alpha=8.0)
    weights = open_adapter(tmp_path / "out", config, max_rank=4).weights
    assert weights.keys() == pairs.keys()
    for name, (a, b) in pairs.items():
        assert np.array_equal(weights[name].a, a), name
        assert np.array_equal(weights[name].b, 2.0 * b), name


def test_matrices_without_a_product_are_not_written(tmp_path):
    config = tiny_config()
    pairs = random_pairs(config, targets=("attn_q",), layers=[1])
    write_peft_adapter(tmp_path / "out", tensors_of(pairs), config, alpha=8.0)
    assert list(open_adapter(tmp_path / "out", config, max_rank=8).weights) == ["blk.1.attn_q.weight"]


def test_two_ranks_are_refused(tmp_path):
    config = tiny_config()
    pairs = random_pairs(config, rank=4, targets=("attn_q",)) | random_pairs(config, rank=2, targets=("attn_k",))
    with pytest.raises(Invalid, match=r"one rank, and \[2, 4\]"):
        write_peft_adapter(tmp_path / "out", tensors_of(pairs), config, alpha=8.0)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_is_there_is_not_replaced(tmp_path):
    config = tiny_config()
    pairs = tensors_of(random_pairs(config))
    write_peft_adapter(tmp_path / "out", pairs, config, alpha=8.0)
    with pytest.raises(AlreadyExists):
        write_peft_adapter(tmp_path / "out", pairs, config, alpha=9.0)
