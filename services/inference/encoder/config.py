"""The shape of an encoder: everything about it that is known before a single weight is read.

Models are of the family of BERT, https://arxiv.org/abs/1810.04805, in the Hugging Face layout. How the vectors of a
text's tokens become one is said by the files of sentence-transformers beside them, https://sbert.net: `modules.json`
lists the steps, `1_Pooling/config.json` says which of the tokens count, `sentence_bert_config.json` how long a text is.
Where those are missing, the vector is the mean over all tokens, of length 1. What is not computed here is refused,
never ignored.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from formats.checkpoint.architecture import LIMITS, Unsupported, integer, number
from formats.checkpoint.safetensors_files import MAX_JSON, read_object
from microkernel.errors import DataLoss, Invalid

__all__ = ["ARCHITECTURE", "EncoderConfig", "Pooling", "expected_shapes", "read_config"]

ARCHITECTURE = "bert"
PREFIXES = ("", "bert.")  # before a tensor's name, where the encoder is saved alone or inside of another model
POOLING_MODES = ("mean_tokens", "cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
STEPS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers that are computed here


class Pooling(StrEnum):
    """Which tokens' vectors make the text's: the mean of all, or the first one's."""

    MEAN = "mean"
    CLS = "cls"


class EncoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An encoder's sizes and constants. `positions` and `longest` count tokens, with those that mark begin and end.

    No text has more than `longest` tokens: what follows is left out. With `normalized`, vectors have the length 1.
    """

    layers: int
    hidden_size: int
    heads: int
    ffn_size: int
    vocab_size: int
    positions: int
    types: int
    longest: int
    norm_eps: float = 1e-12
    pooling: Pooling = Pooling.MEAN
    normalized: bool = True

    @property
    def head_dim(self) -> int:
        """Elements of one head."""
        return self.hidden_size // self.heads


def read_config(folder: Path) -> EncoderConfig:
    """Read what `folder` says of its model. Raises `Unsupported`, or `Invalid` or `DataLoss` for damaged files."""
    where = folder.name
    raw = read_object(folder / "config.json")
    _refuse_unknown(where, raw)
    positions = integer(raw, "max_position_embeddings", where)
    pooling, normalized = _steps(folder)
    config = EncoderConfig(
        layers=integer(raw, "num_hidden_layers", where),
        hidden_size=integer(raw, "hidden_size", where),
        heads=integer(raw, "num_attention_heads", where),
        ffn_size=integer(raw, "intermediate_size", where),
        vocab_size=integer(raw, "vocab_size", where),
        positions=positions,
        types=integer(raw, "type_vocab_size", where, 2),
        longest=min(positions, _longest(folder, positions)),
        norm_eps=float(number(raw, "layer_norm_eps", where, 1e-12)),
        pooling=pooling,
        normalized=normalized,
    )
    return _checked(config, where)


def expected_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that an encoder of this shape must have, by the files' names; rows are outputs."""
    hidden, ffn = config.hidden_size, config.ffn_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.positions, hidden),
        "embeddings.token_type_embeddings.weight": (config.types, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    matrices = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (ffn, hidden),
        "output.dense": (hidden, ffn),
    }
    for layer in range(config.layers):
        prefix = f"encoder.layer.{layer}."
        for name, shape in matrices.items():
            shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}{name}.weight": (hidden,), f"{prefix}{name}.bias": (hidden,)}
    return shapes


def _refuse_unknown(where: str, raw: dict[str, Any]) -> None:
    kind = str(raw.get("model_type"))[:60]
    if kind != ARCHITECTURE:
        raise Unsupported(
            f"{where}: a model of the kind {kind!r} makes no vectors here",
            remedy=f"use an encoder of the kind '{ARCHITECTURE}'",
        )
    if raw.get("quantization_config"):
        raise Unsupported(f"{where}: a quantised encoder is not read here")
    if raw.get("is_decoder"):
        raise Unsupported(f"{where}: a '{ARCHITECTURE}' that writes texts is not computed here")
    if raw.get("hidden_act", "gelu") != "gelu":
        raise Unsupported(f"{where}: the activation {str(raw['hidden_act'])[:40]!r} is not computed here, only gelu")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise Unsupported(f"{where}: positions of the kind {str(raw['position_embedding_type'])[:40]!r} are not known")


def _steps(folder: Path) -> tuple[Pooling, bool]:
    """How the tokens' vectors become the text's, and whether that is brought to the length 1."""
    file = folder / "modules.json"
    if not file.is_file():
        return _pooling(folder / "1_Pooling"), True
    normalized = False
    pooling = Pooling.MEAN
    for step in _read_list(file):
        name = str(step.get("type")).rpartition(".")[2] if isinstance(step, dict) else ""
        if name not in STEPS:
            raise Unsupported(f"{folder.name}: the step {name[:60]!r} of modules.json is not computed here")
        if name == "Pooling":
            # A path in the file is not followed: it may lead anywhere.
            pooling = _pooling(folder / "1_Pooling")
        normalized = normalized or name == "Normalize"
    return pooling, normalized


def _pooling(folder: Path) -> Pooling:
    file = folder / "config.json"
    if not file.is_file():
        return Pooling.MEAN
    raw = read_object(file)
    named = raw.get("pooling_mode")  # as newer files have it; older ones say yes or no to each
    chosen = [named] if isinstance(named, str) else [mode for mode in POOLING_MODES if raw.get(f"pooling_mode_{mode}")]
    if len(chosen) == 1 and chosen[0] in _POOLINGS:
        return _POOLINGS[chosen[0]]
    listed = ", ".join(chosen) or "none"
    raise Unsupported(f"{folder.parent.name}: pooling by {listed[:80]} is not computed here, only by the mean or cls")


_POOLINGS = {
    "mean": Pooling.MEAN,
    "mean_tokens": Pooling.MEAN,
    "cls": Pooling.CLS,
    "cls_token": Pooling.CLS,
}


def _longest(folder: Path, default: int) -> int:
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        if (folder / name).is_file() and (raw := read_object(folder / name)).get(key) is not None:
            return integer(raw, key, folder.name)
    return default


def _read_list(path: Path) -> list[Any]:
    if path.stat().st_size > MAX_JSON:
        raise Invalid(f"{path.name}: larger than {MAX_JSON >> 20} MiB")
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataLoss(f"{path.name}: not a list in JSON: {error}", remedy="pull the model again") from error


def _checked(config: EncoderConfig, where: str) -> EncoderConfig:
    limits = {name: limit for name, limit in LIMITS.items() if name in EncoderConfig.__struct_fields__}
    most = LIMITS["context_length"]
    for field, limit in {**limits, "positions": most, "types": most, "longest": most}.items():
        value = getattr(config, field)
        if not 0 < value <= limit:
            raise Invalid(f"{where}: {field} is {value}, which must be from 1 to {limit}", field=field)
    if config.hidden_size % config.heads:
        raise Invalid(f"{where}: {config.heads} heads cannot share {config.hidden_size} elements", field="heads")
    if config.longest < 3:
        raise Invalid(f"{where}: {config.longest} tokens hold no text beside those of its begin and end")
    if not 0.0 < config.norm_eps <= 1.0:
        raise Invalid(f"{where}: norm_eps is {config.norm_eps}, which must be above 0 and at most 1", field="norm_eps")
    return config
