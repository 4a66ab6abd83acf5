"""Matrices in 4 bits: what is packed, what it takes, and the products with it."""

from __future__ import annotations

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_gguf
from tiny_training import batch_of, gradients_of

from formats.checkpoint.checkpoint import Blocks, open_checkpoint
from services.training.config import MethodConfig
from services.training.model.four_bit import DenseMatrix, FourBitMatrix, round_to_blocks
from services.training.model.loading import open_model
from services.training.model.products import frozen_product

CPU = torch.device("cpu")
NUMBERS = st.floats(-1e4, 1e4, width=32)


def random_blocks(rows: int, groups: int, seed: int, *, half: bool) -> Blocks:
    generator = torch.Generator().manual_seed(seed)
    quants = torch.randint(0, 16, (rows, 32 * groups), generator=generator, dtype=torch.uint8)
    scale, minimum = torch.randn(rows, groups, generator=generator), torch.randn(rows, groups, generator=generator)
    if half:
        scale, minimum = scale.half().float(), minimum.half().float()
    return Blocks(quants, scale, minimum + 8.0 * scale)


@settings(deadline=None)
@given(rows=st.integers(1, 7), groups=st.integers(1, 3), seed=st.integers(0, 999), half=st.booleans())
def test_expanding_gives_the_bits_of_the_file(rows, groups, seed, half):
    blocks = random_blocks(rows, groups, seed, half=half)
    packed = FourBitMatrix(blocks, CPU).dense(torch.float32)
    torch.testing.assert_close(packed, blocks.dequantize(), rtol=0 if half else 1e-5, atol=0 if half else 1e-5)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_a_files_blocks_expand_to_what_the_file_says(tmp_path, kind):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType[kind]))
    blocks = checkpoint.weight("blk.0.ffn_up.weight")
    matrix = FourBitMatrix(blocks, CPU)
    assert torch.equal(matrix.dense(torch.float32), blocks.dequantize())
    assert matrix.nbytes == 128 * 64 * 5 // 8


def test_a_matrix_of_many_slabs_expands_whole():
    blocks = random_blocks(5000, 2, 0, half=True)
    assert torch.equal(FourBitMatrix(blocks, CPU).dense(torch.float32), blocks.dequantize())


def test_bfloat16_is_the_rounded_float32():
    blocks = random_blocks(9, 2, 0, half=True)
    assert torch.equal(FourBitMatrix(blocks, CPU).dense(torch.bfloat16), blocks.dequantize().bfloat16())


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=32, max_size=32))
def test_rounding_stays_within_a_step_of_each_group(numbers):
    values = torch.tensor([numbers])
    blocks = round_to_blocks(values)
    step = (values.max() - values.min()) / 15.0
    error = (blocks.dequantize() - values).abs().max()
    assert error <= 0.75 * step + 2e-3 * values.abs().max() + 1e-6


def test_the_product_and_its_gradient_are_those_of_the_dense_matrix():
    blocks = random_blocks(6, 2, 3, half=True)
    results = []
    for matrix in (FourBitMatrix(blocks, CPU), DenseMatrix(blocks.dequantize())):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = frozen_product(x, matrix, None)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_between_the_ways_no_dense_weight_is_kept():
    kept: list[torch.Tensor] = []
    blocks = random_blocks(512, 2, 0, half=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        frozen_product(torch.randn(1, 64, requires_grad=True), FourBitMatrix(blocks, CPU), None)
    assert sum(tensor.numel() for tensor in kept) == 64


def test_a_model_of_a_4_bit_file_trains_as_its_dequantised_one(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q4_1))
    batch = batch_of([9], vocabulary=256)
    dense, packed = (
        open_model(checkpoint, MethodConfig(four_bit=four_bit, rank=4), dtype=torch.float32)
        for four_bit in (False, True)
    )
    assert torch.equal(dense.logits(batch), packed.logits(batch))
    assert torch.equal(gradients_of(dense, batch), gradients_of(packed, batch))


def test_a_dense_file_is_rounded_when_asked(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf"))
    dense, packed = (open_model(checkpoint, MethodConfig(four_bit=four_bit)) for four_bit in (False, True))
    tables = 4 * (256 * 64 + 64)
    assert packed.frozen_bytes - tables == (dense.frozen_bytes - tables) * 5 // 32
