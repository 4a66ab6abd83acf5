"""Packed weights: what they compute against GGML's own numbers, and the file that keeps them.

A model whose layers add nothing shows single matrices: its logits are the head's product with a normed embedding. The
kernels round that input to 8 bits, a step for each 32 numbers, so an output is off by half a step times the weights.
"""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES

from formats.checkpoint.architecture import DecoderConfig, expected_shapes
from formats.checkpoint.checkpoint import Dense, Stored
from microkernel.errors import DataLoss
from services.inference.engine.forward import Part
from services.inference.native.decoder import NativeDecoder
from services.inference.native.weights import file_name, fits, open_weights, packed_bytes

COLUMNS = 256  # a block of K-quants
KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F32", "F16", "BF16", "Q3_K", "IQ4_NL"]
HALF_FLOAT16, HALF_BFLOAT16 = 2.0**-11, 2.0**-8  # what rounding to nearest loses at most, of a number's size
DENSE = {"F32", "F16", "BF16"}
SCALES = {  # where a block has its float16 scales
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
    "Q6_K": [208], "Q3_K": [108], "IQ4_NL": [0],
}  # fmt: skip


class Made:
    """A checkpoint in memory, of one layer that adds nothing."""

    def __init__(self, table: Stored, head: Stored) -> None:
        rows = len(table.rows)
        self.path = Path("made.gguf")
        self.config = DecoderConfig(
            architecture="llama",
            layers=1,
            hidden_size=COLUMNS,
            heads=4,
            kv_heads=2,
            head_dim=64,
            ffn_size=COLUMNS,
            vocab_size=rows,
            context_length=64,
        )
        self._stored = {"token_embd.weight": table, "output.weight": head}
        self._shapes = expected_shapes(self.config)

    def has(self, name):
        return name in self._shapes

    def kind(self, name):
        return self.stored(name).kind

    def stored(self, name):
        return self._stored.get(name) or Stored("F32", np.zeros(self._shapes[name], np.float32).view(np.uint8))

    def weight(self, name, dtype=torch.float32):
        return Dense(torch.ones(self._shapes[name], dtype=dtype), 32)


