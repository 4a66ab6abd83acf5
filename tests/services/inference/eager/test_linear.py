"""Products with 4-bit, 8-bit and dense weights against the float32 product with the dequantised weight."""

from __future__ import annotations

import gguf
import pytest
import torch
from tiny_models import CPU

from formats.checkpoint.checkpoint import GROUP, Blocks, Dense
from services.inference.eager.linear import (
    EXPAND_ROWS,
    INT4_BYTES,
    DenseLinear,
    Int4Linear,
    Int8Linear,
    int4_fits,
    int8_fits,
    make_linear,
)

needs_kernel = pytest.mark.skipif(not int4_fits(16, CPU, torch.bfloat16), reason="this CPU has no int4 kernel")

needs_tiles = pytest.mark.skipif(not int8_fits(64, 8, CPU, torch.bfloat16), reason="this CPU packs 4 bits otherwise")


def random_blocks(rows: int, columns: int, seed: int = 0) -> Blocks:
    generator = torch.Generator().manual_seed(seed)
    quants = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    scale = torch.rand(rows, columns // GROUP, generator=generator) * 0.01 + 0.001
    zero = torch.randn(rows, columns // GROUP, generator=generator) * 0.01
    return Blocks(quants, scale, zero)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The relative error in the Euclidean norm."""
    return float((got.float() - expected).norm() / expected.norm())


@needs_kernel
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (48, 64), (64, 96), (192, 576), (576, 1536)])
@pytest.mark.parametrize("count", [1, 3, 16, EXPAND_ROWS - 1, EXPAND_ROWS, EXPAND_ROWS + 77])
def test_a_4_bit_product_agrees_with_the_dequantised_one(rows, columns, count):
    blocks = random_blocks(rows, columns)
    x = torch.randn(count, columns, generator=torch.Generator().manual_seed(1)).bfloat16()
    bias = torch.randn(rows).bfloat16()
    expected = x.float() @ blocks.dequantize().t()
    # bfloat16 rounds scales, and outputs, to 2^-9 of their size
    assert error(Int4Linear(blocks)(x), expected) < 0.005
    assert error(Int4Linear(blocks, bias)(x), expected + bias.float()) < 0.005


@needs_kernel
def test_a_weight_larger_than_the_shared_buffer_is_expanded_in_parts(monkeypatch):
    monkeypatch.setattr("services.inference.eager.linear.EXPAND_WEIGHTS", 64 * 96 * 2)
    blocks = random_blocks(64 * 5, 96)
    x = torch.randn(EXPAND_ROWS, 96).bfloat16()
    assert error(Int4Linear(blocks)(x), x.float() @ blocks.dequantize().t()) < 0.005


@needs_kernel
def test_products_work_outside_of_inference_mode_after_they_ran_inside():
    linear, x = Int4Linear(random_blocks(64, 64)), torch.randn(EXPAND_ROWS, 64).bfloat16()
    with torch.inference_mode():
        inside = linear(x)
    assert torch.equal(linear(x), inside)


@needs_kernel
def test_a_4_bit_weight_takes_what_is_promised():
    assert Int4Linear(random_blocks(64, 128)).nbytes == 64 * 128 * INT4_BYTES


@needs_tiles
@pytest.mark.parametrize(("rows", "columns"), [(64, 32), (192, 96)])
def test_an_8_bit_product_and_its_embedding_agree_with_what_q8_0_holds(rows, columns):
    stored = gguf.quantize((torch.randn(rows, columns) * 0.1).numpy(), gguf.GGMLQuantizationType.Q8_0)
    weight = torch.tensor(gguf.dequantize(stored, gguf.GGMLQuantizationType.Q8_0))
    x = torch.randn(5, columns).bfloat16()
    linear = Int8Linear(weight)
    assert error(linear(x), x.float() @ weight.t()) < 0.004
    rows = torch.arange(rows)
    assert error(linear.embed(rows), weight) < 0.003


@needs_tiles
def test_a_large_8_bit_weight_is_packed_in_parts(monkeypatch):
    monkeypatch.setattr("services.inference.eager.linear.EXPAND_WEIGHTS", 64 * 96)
    weight = torch.randn(64 * 3, 96)
    assert error(Int8Linear(weight).embed(torch.tensor([0, 70, 191])), weight[[0, 70, 191]]) < 0.01


@needs_tiles
def test_an_8_bit_table_of_zeros_stays_zero():
    linear = Int8Linear(torch.zeros(64, 32))
    assert not linear(torch.ones(1, 32).bfloat16()).any()
    assert not linear.embed(torch.tensor([0])).any()


@needs_kernel
def test_stacked_blocks_stay_4_bits_and_a_mix_becomes_dense():
    blocks, dense = random_blocks(32, 64), Dense(torch.randn(32, 64), 16)
    assert isinstance(make_linear([blocks, blocks], CPU, torch.bfloat16), Int4Linear)
    mixed = make_linear([blocks, dense], CPU, torch.bfloat16)
    assert isinstance(mixed, DenseLinear)
    x = torch.randn(4, 64)
    expected = x @ torch.cat((blocks.dequantize(), dense.values)).t()
    assert error(mixed(x.bfloat16()), expected) < 0.01


def test_rows_that_the_kernel_cannot_take_and_float32_are_dequantised():
    blocks = random_blocks(20, 64)
    assert isinstance(make_linear([blocks], CPU, torch.bfloat16), DenseLinear)
    exact = make_linear([random_blocks(32, 64)], CPU, torch.float32)
    x = torch.randn(2, 64)
    assert torch.allclose(exact(x), x @ random_blocks(32, 64).dequantize().t(), atol=1e-6)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q4_1])
def test_blocks_dequantise_to_what_the_format_s_library_says(kind, tmp_path):
    from tiny_models import write_gguf

    from formats.checkpoint.checkpoint import open_checkpoint

    path = write_gguf(tmp_path / "tiny.gguf", kind=kind)
    checkpoint = open_checkpoint(path)
    for tensor in gguf.GGUFReader(path).tensors:
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        weight = checkpoint.weight(tensor.name)
        assert isinstance(weight, Blocks) == (expected.dim() == 2)
        assert torch.allclose(weight.dequantize(), expected, atol=1e-6)
