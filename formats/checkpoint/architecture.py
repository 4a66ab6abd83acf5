"""The shape of a decoder: everything about a model that is known before a single weight is read.

Two spellings lead here: a GGUF file's metadata (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and the
`config.json` of the Hugging Face layout. What this engine does not know how to compute is refused, never ignored.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from formats.checkpoint.families import FAMILIES
from microkernel.errors import Invalid

__all__ = ["ARCHITECTURES", "LIMITS", "DecoderConfig", "RopeScaling", "Unsupported", "check_config", "expected_shapes"]

ARCHITECTURES = tuple(FAMILIES)
"""What is computed; SmolLM is a `llama`, and so is Mistral in a GGUF file."""

LIMITS = {
    "layers": 1024,
    "hidden_size": 1 << 17,
    "heads": 1024,
    "kv_heads": 1024,
    "head_dim": 1024,
    "ffn_size": 1 << 20,
    "vocab_size": 1 << 22,
    "context_length": 1 << 27,
}
"""Far above any published model: a number beyond these is damage or an attack on memory."""


class Unsupported(Invalid):
    """A model of a shape that is not computed here; nothing is wrong with its files, and another engine may know it."""


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True):
    """How positions beyond the trained length are squeezed. `kind` is linear, llama3 or yarn.

    linear: https://arxiv.org/abs/2306.15595; llama3: Llama 3.1's bands (`low_freq_factor` and `high_freq_factor` in
    periods of the `original_length`); yarn: https://arxiv.org/abs/2309.00071 (`beta_fast` and `beta_slow` in turns).
    """

    kind: str
    factor: float
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


class DecoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder's sizes and constants. Sizes count elements, `context_length` and `sliding_window` tokens.

    `sliding_window` None attends to everything; otherwise layers from `sliding_from` on see that many tokens, the
    current one included. `quantization` is what a person calls the file: Q4_1, BF16.
    `counted` weights were found in the files of a model whose shapes are not known here.
    """

    architecture: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    context_length: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    sliding_from: int = 0
    quantization: str = ""
    counted: int | None = None

    @property
    def parameters(self) -> int:
        """How many weights there are; tied embeddings count once."""
        if self.counted is not None:
            return self.counted
        return sum(math.prod(shape) for shape in expected_shapes(self).values())

    def window(self, layer: int) -> int | None:
        """How many tokens `layer` sees; None is all of them."""
        return self.sliding_window if layer >= self.sliding_from else None


def check_config(config: DecoderConfig, where: str) -> DecoderConfig:
    """`config` itself, or `Invalid` that names the number which cannot be; `where` is the file's name."""
    for field, limit in LIMITS.items():
        value = getattr(config, field)
        if not 0 < value <= limit:
            raise Invalid(f"{where}: {field} is {value}, which must be from 1 to {limit}", field=field)
    if config.heads % config.kv_heads:
        raise Invalid(f"{where}: {config.heads} heads cannot share {config.kv_heads} key/value heads", field="kv_heads")
    if config.head_dim % 2:
        raise Invalid(
            f"{where}: head_dim is {config.head_dim}, and rotary positions need an even one", field="head_dim"
        )
    for field, value, top in (("norm_eps", config.norm_eps, 1.0), ("rope_theta", config.rope_theta, 1e12)):
        if not 0.0 < value <= top:
            raise Invalid(f"{where}: {field} is {value}, which must be above 0 and at most {top:g}", field=field)
    if config.sliding_window is not None and config.sliding_window < 1:
        raise Invalid(f"{where}: sliding_window is {config.sliding_window}", field="sliding_window")
    scaling = config.rope_scaling
    if scaling is not None and not (1.0 <= scaling.factor <= 1e6 and scaling.original_length >= 0):
        raise Invalid(f"{where}: rope scaling by {scaling.factor} is not from 1 to 1e6", field="rope_scaling")
    return config


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this shape must have, by canonical (GGUF) name; rows are outputs."""
    hidden, queries, keys = config.hidden_size, config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, hidden)}
    for index in range(config.layers):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (hidden,),
            "attn_q.weight": (queries, hidden),
            "attn_k.weight": (keys, hidden),
            "attn_v.weight": (keys, hidden),
            "attn_output.weight": (hidden, queries),
            "ffn_norm.weight": (hidden,),
            "ffn_gate.weight": (config.ffn_size, hidden),
            "ffn_up.weight": (config.ffn_size, hidden),
            "ffn_down.weight": (hidden, config.ffn_size),
        }
        if config.qkv_bias:
            layer |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        if config.output_bias:
            layer |= {"attn_output.bias": (hidden,)}
        if config.qk_norm:
            layer |= {"attn_q_norm.weight": (config.head_dim,), "attn_k_norm.weight": (config.head_dim,)}
        shapes |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    shapes["output_norm.weight"] = (hidden,)
    if not config.tied_embeddings:
        shapes["output.weight"] = (config.vocab_size, hidden)
    return shapes


def number(metadata: dict[str, Any], key: str, where: str, default: float | None = None) -> float:
    """The number that `metadata` has under `key`; `Invalid` where it is missing, no number, or not finite."""
    value = metadata.get(key, default)
    if value is None:
        raise Invalid(f"{where}: '{key}' is missing", field=key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Invalid(f"{where}: '{key}' is {str(value)[:40]!r}, not a number", field=key)
    return value


def integer(metadata: dict[str, Any], key: str, where: str, default: int | None = None) -> int:
    """The whole number that `metadata` has under `key`; `Invalid` where there is none."""
    value = number(metadata, key, where, default)
    if value != int(value):
        raise Invalid(f"{where}: '{key}' is {value}, not a whole number", field=key)
    return int(value)
