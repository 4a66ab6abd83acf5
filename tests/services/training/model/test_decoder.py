"""The decoder against the one that answers, transformers, finite differences and itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from forward_passes import in_chunks
from tiny_models import tiny_decoder, write_gguf
from tiny_training import FAMILIES, FULL, batch_of, gradients_of, tiny_config, tiny_trained, write_folder_of

from formats.checkpoint.checkpoint import open_checkpoint
from formats.checkpoint.safetensors_writer import hf_tensors
from microkernel.errors import Invalid
from services.training.batch import NOT_LEARNED, Batch
from services.training.model.loading import open_model

FLOAT32 = torch.float32


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_it_has_the_logits_of_the_decoder_that_answers(tmp_path, architecture):
    path = write_gguf(tmp_path / "tiny.gguf", architecture=architecture)
    batch = batch_of([12], vocabulary=256)
    model = open_model(open_checkpoint(path), FULL, dtype=FLOAT32)
    answered = in_chunks(tiny_decoder(path), batch.tokens[0].tolist())
    torch.testing.assert_close(model.logits(batch)[0], answered, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_all_gradients_are_those_of_transformers(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    config = tiny_config(family)
    model = tiny_trained(config)
    batch = batch_of([11], [11])
    folder = write_folder_of(tmp_path / "tiny", config, model.flat.value)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=FLOAT32, attn_implementation="eager")
    logits = theirs(torch.from_numpy(batch.tokens), use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten(), reduction="sum"
    )
    expected.backward()
    total, count = model.loss(batch)
    total.backward()
    assert count == 20
    torch.testing.assert_close(total, expected)
    own = hf_tensors(config, model.flat.gradient, FLOAT32)
    found = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert own.keys() == found.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(
            own[name], gradient, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_the_slope_of_the_loss(family):
    model = tiny_trained(tiny_config(family))
    batch = batch_of([5, 7], [12])
    gradient = gradients_of(model, batch)
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    start, reach = model.flat.values.clone(), 1e-2
    with torch.no_grad():
        model.flat.load(start + reach * direction)
        above = model.loss(batch)[0].double()
        model.flat.load(start - reach * direction)
        below = model.loss(batch)[0].double()
    slope = (above - below) / (2 * reach)
    torch.testing.assert_close(slope, (gradient * direction).sum().double(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_have_the_gradients_of_their_documents_one_by_one(family):
    model = tiny_trained(tiny_config(family))
    packed = batch_of([4, 9, 3], [16])
    together = gradients_of(model, packed)
    model.flat.clear()
    for row, first, end in ((0, 0, 4), (0, 4, 13), (0, 13, 16), (1, 0, 16)):
        cut = [part[row : row + 1, first:end] for part in packed]
        model.loss(Batch(cut[0], cut[1], cut[2], np.zeros_like(cut[3])))[0].backward()
    torch.testing.assert_close(together, model.flat.gradients, rtol=1e-4, atol=2e-5)


def test_a_row_never_attends_into_another_document():
    model = tiny_trained(tiny_config())
    batch = batch_of([6, 6])
    changed = batch.tokens.copy()
    changed[0, :6] = (changed[0, :6] + 1) % 128
    before, after = model.logits(batch), model.logits(batch._replace(tokens=changed))
    assert torch.equal(before[0, 6:], after[0, 6:])


def test_a_token_never_attends_to_a_later_one():
    model = tiny_trained(tiny_config())
    batch = batch_of([12])
    changed = batch.tokens.copy()
    changed[0, 7] = (changed[0, 7] + 1) % 128
    before, after = model.logits(batch), model.logits(batch._replace(tokens=changed))
    torch.testing.assert_close(before[0, :7], after[0, :7])
    assert not torch.allclose(before[0, 7:], after[0, 7:])


def test_a_window_ends_what_a_token_sees():
    model = tiny_trained(tiny_config("mistral", layers=1, sliding_window=3))
    batch = batch_of([12])
    changed = batch.tokens.copy()
    changed[0, 2] = (changed[0, 2] + 1) % 128
    before, after = model.logits(batch), model.logits(batch._replace(tokens=changed))
    torch.testing.assert_close(before[0, 5:], after[0, 5:])
    assert not torch.allclose(before[0, 4], after[0, 4])


def test_recomputing_gives_the_same_bits():
    batch = batch_of([5, 7], [12])
    kept, recomputed = (tiny_trained(tiny_config("qwen3"), recompute=recompute) for recompute in (False, True))
    assert torch.equal(gradients_of(kept, batch), gradients_of(recomputed, batch))


def test_gradients_add_up_over_batches():
    model = tiny_trained(tiny_config())
    batches = [batch_of([12], seed=seed) for seed in (1, 2)]
    alone = [gradients_of(model, batch) for batch in batches]
    model.flat.clear()
    for batch in batches:
        model.loss(batch)[0].backward()
    torch.testing.assert_close(model.flat.gradients, alone[0] + alone[1])


def test_a_scaled_loss_has_a_scaled_gradient():
    model = tiny_trained(tiny_config())
    batch = batch_of([12])
    whole = gradients_of(model, batch)
    model.flat.clear()
    (0.25 * model.loss(batch)[0]).backward()
    torch.testing.assert_close(model.flat.gradients, 0.25 * whole)


def test_only_learned_positions_count():
    model = tiny_trained(tiny_config())
    batch = batch_of([12])
    targets = np.full_like(batch.targets, NOT_LEARNED)
    targets[0, 3] = batch.targets[0, 3]
    total, count = model.loss(batch._replace(targets=targets))
    expected = -model.logits(batch)[0, 3].log_softmax(0)[batch.targets[0, 3]]
    assert count == 1
    torch.testing.assert_close(total, expected)


def test_a_batch_without_anything_to_learn_has_no_gradient():
    model = tiny_trained(tiny_config())
    batch = batch_of([12])
    nothing = batch._replace(targets=np.full_like(batch.targets, NOT_LEARNED))
    total, count = model.loss(nothing)
    total.backward()
    assert (float(total.detach()), count) == (0.0, 0)
    assert not model.flat.gradients.any()


def test_bfloat16_products_keep_to_the_float32_gradient():
    batch = batch_of([16], [16])
    exact, rounded = (
        gradients_of(tiny_trained(tiny_config(), dtype=dtype), batch) for dtype in (FLOAT32, torch.bfloat16)
    )
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.999


def test_positions_beyond_the_first_table_of_rotations_are_turned(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    model = open_model(open_checkpoint(path), FULL, dtype=FLOAT32)
    model.logits(batch_of([3], vocabulary=256))
    long = batch_of([70], vocabulary=256)
    answered = in_chunks(tiny_decoder(path), long.tokens[0].tolist())
    torch.testing.assert_close(model.logits(long)[0], answered, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("field", ["tokens", "targets"])
@pytest.mark.parametrize("value", [-1, 128])
def test_a_word_that_the_vocabulary_lacks_is_named(field, value):
    model = tiny_trained(tiny_config())
    batch = batch_of([4])
    numbers = getattr(batch, field).copy()
    numbers[0, 1] = value
    with pytest.raises(Invalid, match="vocabulary has 128") as raised:
        model.loss(batch._replace(**{field: numbers}))
    assert raised.value.field == field
