"""Vectors of encoders against another implementation, and what folders say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_bert import HIDDEN, WORDS, write_tiny_bert
from torch.nn import functional

from formats.checkpoint.architecture import Unsupported
from microkernel.errors import DataLoss, Invalid
from services.inference.encoder.bert import BertEncoder
from services.inference.encoder.config import Pooling, read_config
from services.inference.encoder.folder import open_encoder

TEXTS = ["the cat sat on the mat.", "", "dogs?", "a b c a b c a b c", "the cat sat on the mat.", "c"]


def vectors_of(folder: Path, texts: list[str]) -> torch.Tensor:
    """All texts as one batch, the vectors in their order."""
    opened = open_encoder(folder)
    ids = opened.tokens.encode(texts).ids
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    layers = BertEncoder(opened, torch.device("cpu")).encode([ids[place] for place in order])
    while True:
        try:
            next(layers)
        except StopIteration as last:
            found = torch.empty(len(ids), last.value.shape[1])
            found[torch.tensor(order)] = last.value
            return found


def peer_vectors(folder: Path, ids: list[list[int]], pooling: Pooling, *, normalized: bool = True) -> torch.Tensor:
    """What transformers computes of the same tokens, padded to the longest, in float32."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    longest = max(map(len, ids))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    with torch.no_grad():
        states = model(input_ids=padded, attention_mask=mask).last_hidden_state
    weights = mask[:, :, None].float()
    pooled = states[:, 0] if pooling is Pooling.CLS else (states * weights).sum(1) / weights.sum(1)
    return functional.normalize(pooled) if normalized else pooled


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_vectors_are_those_of_another_implementation(tmp_path, pooling, prefix):
    folder = write_tiny_bert(tmp_path / "tiny", pooling=pooling, prefix=prefix)
    opened = open_encoder(folder)
    expected = peer_vectors(folder, opened.tokens.encode(TEXTS).ids, opened.config.pooling)
    found = vectors_of(folder, TEXTS)
    assert found.shape == (len(TEXTS), HIDDEN)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found.norm(dim=1), torch.ones(len(TEXTS)))


def test_without_a_normalize_step_vectors_keep_their_length(tmp_path):
    folder = write_tiny_bert(tmp_path / "tiny", modules=("Transformer", "Pooling"))
    opened = open_encoder(folder)
    expected = peer_vectors(folder, opened.tokens.encode(TEXTS).ids, Pooling.MEAN, normalized=False)
    assert torch.allclose(vectors_of(folder, TEXTS), expected, atol=1e-4)


def test_without_files_of_sentence_transformers_vectors_are_normalized_means(tmp_path):
    plain = read_config(write_tiny_bert(tmp_path / "plain", modules=None, pooling=None, longest=None))
    assert (plain.pooling, plain.normalized, plain.longest) == (Pooling.MEAN, True, plain.positions)


def test_pooling_is_read_as_newer_files_write_it(tmp_path):
    folder = write_tiny_bert(tmp_path / "new")
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert read_config(folder).pooling is Pooling.CLS


def test_a_text_has_the_same_vector_alone_and_among_others(tmp_path):
    folder = write_tiny_bert(tmp_path / "tiny")
    together = vectors_of(folder, TEXTS)
    for place, text in enumerate(TEXTS):
        assert torch.allclose(vectors_of(folder, [text])[0], together[place], atol=1e-6)


def test_weights_of_16_bits_are_computed_in_32(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_tiny_bert(tmp_path / "tiny")
    file = folder / "model.safetensors"
    save_file({name: values.half() for name, values in load_file(file).items()}, file)
    half = vectors_of(folder, TEXTS)
    assert half.dtype is torch.float32
    assert torch.allclose(half, vectors_of(write_tiny_bert(tmp_path / "whole"), TEXTS), atol=1e-2)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "roberta"}, "'roberta' makes no vectors here"),
        ({"hidden_act": "relu"}, "the activation 'relu'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "writes texts"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"modules": ("Transformer", "Pooling", "Dense")}, "the step 'Dense'"),
        ({"pooling": "max_tokens"}, "pooling by max_tokens"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path, config, why):
    folder = write_tiny_bert(tmp_path / "other", **config)
    with pytest.raises(Unsupported, match=why):
        open_encoder(folder)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": 1 << 40}, "layers"),
        ({"num_attention_heads": 5}, "heads"),
        ({"num_attention_heads": 0}, "heads"),
        ({"layer_norm_eps": 0}, "norm_eps"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_a_number_that_cannot_be_is_named(tmp_path, config, field):
    folder = write_tiny_bert(tmp_path / "tiny")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | config))
    with pytest.raises(Invalid) as caught:
        open_encoder(folder)
    assert caught.value.field == field


def test_weights_of_another_shape_or_too_few_are_refused(tmp_path):
    folder = write_tiny_bert(tmp_path / "tiny")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"intermediate_size": 48}))
    with pytest.raises(Invalid, match=r"intermediate\.dense\.weight has the shape \[64, 32\], not \[48, 32\]"):
        open_encoder(folder)
    (folder / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 3}))
    with pytest.raises(DataLoss, match=r"encoder\.layer\.2\..* is missing"):
        open_encoder(folder)


def test_a_tokenizer_with_more_tokens_than_weights_is_refused(tmp_path):
    folder = write_tiny_bert(tmp_path / "tiny", vocab_size=len(WORDS) - 1)
    with pytest.raises(Invalid, match=r"the tokenizer has 16 tokens, and the weights are for 15"):
        open_encoder(folder)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_tiny_bert(tmp_path / "tiny")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.1.output.dense.weight"][3, 3] = float("nan")
    save_file(tensors, file)
    with pytest.raises(DataLoss, match="not finite"):
        BertEncoder(open_encoder(folder), torch.device("cpu"))


def test_a_model_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(Unsupported, match="no encoder"):
        open_encoder(tmp_path / "x.gguf")


def test_a_damaged_list_of_steps_is_named(tmp_path):
    folder = write_tiny_bert(tmp_path / "tiny")
    (folder / "modules.json").write_text('{"0": ')
    with pytest.raises(DataLoss, match=r"modules\.json"):
        open_encoder(folder)


@pytest.mark.model
def test_vectors_of_the_default_model_are_those_of_another_implementation(embedding_model):
    texts = ["A cat sits on a mat.", "Ein Hund.", "", "x " * 400, *(f"Sentence {n} of many." * n for n in range(9))]
    opened = open_encoder(embedding_model)
    assert (opened.config.longest, opened.config.pooling, opened.config.normalized) == (256, Pooling.MEAN, True)
    expected = peer_vectors(embedding_model, opened.tokens.encode(texts).ids, Pooling.MEAN)
    cosines = (vectors_of(embedding_model, texts) * expected).sum(1)
    assert cosines.min() > 0.9999
