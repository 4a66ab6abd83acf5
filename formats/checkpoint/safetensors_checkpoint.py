"""A folder in the Hugging Face layout as a checkpoint: `config.json` beside `*.safetensors`, in one file or shards.

Query and key rows are in rotary halves; `weight` gives pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from formats.checkpoint.architecture import (
    DecoderConfig,
    RopeScaling,
    Unsupported,
    check_config,
    expected_shapes,
    integer,
    number,
)
from formats.checkpoint.checkpoint import Dense, Stored, check_tensors, rotated
from formats.checkpoint.families import FAMILIES
from formats.checkpoint.family import Family
from formats.checkpoint.safetensors_files import FLOATS, read_object, read_tensors
from microkernel.errors import DataLoss, Invalid

__all__ = ["NAMES", "SafetensorsCheckpoint", "source_name"]

CLASSES = {family.hf_class: family for family in FAMILIES.values()}
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class SafetensorsCheckpoint:
    """Weights of a Hugging Face folder. Nothing read from it refers to the files afterwards."""

    def __init__(self, folder: Path) -> None:
        """Read and check `config.json` and every header; raises `Invalid`, `DataLoss` or `OSError`."""
        self.path = folder
        self.tokenizer_source = folder
        raw = read_object(folder / "config.json")
        self._tensors = read_tensors(folder)
        self.config = _config(folder.name, raw, self._dtype())
        shapes = expected_shapes(self.config)
        self._places = {name: _place(name, shapes, FAMILIES[self.config.architecture]) for name in shapes}
        check_tensors(
            folder.name,
            self.config,
            {
                name: place.shape_in(self._tensors[place.source].shape, shapes[name])
                for name, place in self._places.items()
                if place.source in self._tensors
            },
        )
        for place in self._places.values():
            kind = self._tensors[place.source].dtype
            if kind not in FLOATS:
                raise Invalid(f"{folder.name}: tensor {place.source} has the type {kind}, not a float")

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that canonical name."""
        return name in self._places

    def bits(self, name: str) -> float:
        """How many bits one weight of this tensor takes in the file."""
        return FLOATS[self.kind(name)] * 8.0

    def is_blocks(self, name: str) -> bool:  # noqa: ARG002 - the protocol's; this format has no blocks
        """Whether `weight` gives this tensor as 4-bit blocks: never."""
        return False

    def kind(self, name: str) -> str:
        """GGML's name for the type that this tensor is stored in: F32, F16 or BF16."""
        return self._tensors[self._places[name].source].dtype

    def stored(self, name: str) -> Stored:
        """One matrix as bfloat16, or as the float32 that the file has; its rows in canonical order."""
        kind = "F32" if self.kind(name) == "F32" else "BF16"
        values = self.weight(name, torch.float32 if kind == "F32" else torch.bfloat16).values
        return Stored(kind, values.contiguous().view(torch.uint8).numpy())

    def weight(self, name: str, dtype: torch.dtype = torch.float32) -> Dense:
        """Read one tensor as `dtype`. Raises `DataLoss` where it cannot be read or holds no finite numbers."""
        place = self._places[name]
        source, file = place.source, self._tensors[place.source].file
        try:
            with safe_open(file, framework="pt") as tensors:
                values = tensors.get_slice(source)[place.first : place.end].to(dtype, copy=True)
        except SafetensorError as error:
            raise DataLoss(f"{file.name}: tensor {source} cannot be read: {error}") from error
        # A NaN comes out as both; no copy is made, as a sum in float64 would.
        if not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):
            raise DataLoss(f"{file.name}: tensor {source} holds numbers that are not finite: the file is damaged")
        order = rotated(name, self.config)
        return Dense(values if order is None else values[order], self.bits(name))

    def _dtype(self) -> str:
        kinds = [tensor.dtype for tensor in self._tensors.values() if len(tensor.shape) > 1]
        return max(sorted(set(kinds)), key=kinds.count, default="")


