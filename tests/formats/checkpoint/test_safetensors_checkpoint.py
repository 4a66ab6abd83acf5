"""Folders in the Hugging Face layout: read as they are meant, and refused by name where they are damaged."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from forward_passes import in_chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FFN, HEADS, HIDDEN, KV_HEADS, VOCABULARY, random_weights, tiny_decoder, write_folder, write_gguf

from formats.checkpoint.checkpoint import open_checkpoint, pair_rows
from formats.checkpoint.safetensors_checkpoint import source_name
from microkernel.errors import DataLoss, Invalid, MicrokernelError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def halves(weights: dict) -> dict[str, torch.Tensor]:
    """The same model as transformers stores it: rotary halves, other names."""
    tensors = {}
    for name, values in weights.items():
        tensor = torch.tensor(values)
        if "attn_q.weight" in name or "attn_k.weight" in name:
            heads = HEADS if "attn_q" in name else KV_HEADS
            stored = torch.empty_like(tensor)
            stored[pair_rows(heads, 16)] = tensor
            tensor = stored
        tensors[source_name(name)] = tensor
    return tensors


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "tiny", CONFIG, halves(random_weights(layers=2, tied=True)))


def test_the_same_model_in_both_formats_gives_the_same_logits(folder, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", weights=random_weights(layers=2, tied=True))
    assert torch.equal(in_chunks(tiny_decoder(folder), [1, 2, 3]), in_chunks(tiny_decoder(path), [1, 2, 3]))


def test_the_config_is_read_and_the_tokenizer_is_the_folder(folder):
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tokenizer_source == folder
    config = checkpoint.config
    assert (config.layers, config.head_dim, config.tied_embeddings, config.quantization) == (2, 16, True, "F32")


def test_a_shard_that_is_missing_or_cut_off_is_named(folder):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-2.safetensors"}})
    )
    with pytest.raises(DataLoss, match=r"model-2\.safetensors is missing"):
        open_checkpoint(folder)
    (folder / "model.safetensors.index.json").unlink()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(DataLoss, match=r"model\.safetensors: the file ends at byte \d+, tensor .* needs bytes up to"):
        open_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(data[:5])
    with pytest.raises(DataLoss, match="ends at byte 5"):
        open_checkpoint(folder)


def test_an_index_cannot_lead_out_of_its_folder(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    with pytest.raises(Invalid, match="not a file name in its own folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": None}, "architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differ by layer"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "layers is 1000000000"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"intermediate_size": 64}, r"ffn_gate\.weight has the shape \[128, 64\]"),
        ({"tie_word_embeddings": False}, r"output\.weight is missing"),
    ],
)
def test_a_config_that_is_not_computed_or_does_not_fit_is_refused(folder, change, says):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(MicrokernelError, match=says):
        open_checkpoint(folder)


def test_a_config_that_is_no_json_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(DataLoss, match=r"config\.json: not JSON"):
        open_checkpoint(folder)


@given(st.data())
@settings(max_examples=200, deadline=2000)
def test_a_damaged_file_gives_a_clear_error_or_a_model_and_never_anything_else(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    if not folder.exists():
        write_folder(folder, CONFIG, halves(random_weights(layers=2, tied=True)))
        (folder / "model.safetensors").rename(folder / "good")
    broken = bytearray((folder / "good").read_bytes())
    header = 8 + struct.unpack("<Q", broken[:8])[0]
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, header))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"9", b"0", b"[", b'"'])))
        broken[where : where + len(patch)] = patch
    (folder / "model.safetensors").write_bytes(broken)
    try:
        checkpoint = open_checkpoint(folder)
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"):
            checkpoint.weight(name)
    except MicrokernelError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
