"""Low-rank products beside frozen matrices."""

from __future__ import annotations

import pytest
import torch
from tiny_models import write_gguf
from tiny_training import batch_of, gradients_of

from formats.checkpoint.checkpoint import open_checkpoint
from services.training.config import MethodConfig
from services.training.model.loading import open_model
from services.training.model.lora import draw_kept, draw_seed

FLOAT32 = torch.float32
BATCH = batch_of([5, 7], [12], vocabulary=256)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(write_gguf(tmp_path_factory.mktemp("lora") / "tiny.gguf", architecture="qwen2"))


def opened(checkpoint, *, moved: bool = False, **method):
    model = open_model(checkpoint, MethodConfig(**({"rank": 4, "alpha": 6.0} | method)), dtype=FLOAT32)
    if moved:
        generator = torch.Generator().manual_seed(1)
        model.flat.values.add_(torch.empty(model.flat.layout.size).normal_(0.0, 0.1, generator=generator))
    return model


def test_it_begins_as_the_model_was(checkpoint):
    full = open_model(checkpoint, MethodConfig(kind="full"), dtype=FLOAT32)
    assert torch.equal(opened(checkpoint).logits(BATCH), full.logits(BATCH))


@pytest.mark.parametrize("targets", [("attn_q", "attn_v"), ("attn_k", "ffn_up", "ffn_down"), ("attn_output",)])
def test_it_acts_as_the_sum_of_the_matrices(checkpoint, targets):
    adapted = opened(checkpoint, moved=True, targets=targets)
    merged = open_model(checkpoint, MethodConfig(kind="full"), dtype=FLOAT32)
    for layer in range(2):
        for part in targets:
            name = f"blk.{layer}.{part}.weight"
            a, b = (adapted.flat.value(f"{name}.{which}") for which in ("lora_a", "lora_b"))
            merged.flat.value(name).add_(1.5 * b @ a)
    torch.testing.assert_close(adapted.logits(BATCH), merged.logits(BATCH), rtol=1e-4, atol=1e-4)


def test_its_gradient_is_what_the_matrices_gradient_says(checkpoint):
    adapted = opened(checkpoint, moved=True)
    merged = open_model(checkpoint, MethodConfig(kind="full"), dtype=FLOAT32)
    names = {slot.name.rpartition(".")[0] for slot in adapted.flat.layout.slots}
    for name in names:
        merged.flat.value(name).add_(1.5 * adapted.flat.value(f"{name}.lora_b") @ adapted.flat.value(f"{name}.lora_a"))
    gradients_of(adapted, BATCH)
    gradients_of(merged, BATCH)
    for name in names:
        whole = merged.flat.gradient(name)
        a, b = (adapted.flat.value(f"{name}.{which}") for which in ("lora_a", "lora_b"))
        torch.testing.assert_close(adapted.flat.gradient(f"{name}.lora_a"), 1.5 * b.t() @ whole, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(adapted.flat.gradient(f"{name}.lora_b"), 1.5 * whole @ a.t(), rtol=1e-3, atol=1e-3)


def test_dropout_depends_on_what_it_draws_from_alone(checkpoint):
    model = opened(checkpoint, moved=True, dropout=0.3)
    first = gradients_of(model, BATCH, draw_seed(0, 5, 1))
    torch.manual_seed(99)
    assert torch.equal(gradients_of(model, BATCH, draw_seed(0, 5, 1)), first)
    assert not torch.equal(gradients_of(model, BATCH, draw_seed(0, 5, 2)), first)


def test_dropout_leaves_the_global_generator_alone(checkpoint):
    before = torch.get_rng_state()
    gradients_of(opened(checkpoint, dropout=0.3), BATCH, 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_recomputing_drops_the_same(checkpoint):
    model = opened(checkpoint, moved=True, dropout=0.3)
    kept = gradients_of(model, BATCH, 7)
    model.recompute = True
    assert torch.equal(gradients_of(model, BATCH, 7), kept)


def test_without_draws_nothing_is_dropped(checkpoint):
    with_dropout, without = (opened(checkpoint, moved=True, dropout=dropout) for dropout in (0.3, 0.0))
    assert torch.equal(with_dropout.logits(BATCH), without.logits(BATCH))


def test_dropout_is_part_of_the_slope(checkpoint):
    model = opened(checkpoint, moved=True, dropout=0.3)
    gradient = gradients_of(model, BATCH, 7)
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    start = model.flat.values.clone()
    with torch.no_grad():
        model.flat.load(start + 1e-2 * direction)
        above = model.loss(BATCH, 7)[0].double()
        model.flat.load(start - 1e-2 * direction)
        below = model.loss(BATCH, 7)[0].double()
    torch.testing.assert_close((above - below) / 2e-2, (gradient * direction).sum().double(), rtol=2e-2, atol=2e-2)


def test_what_is_kept_has_the_mean_of_one():
    kept = draw_kept(torch.zeros(400, 50), 0.2, 3, 1)
    assert set(kept.unique().tolist()) == {0.0, 1.25}
    assert abs(kept.mean() - 1.0) < 0.02


def test_seeds_of_steps_and_shards_differ():
    assert len({draw_seed(0, step, shard) for step in range(20) for shard in range(20)}) == 400
