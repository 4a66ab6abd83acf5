"""Adapters from files: what PEFT and llama.cpp write is read as it is meant, and anything else is refused by name."""

from __future__ import annotations

import contextlib
import json
import math
import struct

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_adapters import peft_tensors, random_pairs, write_gguf_adapter, write_peft
from tiny_models import write_gguf

from formats.checkpoint.adapter import open_adapter
from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import DataLoss, Invalid, NotFound

QUERY = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def config(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return open_checkpoint(write_gguf(folder / "tiny.gguf", architecture=request.param)).config


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return open_checkpoint(write_gguf(tmp_path_factory.mktemp("llama") / "tiny.gguf")).config


def opened(path, config, max_rank=64):
    return open_adapter(path, config, max_rank=max_rank)


def check(adapter, pairs, scale):
    """That the adapter is these pairs, the scale within b."""
    assert adapter.weights.keys() == pairs.keys()
    for name, (a, b) in pairs.items():
        assert np.array_equal(adapter.weights[name].a, a)
        assert np.array_equal(adapter.weights[name].b, b * np.float32(scale))


def test_a_peft_folder_is_read_with_its_scale_and_its_rotary_rows_in_pairs(config, tmp_path):
    pairs = random_pairs(config, rank=8)
    adapter = opened(write_peft(tmp_path / "a", peft_tensors(pairs, config), lora_alpha=32), config)
    check(adapter, pairs, 4.0)
    assert adapter.rank == 8
    assert adapter.parameters == sum(a.size + b.size for a, b in pairs.values())


def test_a_gguf_file_is_read_with_its_scale_and_its_rotary_rows_in_pairs(config, tmp_path):
    pairs = random_pairs(config, rank=8)
    check(opened(write_gguf_adapter(tmp_path / "a.gguf", pairs, config, alpha=32.0), config), pairs, 4.0)


def test_a_gguf_file_without_an_alpha_is_added_as_it_is(llama, tmp_path):
    pairs = random_pairs(llama, targets=("attn_q",))
    check(opened(write_gguf_adapter(tmp_path / "a.gguf", pairs, llama), llama), pairs, 1.0)


def test_a_gguf_file_may_have_quantised_tensors(llama, tmp_path):
    pairs = random_pairs(llama, targets=("ffn_up",))
    kind = gguf.GGMLQuantizationType.Q8_0
    adapter = opened(write_gguf_adapter(tmp_path / "a.gguf", pairs, llama, kind=kind), llama)
    for name, (a, _) in pairs.items():
        assert np.abs(adapter.weights[name].a - a).max() <= np.abs(a).max() / 250


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_weights_of_16_bits_are_read(dtype, close, llama, tmp_path):
    pairs = random_pairs(llama, targets=("attn_k",))
    adapter = opened(write_peft(tmp_path / "a", peft_tensors(pairs, llama, dtype)), llama)
    for name, (a, b) in pairs.items():
        assert np.allclose(adapter.weights[name].a, a, rtol=close, atol=1e-6)
        assert np.allclose(adapter.weights[name].b, b, rtol=close, atol=1e-6)


def test_a_rank_stabilised_adapter_is_scaled_by_the_root(llama, tmp_path):
    pairs = random_pairs(llama, rank=8)
    folder = write_peft(tmp_path / "a", peft_tensors(pairs, llama), lora_alpha=4, use_rslora=True)
    check(opened(folder, llama), pairs, 4 / math.sqrt(8))


def test_ranks_and_alphas_of_single_modules_are_kept(llama, tmp_path):
    wide, narrow = random_pairs(llama, rank=16, targets=("attn_q",)), random_pairs(llama, rank=4, targets=("ffn_up",))
    folder = write_peft(
        tmp_path / "a",
        peft_tensors(wide | narrow, llama),
        r=16,
        lora_alpha=16,
        rank_pattern={"up_proj": 4},
        alpha_pattern={"^model.layers.1.mlp.up_proj": 2, "up_proj": 8, "layers.0.self_attn.q_proj": 48},
    )
    adapter = opened(folder, llama)
    scales = {"blk.0.attn_q": 3.0, "blk.1.attn_q": 1.0, "blk.0.ffn_up": 2.0, "blk.1.ffn_up": 0.5}
    for name, scale in scales.items():
        _, b = (wide | narrow)[f"{name}.weight"]
        assert np.array_equal(adapter.weights[f"{name}.weight"].b, b * np.float32(scale)), name


def test_an_adapter_of_the_model_without_its_head_is_the_same(llama, tmp_path):
    pairs = random_pairs(llama)
    tensors = {name.replace("model.model.", "model."): each for name, each in peft_tensors(pairs, llama).items()}
    check(opened(write_peft(tmp_path / "a", tensors), llama), pairs, 1.0)
    both = tensors | peft_tensors(pairs, llama)
    with pytest.raises(Invalid, match="comes under two names"):
        opened(write_peft(tmp_path / "b", both), llama)


def test_the_digest_is_of_what_is_added_wherever_it_was_read(llama, tmp_path):
    tensors, others = (peft_tensors(random_pairs(llama, seed=seed), llama) for seed in (0, 1))
    digests = [
        opened(write_peft(tmp_path / name, given, lora_alpha=alpha), llama).digest
        for name, given, alpha in (("a", tensors, 8), ("b", tensors, 8), ("c", tensors, 9), ("d", others, 8))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    same = write_gguf_adapter(tmp_path / "a.gguf", random_pairs(llama, seed=0), llama, alpha=8.0)
    assert opened(same, llama).digest == digests[0]
    narrow, wide = (
        opened(write_peft(tmp_path / "e", peft_tensors(random_pairs(llama, targets=(target,)), llama)), llama).digest
        for target in ("attn_k", "attn_v")
    )
    assert narrow != wide, "the same numbers for another matrix"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"peft_type": "IA3"}, "adapters of the type 'IA3' are not computed"),
        ({"peft_type": None}, "adapters of the type 'None' are not"),
        ({"use_dora": True}, "DoRA is not computed"),
        ({"bias": "lora_only"}, "biases in adapters are not"),
        ({"lora_bias": True}, "biases in adapters are not"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "embeddings in adapters"),
        ({"alora_invocation_tokens": [7]}, "begin at certain tokens"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication' is not computed here"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out' is not computed here"),
        ({"use_something_new": {"k": 1}}, "'use_something_new' is not computed here"),
        ({"init_lora_weights": "pissa_niter_4"}, "began with 'pissa_niter_4' belongs to changed weights"),
        ({"init_lora_weights": "loftq"}, "began with 'loftq'"),
        ({"r": 4}, "has the rank 8, and adapter_config.json says 4"),
        ({"r": None}, "'r' is missing"),
        ({"lora_alpha": "8"}, "'lora_alpha' is '8', not a number"),
        ({"lora_alpha": float("inf")}, "'lora_alpha' is 'inf', not a number"),
        ({"rank_pattern": {".*q_proj": 8}}, r"rank_pattern has '\.\*q_proj', and only names are taken"),
        ({"alpha_pattern": ["q_proj"]}, "'alpha_pattern' is no object"),
        ({"alpha_pattern": {"q_proj": None}}, "'q_proj' is missing"),
    ],
)
def test_what_is_more_than_low_rank_products_is_refused_by_name(fields, why, llama, tmp_path):
    with pytest.raises(Invalid, match=why):
        opened(write_peft(tmp_path / "a", peft_tensors(random_pairs(llama), llama), **fields), llama)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (f"{QUERY}.lora_magnitude_vector", "DoRA is not computed"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "adapters of embeddings"),
        ("base_model.model.model.embed_tokens.weight", "embeddings in adapters"),
        ("base_model.model.lm_head.lora_A.weight", "the output matrix"),
        (f"{QUERY}.lora_B.bias", "biases in adapters"),
        (f"{QUERY}.lora_A.default.weight", "is none that an adapter may have here"),
        ("base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "is none that an adapter may have"),
        ("base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight", "is none that an adapter may have"),
        ("x" * 5000, r"the tensor x{93}\.\.\. is none"),
    ],
)
def test_a_tensor_that_is_none_of_an_adapters_is_refused_by_name(name, why, llama, tmp_path):
    tensors = peft_tensors(random_pairs(llama), llama) | {name: torch.zeros(8, 64)}
    with pytest.raises(Invalid, match=why):
        opened(write_peft(tmp_path / "a", tensors), llama)


