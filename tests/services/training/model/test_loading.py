"""Models to be trained: new ones from a seed, their sizes, and adapters that are continued."""

from __future__ import annotations

import pytest
import torch
from tiny_adapters import peft_tensors, random_pairs, write_peft
from tiny_models import write_gguf
from tiny_training import FULL, batch_of, tiny_config

from formats.checkpoint.adapter import open_adapter
from formats.checkpoint.architecture import expected_shapes
from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import Invalid, PreconditionFailed
from services.training.config import MethodConfig, ModelConfig
from services.training.model.loading import continue_adapter, fresh_config, open_model, plan_layout

SIZES = {"layers": 4, "hidden_size": 64, "heads": 4, "ffn_size": 128}


def test_a_new_model_is_a_function_of_its_seed():
    first, again, other = (open_model(tiny_config(), FULL, seed=seed).flat.values for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_new_model_expects_every_word_alike():
    config = tiny_config("qwen2", layers=8)
    model = open_model(config, FULL, dtype=torch.float32)
    total, count = model.loss(batch_of([64], [64]))
    assert abs(total.item() / count - torch.tensor(float(config.vocab_size)).log()) < 0.2


def test_what_adds_to_the_stream_begins_smaller_the_more_layers_there_are():
    model = open_model(tiny_config(layers=8), FULL)
    assert model.flat.value("blk.3.ffn_up.weight").std().item() == pytest.approx(0.02, rel=0.1)
    assert model.flat.value("blk.3.ffn_down.weight").std().item() == pytest.approx(0.02 / 4, rel=0.1)


def test_norms_begin_at_one_and_biases_at_zero():
    model = open_model(tiny_config("qwen2"), FULL)
    assert model.flat.value("blk.0.attn_norm.weight").eq(1.0).all()
    assert model.flat.value("blk.0.attn_k.bias").eq(0.0).all()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_new_shape_takes_what_its_family_has(family):
    config = fresh_config(ModelConfig(architecture=family, tied_embeddings=False, **SIZES), 1000)
    assert (config.head_dim, config.kv_heads, config.vocab_size) == (16, 4, 1024)
    assert (config.qkv_bias, config.qk_norm) == (family == "qwen2", family == "qwen3")


@pytest.mark.parametrize(
    ("change", "field"),
    [({"layers": None}, "model.layers"), ({"heads": 5}, "model.head_size"), ({"kv_heads": 3}, "kv_heads")],
)
def test_sizes_that_cannot_be_are_named(change, field):
    with pytest.raises(Invalid) as raised:
        fresh_config(ModelConfig(**(SIZES | change)), 1000)
    assert raised.value.field == field


def test_there_is_no_adapter_beside_a_new_model():
    with pytest.raises(PreconditionFailed):
        open_model(tiny_config(), MethodConfig())


def test_full_training_changes_every_tensor_of_the_model():
    config = tiny_config("qwen3")
    assert {slot.name: slot.shape for slot in plan_layout(config, FULL).slots} == expected_shapes(config)


@pytest.fixture
def adapter_of(tmp_path):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf"))

    def make(**options):
        pairs = random_pairs(checkpoint.config, **options)
        folder = write_peft(tmp_path / "adapter", peft_tensors(pairs, checkpoint.config), lora_alpha=24)
        return checkpoint, open_adapter(folder, checkpoint.config, max_rank=64)

    return make


def test_an_adapter_of_pefts_is_continued_with_the_logits_that_it_had(adapter_of):
    checkpoint, adapter = adapter_of(rank=8, targets=("attn_q", "ffn_down"))
    method = MethodConfig(rank=8, alpha=16.0)
    model = open_model(checkpoint, method, dtype=torch.float32)
    continue_adapter(model.flat, adapter, method)
    merged = open_model(checkpoint, FULL, dtype=torch.float32)
    for name, low in adapter.weights.items():
        merged.flat.value(name).add_(torch.from_numpy(low.b @ low.a))
    batch = batch_of([9], vocabulary=256)
    torch.testing.assert_close(model.logits(batch), merged.logits(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "field"),
    [(MethodConfig(rank=4), "method.rank"), (MethodConfig(rank=8, targets=("attn_k",)), "method.targets")],
)
def test_an_adapter_that_does_not_fit_the_method_changes_nothing(adapter_of, method, field):
    checkpoint, adapter = adapter_of(rank=8, targets=("attn_k", "attn_q"))
    flat = open_model(checkpoint, method).flat
    before = flat.values.clone()
    with pytest.raises(Invalid) as raised:
        continue_adapter(flat, adapter, method)
    assert raised.value.field == field
    assert torch.equal(flat.values, before)
