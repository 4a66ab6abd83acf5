"""GGUF files: every type is read as the format's library reads it, and damage is named before it is believed."""

from __future__ import annotations

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from forward_passes import in_chunks
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_weights, tiny_decoder, write_folder, write_gguf

from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import DataLoss, Invalid, MicrokernelError, NotFound
from services.inference.eager.decoder import Decoder, weight_bytes

ENCODED = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.TQ1_0, Kind.TQ2_0]
# The library decodes these and cannot encode them: any bytes are a valid block, but for its scales.
DECODED = [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS, Kind.IQ2_XXS, Kind.IQ2_XS]
DECODED += [Kind.IQ2_S, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ1_S, Kind.IQ1_M]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf").read_bytes()


def opened(path, data: bytes):
    path.write_bytes(data)
    return open_checkpoint(path)


@pytest.mark.parametrize("kind", ENCODED, ids=lambda kind: kind.name)
def test_a_file_of_each_type_gives_the_logits_of_its_dequantised_weights(kind, tmp_path):
    wide = {"hidden": 256, "ffn": 256, "head_dim": 64}  # K-quants have blocks of 256
    path = write_gguf(tmp_path / "tiny.gguf", kind=kind, **wide)
    dequantised = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors
    }
    plain = write_gguf(tmp_path / "plain.gguf", weights=dequantised, **wide)
    tokens = [1, 77, 200, 13, 5]
    torch.testing.assert_close(
        in_chunks(tiny_decoder(path), tokens), in_chunks(tiny_decoder(plain), tokens), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", DECODED, ids=lambda kind: kind.name)
def test_a_matrix_of_each_other_type_reads_as_the_library_reads_it(kind, tmp_path):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(0)
    rows = generator.integers(0, 60, (256, 256 // block * size), dtype=np.uint8)  # bytes that make small half floats
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    weights = random_weights(layers=1, tied=True, hidden=256, ffn=256, head_dim=64)
    for add, value in (
        (writer.add_block_count, 1), (writer.add_context_length, 64), (writer.add_embedding_length, 256),
        (writer.add_feed_forward_length, 256), (writer.add_head_count, 4), (writer.add_head_count_kv, 2),
    ):  # fmt: skip
        add(value)
    for name, values in weights.items():
        if name == "blk.0.ffn_up.weight":
            writer.add_tensor(name, rows, raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = torch.tensor(gguf.dequantize(rows, kind))
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert torch.equal(checkpoint.weight("blk.0.ffn_up.weight").dequantize(), expected)
    assert checkpoint.bits("blk.0.ffn_up.weight") == size * 8 / block


def test_the_shape_of_the_model_is_read_from_the_metadata(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", architecture="qwen3", layers=3))
    config = checkpoint.config
    assert (config.architecture, config.layers, config.qk_norm, config.tied_embeddings) == ("qwen3", 3, True, True)
    assert (config.heads, config.kv_heads, config.head_dim, config.context_length) == (4, 2, 16, 128)
    assert config.quantization == "F32"
    assert checkpoint.tokenizer_source["tokenizer.ggml.model"] == "gpt2"
    assert len(checkpoint.tokenizer_source["tokenizer.ggml.tokens"]) == config.vocab_size
    assert config.parameters == sum(
        values.size for values in random_weights(layers=3, tied=True, qk_norm=True).values()
    )


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_estimate_is_what_the_loaded_weights_take(kind, dtype, tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", kind=kind))
    cpu = torch.device("cpu")
    assert Decoder(checkpoint, device=cpu, dtype=dtype).weight_bytes == pytest.approx(
        weight_bytes(checkpoint, cpu, dtype), rel=0.03
    )


def test_a_file_cut_off_anywhere_says_where_it_ends(good, tmp_path):
    for end in [*range(0, 3000, 7), len(good) // 2, len(good) - 1]:
        with pytest.raises(DataLoss, match=rf"tiny\.gguf.*{end}"):
            opened(tmp_path / "tiny.gguf", good[:end])


def test_a_cut_off_download_names_the_tensor_and_the_bytes_that_it_needs(good, tmp_path):
    with pytest.raises(DataLoss, match=r"ends at byte \d+, tensor \S+ needs bytes up to \d+: the download is incomp"):
        opened(tmp_path / "tiny.gguf", good[: len(good) // 2])


@pytest.mark.parametrize(
    ("offset", "patch", "says"),
    [
        (0, b"GGML", "not a GGUF file"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 1 << 62), "tensors"),
        (8, struct.pack("<Q", 100_000), "tensors"),
        (16, struct.pack("<Q", 1 << 63), "metadata keys"),
        (24, struct.pack("<Q", 1 << 40), "metadata key"),
    ],
)
def test_a_header_that_claims_nonsense_is_refused(good, tmp_path, offset, patch, says):
    data = good[:offset] + patch + good[offset + len(patch) :]
    with pytest.raises((Invalid, DataLoss), match=says):
        opened(tmp_path / "tiny.gguf", data)


def test_an_absurd_array_length_is_refused_without_memory_for_it(good, tmp_path):
    where = good.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    tracemalloc.start()
    with pytest.raises(Invalid, match=r"tokenizer\.ggml\.tokens"):
        opened(tmp_path / "tiny.gguf", good[:where] + struct.pack("<Q", 1 << 50) + good[where + 8 :])
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_arrays_that_nobody_asks_for_are_not_built(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", metadata={"llama.noise": [7] * 300_000, "llama.words": ["a"] * 1000})
    tracemalloc.start()
    checkpoint = open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
    assert checkpoint.config.layers == 2


def test_a_number_that_is_an_array_is_refused_and_not_taken_for_missing(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", metadata={"llama.rope.freq_base": [1.0, 2.0]})
    with pytest.raises(Invalid, match=r"llama\.rope\.freq_base"):
        open_checkpoint(path)


def test_all_arrays_together_have_a_limit(good, tmp_path, monkeypatch):
    from formats.checkpoint import gguf_header

    monkeypatch.setattr(gguf_header, "MAX_ENTRIES", 200)
    with pytest.raises(Invalid, match=r"more than 200 entries"):
        opened(tmp_path / "tiny.gguf", good)


def test_a_missing_and_a_misshapen_tensor_are_named(tmp_path):
    weights = random_weights(layers=2, tied=True)
    del weights["blk.1.ffn_up.weight"]
    with pytest.raises(DataLoss, match=r"blk\.1\.ffn_up\.weight is missing"):
        open_checkpoint(write_gguf(tmp_path / "missing.gguf", weights=weights))
    weights["blk.1.ffn_up.weight"] = np.zeros((128, 32), np.float32)
    with pytest.raises(Invalid, match=r"blk\.1\.ffn_up\.weight has the shape \[128, 32\], and \[128, 64\]"):
        open_checkpoint(write_gguf(tmp_path / "shape.gguf", weights=weights))


def test_numbers_that_are_not_finite_are_found_when_the_tensor_is_read(tmp_path):
    weights = random_weights(layers=2, tied=True)
    weights["blk.1.ffn_up.weight"][3, 3] = np.nan
    with pytest.raises(DataLoss, match=r"blk\.1\.ffn_up\.weight holds numbers that are not finite"):
        tiny_decoder(write_gguf(tmp_path / "nan.gguf", weights=weights))


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count"),
    ],
)
def test_what_is_not_computed_is_refused(metadata, says, tmp_path):
    with pytest.raises(Invalid, match=says):
        open_checkpoint(write_gguf(tmp_path / "tiny.gguf", metadata=metadata))


def test_an_unknown_architecture_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(Invalid, match=r"'gemma3'.*llama"):
        open_checkpoint(write_gguf(tmp_path / "tiny.gguf", architecture="gemma3"))


def test_a_path_without_a_model_says_so(tmp_path):
    with pytest.raises(NotFound, match=r"nothing\.gguf"):
        open_checkpoint(tmp_path / "nothing.gguf")
    with pytest.raises(NotFound, match=r"config\.json"):
        open_checkpoint(tmp_path)
    folder = write_folder(tmp_path / "folder", {}, {})
    (folder / "model.safetensors").unlink()
    with pytest.raises(Invalid, match="safetensors"):
        open_checkpoint(folder)


@given(st.data())
@settings(max_examples=400, deadline=2000)
def test_a_damaged_header_gives_a_clear_error_or_a_model_and_never_anything_else(good, tmp_path_factory, data):
    header = good.index(b"token_embd.weight") + 800
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, header))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8])))
        broken[where : where + len(patch)] = patch
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    try:
        checkpoint = opened(path, bytes(broken[: data.draw(st.sampled_from([len(good), header, header // 2]))]))
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"):
            checkpoint.weight(name)
    except MicrokernelError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
