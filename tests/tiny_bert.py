"""Tiny random encoders in the Hugging Face layout, with the files of sentence-transformers beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from microkernel.errors import Invalid
from services.inference.encoder.config import expected_shapes, read_config

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sat", "on", "mat", "a", "b", "c", "##s", ".", "?")
LONGEST = 16
HIDDEN = 32
CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 24,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": len(WORDS),
}
MODULES = ("Transformer", "Pooling", "Normalize")


def write_tiny_bert(
    folder: Path,
    *,
    seed: int = 0,
    pooling: str | None = "mean_tokens",
    modules: tuple[str, ...] | None = MODULES,
    longest: int | None = LONGEST,
    prefix: str = "",
    **config: Any,
) -> Path:
    """Write an encoder; what is None is left out. `prefix` stands before the names of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if modules is not None:
        steps = [{"idx": place, "type": f"sentence_transformers.models.{name}"} for place, name in enumerate(modules)]
        (folder / "modules.json").write_text(json.dumps(steps))
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    if longest is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    tokenizer().save(str(folder / "tokenizer.json"))
    try:
        shapes = expected_shapes(read_config(folder))
    except Invalid:
        shapes = {}  # of what is not computed there need be no weights
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator) * (0.5 if len(shape) > 1 else 0.1)
        tensors[prefix + name] = values + 1.0 if name.endswith("LayerNorm.weight") else values
    save_file(tensors or {"none": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def tokenizer() -> Tokenizer:
    """A tokenizer of words and pieces of words, with marks of begin and end."""
    made = Tokenizer(models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))],
    )
    made.add_special_tokens(list(WORDS[:4]))
    # As published files have it: what they say of padding and truncation is not ours.
    made.enable_padding(length=LONGEST)
    made.enable_truncation(4)
    return made