def random_blocks(kind: str, rows: int, columns: int = COLUMNS) -> Stored:
    """Blocks of random bits, their scales about 0.01."""
    generator = np.random.default_rng(sum(kind.encode()) + rows)
    if kind in DENSE:
        values = generator.normal(0, 0.1, (rows, columns)).astype(np.float32)
        return Stored(kind, np.asarray(gguf.quantize(values, gguf.GGMLQuantizationType[kind])).view(np.uint8))
    block, size = GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = generator.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for offset in SCALES[kind]:
        scales = generator.uniform(0.005, 0.02, len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return Stored(kind, blocks.reshape(rows, -1))


def identity() -> Stored:
    return Stored("F32", np.eye(COLUMNS, dtype=np.float32).view(np.uint8))


def logits(checkpoint: Made, kernels, tokens: list[int], file: Path | None = None) -> np.ndarray:
    team = kernels.team(2)
    try:
        decoder = NativeDecoder(checkpoint, open_weights(checkpoint, kernels, file=file), team)
        storage = decoder.storage(4)
        return decoder.forward(storage, [Part(tokens, 0, storage.table(range(4)), len(tokens))]).numpy()
    finally:
        team.close()


def normed(values: np.ndarray) -> np.ndarray:
    return values / np.sqrt((values.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)


def weights_off(stored: Stored) -> np.ndarray:
    """How far each packed weight may be from GGML's."""
    weights = np.abs(stored.floats().astype(np.float64))
    match stored.kind:
        case "F32" | "F16":
            return weights * HALF_BFLOAT16
        case "Q6_K":
            return weights * HALF_FLOAT16
        case "Q4_K" | "Q5_K":  # scale * quant and the minimum are rounded each for itself, and nearly cancel
            return np.full_like(weights, HALF_FLOAT16 * 0.02 * 63 * (16 if stored.kind == "Q4_K" else 32))
        case "Q3_K" | "IQ4_NL":  # as 8 bits: half a step of the largest in 32
            return weights.reshape(len(weights), -1, 32).max(-1).repeat(32, axis=-1) * (1 / 254 + HALF_FLOAT16)
    return np.zeros_like(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_embedding_is_what_the_format_s_library_says(kind, opened, variant):
    table, tokens = random_blocks(kind, COLUMNS), [0, 1, 15, 16, 100, 255]
    got = logits(Made(table, identity()), opened(variant), tokens)
    expected, root = normed(table.floats()[tokens]), np.sqrt((table.floats()[tokens] ** 2).mean(-1, keepdims=True))
    # Inputs of the identity are bfloat16. The norm divides by a root that is off by no more than the weights are.
    off = weights_off(table)[tokens] / root
    assert (np.abs(got - expected) <= np.abs(expected) * (HALF_BFLOAT16 + off.max()) + off + 1e-6).all()


@pytest.mark.parametrize("rows", [COLUMNS, 37])
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_product_is_what_the_format_s_library_says_within_half_a_step_of_its_inputs(
    kind, rows, opened, variant
):
    table, head = random_blocks("BF16", rows), random_blocks(kind, rows)
    tokens = [*range(9), rows - 1]
    got = logits(Made(table, head), opened(variant), tokens)
    weights = head.floats().astype(np.float64)
    inputs = normed(table.floats()[tokens])
    if kind in DENSE:
        inputs_off = np.abs(inputs) * HALF_BFLOAT16
    else:
        steps = np.abs(inputs.reshape(len(tokens), -1, 32)).max(-1) / 127
        inputs_off = steps.repeat(32, axis=-1) / 2
    bound = inputs_off @ np.abs(weights.T) + (np.abs(inputs) + inputs_off) @ weights_off(head).T
    assert (np.abs(got - inputs @ weights.T) <= bound * 1.001).all()
    # The bound is for the worst of signs; errors add up as their root.
    relative = np.linalg.norm(got - inputs @ weights.T) / np.linalg.norm(inputs @ weights.T)
    assert relative < (0.006 if kind in DENSE else 0.012)


@pytest.mark.parametrize("kind", ["Q4_1", "Q6_K", "BF16", "Q3_K"])
def test_packing_in_slabs_gives_the_same_bytes(kind, kernels, monkeypatch):
    made = Made(random_blocks(kind, 85), random_blocks(kind, 85))
    whole = open_weights(made, kernels, file=None)._bytes.tobytes()
    monkeypatch.setattr("services.inference.native.weights.SLAB", COLUMNS * 32)
    assert open_weights(made, kernels, file=None)._bytes.tobytes() == whole
    assert len(whole) == packed_bytes(made, kernels)


class Counting(Made):
    """Counts what is read of it."""

    def __init__(self) -> None:
        super().__init__(random_blocks("Q4_0", 37), random_blocks("Q8_0", 37))
        self.read = 0

    def stored(self, name):
        self.read += 1
        return super().stored(name)

    def kind(self, name):
        return super().stored(name).kind


@pytest.fixture
def kept(kernels, tmp_path):
    """A checkpoint, the file that has it packed, and the bytes of the weights."""
    made, file = Counting(), tmp_path / "state" / "weights" / "one"
    content = open_weights(made, kernels, file=file)._bytes.tobytes()
    return made, file, content


def test_weights_are_packed_once_and_mapped_later(kept, kernels):
    made, file, content = kept
    packed = made.read
    again = open_weights(made, kernels, file=file)
    assert (made.read, again._bytes.tobytes()) == (packed, content)
    assert open_weights(made, kernels, file=None)._bytes.tobytes() == content
    assert [path.name for path in file.parent.iterdir()] == ["one"]
    assert np.array_equal(logits(made, kernels, [3, 4], file), logits(made, kernels, [3, 4]))


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    match how:
        case "cut off":
            del content[-100:]
        case "longer":
            content += b"more"
        case "a changed byte":
            content[len(content) // 2] ^= 1
        case "another layout":
            content[-8] ^= 1
        case "empty":
            content.clear()
    file.write_bytes(content)


@pytest.mark.parametrize("how", ["cut off", "longer", "a changed byte", "another layout", "empty"])
def test_a_file_that_is_not_whole_is_packed_anew(how, kept, kernels):
    made, file, content = kept
    damage(file, how)
    packed = made.read
    assert open_weights(made, kernels, file=file)._bytes.tobytes() == content
    assert made.read == 2 * packed
    assert open_weights(made, kernels, file=file)._bytes.tobytes() == content
    assert made.read == 2 * packed


def test_weights_go_to_memory_where_no_file_can_be_written(kept, kernels, tmp_path, monkeypatch):
    made, _, content = kept
    (tmp_path / "file").write_text("")
    assert open_weights(made, kernels, file=tmp_path / "file" / "one")._bytes.tobytes() == content

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert open_weights(made, kernels, file=tmp_path / "two")._bytes.tobytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "state"]


def spoilt(kind: str) -> Stored:
    stored = random_blocks(kind, 37)
    rows = stored.rows.copy()
    if kind in DENSE:
        width = {"F32": 4, "F16": 2, "BF16": 2}[kind]
        bits = {"F32": 0x7F800000, "F16": 0x7E00, "BF16": 0xFF80}[kind]
        rows[20, 3 * width : 4 * width] = np.frombuffer(bits.to_bytes(width, "little"), np.uint8)
    else:
        rows[20, SCALES[kind][0] : SCALES[kind][0] + 2] = (0, 0x7C)
    return Stored(kind, rows)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_not_finite_are_told_with_the_tensor_s_name(kind, kernels, tmp_path):
    made = Made(random_blocks("Q8_0", 37), spoilt(kind))
    with pytest.raises(DataLoss, match=r"made\.gguf: tensor output\.weight holds numbers that are not finite"):
        open_weights(made, kernels, file=tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_a_file_s_name_tells_models_and_variants_apart():
    names = {file_name(digest, variant) for digest in ("a", "b") for variant in ("avx2", "neon")}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("hidden_size", 80, "hidden size of 80 is no multiple of 32"),
        ("ffn_size", 100, "feed-forward size of 100 is no multiple of 32"),
        ("head_dim", 24, "head size of 24 is no multiple of 16"),
        ("heads", 1, None),
    ],
)
def test_shapes_that_the_kernels_cannot_take_are_told(field, value, why):
    import msgspec

    config = Made(random_blocks("Q8_0", 32), random_blocks("Q8_0", 32)).config
    got = fits(msgspec.structs.replace(config, **{field: value}))
    assert got is None if why is None else why in (got or "")
