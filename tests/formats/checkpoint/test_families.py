"""Families that differ from Llama in what their files look like: the same tensors give the same model."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from forward_passes import in_chunks
from tiny_models import (
    FFN,
    HEADS,
    HIDDEN,
    KV_HEADS,
    VOCABULARY,
    dequantized,
    random_weights,
    tiny_decoder,
    write_folder,
    write_gguf,
)

from formats.checkpoint.architecture import ARCHITECTURES, Unsupported
from formats.checkpoint.checkpoint import open_checkpoint, pair_rows
from formats.checkpoint.families import FAMILIES
from formats.checkpoint.safetensors_checkpoint import source_name
from microkernel.errors import Invalid, MicrokernelError

CONFIG = {
    "architectures": ["Phi3ForCausalLM"],
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
TOKENS = [1, 2, 3, 200, 7]


def in_halves(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of queries and keys in rotary halves, as all but Llama's GGUF files have them."""
    halves = dict(weights)
    for name, values in weights.items():
        if "attn_q.weight" in name or "attn_k.weight" in name:
            halves[name] = np.empty_like(values)
            halves[name][pair_rows(HEADS if "attn_q" in name else KV_HEADS, 16).numpy()] = values
    return halves


def fused(weights: dict[str, np.ndarray], names: dict[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    """The same weights, with `names` in place of their parts in each layer."""
    result = dict(weights)
    for layer in range(2):
        for name, parts in names.items():
            rows = [result.pop(f"blk.{layer}.{part}.weight") for part in parts]
            result[f"blk.{layer}.{name}.weight"] = np.concatenate(rows)
    return result


def of_folder(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    parts = {"self_attn.qkv_proj": ("attn_q", "attn_k", "attn_v"), "mlp.gate_up_proj": ("ffn_gate", "ffn_up")}
    tensors = {}
    for name, values in fused(in_halves(weights), parts).items():
        part = next((part for part in parts if part in name), None)
        source = source_name(name) if part is None else f"model.layers.{name.split('.')[1]}.{part}.weight"
        tensors[source] = torch.tensor(values)
    return tensors


def of_gguf(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return fused(in_halves(weights), {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")})


@pytest.fixture(scope="module")
def weights():
    return random_weights(layers=2, tied=True)


@pytest.fixture
def folder(weights, tmp_path):
    return write_folder(tmp_path / "phi", CONFIG, of_folder(weights))


def test_each_family_is_listed_by_its_own_name():
    assert ARCHITECTURES == tuple(FAMILIES) == ("llama", "mistral", "phi3", "qwen2", "qwen3")


def test_fused_tensors_of_a_folder_are_the_same_model(folder, weights, tmp_path):
    llama = write_gguf(tmp_path / "llama.gguf", weights=weights)
    assert torch.equal(in_chunks(tiny_decoder(folder), TOKENS), in_chunks(tiny_decoder(llama), TOKENS))
    assert open_checkpoint(folder).config.architecture == "phi3"


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_fused_tensors_of_a_gguf_file_are_the_same_model_quantised_or_not(weights, tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    llama = open_checkpoint(write_gguf(tmp_path / "llama.gguf", weights=weights, kind=kind))
    phi = open_checkpoint(write_gguf(tmp_path / "phi.gguf", architecture="phi3", weights=of_gguf(weights), kind=kind))
    for part in ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up", "ffn_down"):
        name = f"blk.1.{part}.weight"
        assert torch.equal(dequantized(phi, name), dequantized(llama, name))
        assert np.array_equal(phi.stored(name).rows, llama.stored(name).rows)


def test_it_agrees_with_transformers(folder):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("phi3", **CONFIG, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    )
    checkpoint = open_checkpoint(folder)
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    with torch.no_grad():
        expected = model.float().eval()(torch.tensor([TOKENS])).logits[0]
    torch.testing.assert_close(in_chunks(tiny_decoder(checkpoint.path), TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_its_window_holds_as_it_stands(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"sliding_window": 7}))
    config = open_checkpoint(folder).config
    assert [config.window(layer) for layer in (0, 1)] == [7, 7]


@pytest.mark.parametrize(
    "change",
    [{"partial_rotary_factor": 0.75}, {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}],
    ids=["partly rotated", "longrope"],
)
def test_what_the_kernels_do_not_compute_of_it_is_unsupported(folder, change):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(Unsupported):
        open_checkpoint(folder)


def test_a_gguf_file_with_a_long_context_is_refused(weights, tmp_path):
    more = {"rope_factors_long.weight": np.ones(8, dtype=np.float32)}
    path = write_gguf(tmp_path / "long.gguf", architecture="phi3", weights=of_gguf(weights) | more)
    with pytest.raises(Invalid, match="longrope"):
        open_checkpoint(path)


def test_a_fused_tensor_of_other_rows_is_named(folder, weights, tmp_path):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_key_value_heads": 1}))
    with pytest.raises(MicrokernelError, match=r"attn_q\.weight has the shape \[128, 64\], and \[64, 64\] is expected"):
        open_checkpoint(folder)
    path = write_gguf(
        tmp_path / "odd.gguf",
        architecture="phi3",
        weights=of_gguf(weights),
        metadata={"phi3.attention.head_count_kv": 1},
    )
    with pytest.raises(MicrokernelError, match=r"attn_qkv\.weight has the shape \[128, 64\], and \[96, 64\] is"):
        open_checkpoint(path)