def test_an_adapter_for_another_model_is_refused_with_the_shapes(llama, tmp_path):
    good = peft_tensors(random_pairs(llama), llama)
    for changed, why in (
        ({f"{QUERY}.lora_A.weight": torch.zeros(8, 128)}, r"\[8, 128\] and \[64, 8\] for blk.0.attn_q.weight"),
        ({f"{QUERY}.lora_B.weight": torch.zeros(128, 8)}, r"\[8, 64\] and \[128, 8\] for blk.0.attn_q.weight"),
        ({f"{QUERY}.lora_B.weight": torch.zeros(64, 4)}, r"\[8, 64\] and \[64, 4\]"),
        ({f"{QUERY}.lora_B.weight": torch.zeros(64)}, "has 1 dimensions, not 2"),
        ({f"{QUERY}.lora_B.weight": torch.zeros(64, 8, dtype=torch.int64)}, "has the type I64, not a float"),
        ({f"{QUERY.replace('0', '2')}.lora_{each}.weight": torch.zeros(8, 8) for each in "AB"}, "model has 2 layers"),
    ):
        with pytest.raises(Invalid, match=why):
            opened(write_peft(tmp_path / "a", good | changed), llama)


def test_ranks_beyond_the_limit_are_refused(llama, tmp_path):
    folder = write_peft(tmp_path / "a", peft_tensors(random_pairs(llama, rank=17), llama))
    with pytest.raises(Invalid, match=r"has the rank 17 for blk.0.\S+, and 1 to 16 are taken"):
        opened(folder, llama, max_rank=16)
    empty = {
        name: each[:0] if "lora_A" in name else each[:, :0]
        for name, each in peft_tensors(random_pairs(llama), llama).items()
    }
    with pytest.raises(Invalid, match="has the rank 0"):
        opened(write_peft(tmp_path / "b", empty, r=0), llama)


