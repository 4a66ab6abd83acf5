"""A folder in the Hugging Face layout as a checkpoint: `config.json` beside `*.safetensors`, in one file or shards.

The format: https://github.com/huggingface/safetensors#format. Headers are read here first, so that a file that was
cut off is named before the library maps it. Query and key rows are in rotary halves; `weight` gives pairs.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from microkernel.errors import DataLoss, Invalid
from services.inference.checkpoint.architecture import (
    DecoderConfig,
    RopeScaling,
    check_config,
    expected_shapes,
    integer,
    number,
)
from services.inference.checkpoint.checkpoint import Dense, Stored, check_tensors, rotated

__all__ = ["DTYPES", "SafetensorsCheckpoint", "Span", "read_json", "read_spans"]

CLASSES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
DTYPES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER = 100 << 20  # the format's own limit
MAX_JSON = 16 << 20
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


class Span(msgspec.Struct, frozen=True):
    """One tensor in a file: its type, its shape, and its bytes from `start` to `end` of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsCheckpoint:
    """Weights of a Hugging Face folder. Nothing read from it refers to the files afterwards."""

    def __init__(self, folder: Path) -> None:
        """Read and check `config.json` and every header; raises `Invalid`, `DataLoss` or `OSError`."""
        self.path = folder
        self.tokenizer_source = folder
        raw = read_json(folder / "config.json")
        self._tensors: dict[str, tuple[Path, str, tuple[int, ...]]] = {}  # by the file's name: file, dtype, shape
        for file in _shards(folder):
            for name, span in read_spans(file).items():
                self._tensors[name] = (file, span.dtype, span.shape)
        self.config = _config(folder.name, raw, self._dtype())
        names = {name: _source_name(name) for name in expected_shapes(self.config)}
        check_tensors(
            folder.name,
            self.config,
            {name: self._tensors[source][2] for name, source in names.items() if source in self._tensors},
        )
        for source in names.values():
            if self._tensors[source][1] not in DTYPES:
                raise Invalid(f"{folder.name}: tensor {source} has the type {self._tensors[source][1]}, not a float")

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that canonical name."""
        return _source_name(name) in self._tensors

    def bits(self, name: str) -> float:
        """How many bits one weight of this tensor takes in the file."""
        return DTYPES[self._tensors[_source_name(name)][1]] * 8.0

    def is_blocks(self, name: str) -> bool:  # noqa: ARG002 - the protocol's; this format has no blocks
        """Whether `weight` gives this tensor as 4-bit blocks: never."""
        return False

    def kind(self, name: str) -> str:
        """GGML's name for the type that this tensor is stored in: F32, F16 or BF16."""
        return self._tensors[_source_name(name)][1]

    def stored(self, name: str) -> Stored:
        """One matrix as bfloat16, or as the float32 that the file has; its rows in canonical order."""
        kind = "F32" if self.kind(name) == "F32" else "BF16"
        values = self.weight(name, torch.float32 if kind == "F32" else torch.bfloat16).values
        return Stored(kind, values.contiguous().view(torch.uint8).numpy())

    def weight(self, name: str, dtype: torch.dtype = torch.float32) -> Dense:
        """Read one tensor as `dtype`. Raises `DataLoss` where it cannot be read or holds no finite numbers."""
        source = _source_name(name)
        file = self._tensors[source][0]
        try:
            with safe_open(file, framework="pt") as tensors:
                values = tensors.get_tensor(source).to(dtype, copy=True)
        except SafetensorError as error:
            raise DataLoss(f"{file.name}: tensor {source} cannot be read: {error}") from error
        if not bool(torch.isfinite(values.sum(dtype=torch.float64))):
            raise DataLoss(f"{file.name}: tensor {source} holds numbers that are not finite: the file is damaged")
        order = rotated(name, self.config)
        return Dense(values if order is None else values[order], self.bits(name))

    def _dtype(self) -> str:
        kinds = [dtype for _, dtype, shape in self._tensors.values() if len(shape) > 1]
        return max(sorted(set(kinds)), key=kinds.count, default="")


