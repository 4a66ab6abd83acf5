"""Tiny models as they are trained: random weights of each family, and batches of documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tiny_models import write_gguf
from tiny_tokenizers import byte_level

from formats.checkpoint.architecture import DecoderConfig
from formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from formats.checkpoint.safetensors_writer import hf_config, hf_tensors, write_json, write_tensors
from services.training.batch import NOT_LEARNED, Batch
from services.training.config import MethodConfig
from services.training.model.decoder import Decoder
from services.training.model.loading import open_model

FULL = MethodConfig(kind="full")
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"tied_embeddings": True},
    "mistral": {"sliding_window": 5},
    "phi3": {},
    "qwen2": {"qkv_bias": True, "tied_embeddings": True},
    "qwen3": {"qk_norm": True},
}


def tiny_config(family: str = "llama", **changes: object) -> DecoderConfig:
    """The shape of a tiny model of that family."""
    sizes: dict[str, object] = {
        "architecture": family,
        "layers": 2,
        "hidden_size": 64,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "ffn_size": 96,
        "vocab_size": 128,
        "context_length": 128,
    }
    return DecoderConfig(**(sizes | FAMILIES[family] | changes))  # type: ignore[arg-type]


def tiny_trained(config: DecoderConfig, **options: object) -> Decoder:
    """A model trained in full, in float32, whose weights are large enough that each matters."""
    model = open_model(config, FULL, **({"dtype": torch.float32} | options))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(7)
    for slot in model.flat.layout.slots:
        value = model.flat.value(slot.name)
        scale = slot.shape[-1] ** -0.5 if len(slot.shape) > 1 else 0.2
        value.add_(torch.empty(slot.shape).normal_(0.0, scale, generator=generator))
    return model


def tiny_checkpoint(folder: Path, architecture: str = "llama", **options) -> Checkpoint:
    """A GGUF file with random weights and a tokenizer, opened."""
    metadata = byte_level(pre="smollm") | options.pop("metadata", {})
    tokenizer = {
        key: value for key, value in metadata.items() if key not in ("tokenizer.ggml.model", "tokenizer.ggml.tokens")
    }
    return open_checkpoint(write_gguf(folder / "tiny.gguf", architecture=architecture, metadata=tokenizer, **options))


def write_folder_of(folder: Path, config: DecoderConfig, weight: Callable[[str], torch.Tensor]) -> Path:
    """The model in the Hugging Face layout, without a tokenizer."""
    folder.mkdir()
    write_json(folder / "config.json", hf_config(config, torch.float32, bos=1, eos=[2]))
    write_tensors(folder / "model.safetensors", hf_tensors(config, weight, torch.float32))
    return folder


def batch_of(*rows: list[int], vocabulary: int = 128, seed: int = 0) -> Batch:
    """Random tokens: each row is a list of lengths of documents; the last token of a document has nothing to learn."""
    generator = np.random.default_rng(seed)
    shape = len(rows), sum(rows[0])
    tokens = generator.integers(0, vocabulary, shape)
    targets, positions, documents = np.roll(tokens, -1, 1), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, lengths in enumerate(rows):
        end = 0
        for number, length in enumerate(lengths):
            positions[row, end : end + length] = np.arange(length)
            documents[row, end : end + length] = number
            end += length
            targets[row, end - 1] = NOT_LEARNED
    return Batch(tokens, targets, positions, documents)


def gradients_of(model: Decoder, batch: Batch, draws: int | None = None) -> torch.Tensor:
    """The flat gradient of one batch alone."""
    model.flat.clear()
    model.loss(batch, draws)[0].backward()
    return model.flat.gradients.clone()


def loaded_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """What a written model holds."""
    return load_file(folder / "model.safetensors")