class _Place(msgspec.Struct, frozen=True):
    """Where a canonical tensor is: rows from `first` to `end` of the file's tensor `source`, which has `rows`."""

    source: str
    first: int
    end: int
    rows: int

    def shape_in(self, shape: tuple[int, ...], expected: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, if `source` has `shape`; that of `source` where it has other rows than it should."""
        if self.rows == self.end - self.first or shape != (self.rows, *expected[1:]):
            return shape
        return expected


def _place(name: str, shapes: dict[str, tuple[int, ...]], family: Family) -> _Place:
    prefix, _, part = name.removesuffix(".weight").rpartition(".")
    fused = family.fused_part(part) if name.endswith(".weight") else None
    if fused is None:
        return _Place(source_name(name), 0, shapes[name][0], shapes[name][0])
    rows = [shapes[f"{prefix}.{each}.weight"][0] for each in fused.parts]
    index = fused.parts.index(part)
    layer = prefix.removeprefix("blk.")
    return _Place(f"model.layers.{layer}.{fused.hf}.weight", sum(rows[:index]), sum(rows[: index + 1]), sum(rows))


def source_name(name: str) -> str:
    """What the Hugging Face layout calls the tensor that GGUF calls `name`."""
    match name:
        case "token_embd.weight":
            return "model.embed_tokens.weight"
        case "output_norm.weight":
            return "model.norm.weight"
        case "output.weight":
            return "lm_head.weight"
    if not name.startswith("blk."):
        return name
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.{kind}"


def _config(where: str, raw: dict[str, Any], dtype: str) -> DecoderConfig:
    name = (raw.get("architectures") or [None])[0] if isinstance(raw.get("architectures"), list | None) else None
    family = CLASSES.get(str(name))
    if family is None:
        raise Unsupported(
            f"{where}: the architecture {str(name)[:60]!r} is not one that is computed here",
            remedy=f"use one of {', '.join(CLASSES)}",
        )
    _refuse_unknown(where, raw)
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise Unsupported(f"{where}: rope_parameters that differ by layer are not computed here", field="rope_scaling")
    hidden, heads = integer(raw, "hidden_size", where), integer(raw, "num_attention_heads", where)
    if heads < 1:
        raise Invalid(f"{where}: num_attention_heads is {heads}", field="heads")
    theta = {"rope_theta": raw.get("rope_theta") or rope.get("rope_theta") or 10000.0}
    bias = family.qkv_bias or bool(raw.get("attention_bias", False))
    window, window_from = _sliding_window(where, raw, family)
    config = DecoderConfig(
        architecture=family.name,
        layers=integer(raw, "num_hidden_layers", where),
        hidden_size=hidden,
        heads=heads,
        kv_heads=integer(_present(raw), "num_key_value_heads", where, heads),
        head_dim=integer(_present(raw), "head_dim", where, hidden // heads),
        ffn_size=integer(raw, "intermediate_size", where),
        vocab_size=integer(raw, "vocab_size", where),
        context_length=integer(raw, "max_position_embeddings", where),
        rope_theta=float(number(theta, "rope_theta", where)),
        rope_scaling=_rope_scaling(where, rope, raw),
        norm_eps=float(number(raw, "rms_norm_eps", where, 1e-6)),
        tied_embeddings=bool(raw.get("tie_word_embeddings", family.tied)),
        qkv_bias=bias,
        output_bias=bias and not family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window=window,
        sliding_from=window_from,
        quantization=dtype,
    )
    return check_config(config, where)


def _present(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if value is not None}


def _refuse_unknown(where: str, raw: dict[str, Any]) -> None:
    if raw.get("quantization_config"):
        raise Invalid(f"{where}: a quantised safetensors model is not read here", remedy="use its GGUF file")
    if raw.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"{where}: the activation {str(raw['hidden_act'])[:40]!r} is not computed here, only silu")
    if raw.get("mlp_bias"):
        raise Unsupported(f"{where}: biases in the feed-forward layers are not computed here")
    if _partial(raw) or _partial(raw.get("rope_parameters")):
        raise Unsupported(f"{where}: rotating only a part of each head is not computed here")


def _partial(section: Any) -> bool:
    return isinstance(section, dict) and section.get("partial_rotary_factor", 1.0) not in (1.0, None)


def _sliding_window(where: str, raw: dict[str, Any], family: Family) -> tuple[int | None, int]:
    """The window in tokens, and the first layer that has it: Qwen's lower layers see everything."""
    if raw.get("sliding_window") is None:
        return None, 0
    window = integer(raw, "sliding_window", where)
    if family.window == "given":
        return window, 0
    if not raw.get("use_sliding_window", False):
        return None, 0
    return window, integer(_present(raw), "max_window_layers", where, 0)


def _rope_scaling(where: str, rope: dict[str, Any], raw: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise Unsupported(f"{where}: rope scaling {str(kind)[:40]!r} is not known here: linear, llama3 and yarn are")
    rope = _present(rope)
    attention = rope.get("attention_factor")
    if "mscale" in rope or "mscale_all_dim" in rope:
        raise Unsupported(f"{where}: rope scaling with 'mscale' is not known here")
    return RopeScaling(
        kind=kind,
        factor=float(number(rope, "factor", where)),
        original_length=integer(
            rope, "original_max_position_embeddings", where, integer(raw, "max_position_embeddings", where)
        ),
        low_freq_factor=float(number(rope, "low_freq_factor", where, 1.0)),
        high_freq_factor=float(number(rope, "high_freq_factor", where, 4.0)),
        beta_fast=float(number(rope, "beta_fast", where, 32.0)),
        beta_slow=float(number(rope, "beta_slow", where, 1.0)),
        attention_factor=None if attention is None else float(number(rope, "attention_factor", where)),
    )