def _source_name(name: str) -> str:
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


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that is the file `path`; raises `Invalid` or `DataLoss` where it is none, or `OSError`."""
    if path.stat().st_size > MAX_JSON:
        raise Invalid(f"{path.name}: larger than {MAX_JSON >> 20} MiB")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataLoss(f"{path.name}: not JSON: {error}", remedy="pull the model again") from error
    if not isinstance(value, dict):
        raise Invalid(f"{path.name}: not a JSON object")
    return value


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise Invalid(f"{index.name}: has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name:
                raise Invalid(f"{index.name}: '{name[:64]}' is not a file name in its own folder")
            if not (folder / name).is_file():
                raise DataLoss(f"{folder.name}: the shard {name} is missing", remedy="pull the model again")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Invalid(f"{folder.name}: no *.safetensors beside config.json")
    return files


def read_spans(path: Path) -> dict[str, Span]:
    """The tensors of a file by name, after a check that it is as long as its header says; raises as `read_json`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MAX_HEADER
        if length > MAX_HEADER or 8 + length > size:
            raise DataLoss(
                f"{path.name}: the file ends at byte {size}, before its header does: the download is incomplete or it "
                "is no safetensors file",
                remedy="pull the model again",
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise DataLoss(f"{path.name}: the header is not JSON", remedy="pull the model again") from error
    if not isinstance(header, dict):
        raise Invalid(f"{path.name}: the header is not a JSON object")
    tensors: dict[str, Span] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, start, end = _entry(path.name, name, entry)
        if 8 + length + end > size:
            raise DataLoss(
                f"{path.name}: the file ends at byte {size}, tensor {name[:64]!r} needs bytes up to "
                f"{8 + length + end}: the download is incomplete",
                remedy="pull the model again",
            )
        tensors[name] = Span(dtype, shape, 8 + length + start, 8 + length + end)
    return tensors


def _entry(where: str, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if all(
            isinstance(size, int) and size >= 0 for size in shape
        ):
            if 0 <= start <= end and (dtype not in DTYPES or end - start == math.prod(shape) * DTYPES[dtype]):
                return dtype, tuple(shape), start, end
    raise Invalid(f"{where}: the header's entry for tensor {name[:64]!r} makes no sense")


def _config(where: str, raw: dict[str, Any], dtype: str) -> DecoderConfig:
    name = (raw.get("architectures") or [None])[0] if isinstance(raw.get("architectures"), list | None) else None
    architecture = CLASSES.get(str(name))
    if architecture is None:
        raise Invalid(
            f"{where}: the architecture {str(name)[:60]!r} is not one that is computed here",
            remedy=f"use one of {', '.join(CLASSES)}",
        )
    _refuse_unknown(where, raw)
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise Invalid(f"{where}: rope_parameters that differ by layer are not computed here", field="rope_scaling")
    hidden, heads = integer(raw, "hidden_size", where), integer(raw, "num_attention_heads", where)
    if heads < 1:
        raise Invalid(f"{where}: num_attention_heads is {heads}", field="heads")
    theta = {"rope_theta": raw.get("rope_theta") or rope.get("rope_theta") or 10000.0}
    bias = architecture == "qwen2" or bool(raw.get("attention_bias", False))
    window, window_from = _sliding_window(where, raw, architecture)
    config = DecoderConfig(
        architecture=architecture,
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
        tied_embeddings=bool(raw.get("tie_word_embeddings", architecture == "qwen2")),
        qkv_bias=bias,
        output_bias=bias and architecture != "qwen2",
        qk_norm=architecture == "qwen3",
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
        raise Invalid(f"{where}: the activation {str(raw['hidden_act'])[:40]!r} is not computed here, only silu")
    if raw.get("mlp_bias"):
        raise Invalid(f"{where}: biases in the feed-forward layers are not computed here")
    if _partial(raw) or _partial(raw.get("rope_parameters")):
        raise Invalid(f"{where}: rotating only a part of each head is not computed here")


def _partial(section: Any) -> bool:
    return isinstance(section, dict) and section.get("partial_rotary_factor", 1.0) not in (1.0, None)


def _sliding_window(where: str, raw: dict[str, Any], architecture: str) -> tuple[int | None, int]:
    """The window in tokens, and the first layer that has it: Qwen's lower layers see everything."""
    if raw.get("sliding_window") is None:
        return None, 0
    window = integer(raw, "sliding_window", where)
    if architecture == "mistral":
        return window, 0
    if not raw.get("use_sliding_window", False):
        return None, 0
    return window, integer(_present(raw), "max_window_layers", where, 0)


def _rope_scaling(where: str, rope: dict[str, Any], raw: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind not in ("linear", "llama3", "yarn"):
        raise Invalid(f"{where}: rope scaling {str(kind)[:40]!r} is not known here: linear, llama3 and yarn are")
    rope = _present(rope)
    attention = rope.get("attention_factor")
    if "mscale" in rope or "mscale_all_dim" in rope:
        raise Invalid(f"{where}: rope scaling with 'mscale' is not known here")
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