def test_a_file_larger_than_any_adapter_is_not_read(llama, tmp_path, monkeypatch):
    from formats.checkpoint import adapter as module

    monkeypatch.setattr(module, "HEADER_BYTES", 100)
    folder = write_peft(tmp_path / "a", peft_tensors(random_pairs(llama, rank=16), llama))
    with pytest.raises(Invalid, match=r"has \d+ bytes, and an adapter of rank 8 for this model at most \d+"):
        opened(folder, llama, max_rank=8)


def test_half_a_pair_is_told(llama, tmp_path):
    tensors = peft_tensors(random_pairs(llama), llama)
    del tensors[f"{QUERY}.lora_B.weight"]
    with pytest.raises(DataLoss, match=r"layers.0.self_attn.q_proj has only lora_A: the file is incomplete"):
        opened(write_peft(tmp_path / "a", tensors), llama)
    with pytest.raises(Invalid, match="adds nothing"):
        opened(write_peft(tmp_path / "b", {}), llama)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3.2e38])
def test_numbers_that_are_not_finite_are_told(value, llama, tmp_path):
    for which in ("lora_A", "lora_B"):
        tensors = peft_tensors(random_pairs(llama), llama)
        tensors[f"{QUERY}.{which}.weight"][3, 1] = value
        with pytest.raises(DataLoss, match=r"numbers for blk.0.attn_q.weight that are not finite"):
            opened(write_peft(tmp_path / "a", tensors), llama)
    tensors[f"{QUERY}.lora_B.weight"][3, 1] = 1e30
    with pytest.raises(DataLoss, match="not finite"):  # once it is scaled
        opened(write_peft(tmp_path / "a", tensors, lora_alpha=1e20), llama)


def test_what_is_no_adapter_is_told(llama, tmp_path):
    with pytest.raises(NotFound, match="no such file"):
        opened(tmp_path / "nothing", llama)
    (tmp_path / "folder").mkdir()
    with pytest.raises(Invalid, match=r"folder is no adapter: it has no adapter_config.json"):
        opened(tmp_path / "folder", llama)
    folder = write_peft(tmp_path / "a", peft_tensors(random_pairs(llama), llama))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(Invalid, match="pickled weights are never read"):
        opened(folder, llama)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(NotFound, match=r"adapter_model.safetensors: no such file"):
        opened(folder, llama)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(DataLoss, match="not JSON"):
        opened(folder, llama)
    with pytest.raises(Invalid, match=r"tiny.gguf is no adapter: its general.type is 'None'"):
        opened(write_gguf(tmp_path / "tiny.gguf"), llama)


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"general__type": "model"}, "general.type is 'model'"),
        ({"adapter__type": "control"}, "adapters of the type 'control' are not"),
        ({"general__architecture": "gemma"}, "for 'gemma', and the model is a 'llama'"),
        ({"adapter__alora__invocation_tokens": "7"}, r"'adapter.alora.invocation_tokens' is not computed here"),
    ],
)
def test_a_gguf_file_that_says_something_else_is_refused(metadata, why, llama, tmp_path):
    with pytest.raises(Invalid, match=why):
        opened(write_gguf_adapter(tmp_path / "a.gguf", random_pairs(llama), llama, **metadata), llama)


@pytest.mark.parametrize("name", ["output.weight", "blk.0.attn_norm.weight", "token_embd.weight"])
def test_a_gguf_tensor_that_is_none_of_an_adapters_is_refused_by_name(name, llama, tmp_path):
    pairs = random_pairs(llama) | {name: (np.zeros((8, 64), np.float32), np.zeros((64, 8), np.float32))}
    with pytest.raises(Invalid, match=rf"the tensor {name}.lora_a is none"):
        opened(write_gguf_adapter(tmp_path / "a.gguf", pairs, llama), llama)


def test_a_mistral_takes_what_its_converter_calls_llama(llama, tmp_path):
    import msgspec

    pairs = random_pairs(llama)
    path = write_gguf_adapter(tmp_path / "a.gguf", pairs, llama)
    check(opened(path, msgspec.structs.replace(llama, architecture="mistral")), pairs, 1.0)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_cut_or_changed_anywhere_is_refused_or_read_and_nothing_else(llama, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    pairs = random_pairs(llama, targets=("attn_q",), layers=[0])
    peft = data.draw(st.booleans())
    if peft:
        path = write_peft(folder / "a", peft_tensors(pairs, llama))
        file = path / data.draw(st.sampled_from(["adapter_model.safetensors", "adapter_config.json"]))
    else:
        path = file = write_gguf_adapter(folder / "a.gguf", pairs, llama, alpha=8.0)
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        head = min(len(content), 1200)
        for at in data.draw(st.lists(st.integers(0, head - 1), min_size=1, max_size=4)):
            content[at] = data.draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    with contextlib.suppress(Invalid, DataLoss):
        opened(path, llama)


def test_a_header_that_claims_more_than_the_file_has_is_told(llama, tmp_path):
    folder = write_peft(tmp_path / "a", peft_tensors(random_pairs(llama), llama))
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataLoss, match="the download is incomplete"):
        opened(folder, llama)
    header = json.dumps({f"{QUERY}.lora_A.weight": {"dtype": "F32", "shape": [1 << 40, 64], "data_offsets": [0, 8]}})
    file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(Invalid, match="makes no sense"):
        opened(folder, llama)


def test_a_file_with_other_metadata_is_the_same_adapter(llama, tmp_path):
    pairs = random_pairs(llama)
    folder = write_peft(tmp_path / "a", peft_tensors(pairs, llama))
    save_file(peft_tensors(pairs, llama), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    check(opened(folder, llama), pairs, 1.0)
