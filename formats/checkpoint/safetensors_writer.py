"""Writes a model as a folder in the Hugging Face layout: `config.json` beside `model.safetensors`.

What `safetensors_checkpoint` reads, and transformers: names as there, rows of queries and keys in rotary halves, and
the matrices that a family fuses in one. A folder appears under its name when all of it is on the disk.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from formats.checkpoint.architecture import DecoderConfig, RopeScaling, expected_shapes
from formats.checkpoint.checkpoint import rotated
from formats.checkpoint.families import FAMILIES
from formats.checkpoint.family import Family
from formats.checkpoint.safetensors_checkpoint import source_name
from microkernel.errors import AlreadyExists, Unimplemented

__all__ = ["fresh_folder", "hf_config", "hf_tensors", "in_halves", "write_json", "write_tensors"]

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled: it takes the name `path` behind the block, synced, or is removed where that fails.

    Raises `AlreadyExists` where the name is taken by a folder that is not empty, or by a file.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AlreadyExists(f"{path.name} is there already", field="path")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    fresh.mkdir()
    try:
        yield fresh
        for file in (*sorted(fresh.iterdir()), fresh):
            _sync(file)
        fresh.replace(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _sync(path.parent)


def hf_config(config: DecoderConfig, dtype: torch.dtype, *, bos: int | None, eos: Sequence[int]) -> dict[str, Any]:
    """What belongs into `config.json`; what a model has not is null, for transformers has defaults of its own.

    Raises `Unimplemented` for a shape that no class of transformers has.
    """
    family = _family(config)
    biased = config.qkv_bias and not family.qkv_bias
    raw: dict[str, Any] = {
        "architectures": [family.hf_class],
        "model_type": family.name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": biased,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "use_cache": True,
        "torch_dtype": DTYPES[dtype],
        "bos_token_id": bos,
        "eos_token_id": list(eos) if len(eos) > 1 else next(iter(eos), None),
        "pad_token_id": None,
    }
    if config.rope_scaling is not None:
        raw["rope_scaling"] = _rope_scaling(config.rope_scaling, config.context_length)
    if family.window == "given":
        raw["sliding_window"] = config.sliding_window
    elif config.sliding_window is not None:
        raw |= {"use_sliding_window": True, "sliding_window": config.sliding_window}
        raw["max_window_layers"] = config.sliding_from
    return raw


def hf_tensors(
    config: DecoderConfig, weight: Callable[[str], torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """What `weight` gives for each canonical name, by the names and in the order of rows of the layout, as `dtype`."""
    family = _family(config)
    tensors: dict[str, torch.Tensor] = {}
    for name in expected_shapes(config):
        prefix, _, part = name.removesuffix(".weight").rpartition(".")
        fused = family.fused_part(part) if name.endswith(".weight") else None
        if fused is None:
            tensors[source_name(name)] = in_halves(name, weight(name), config).to(dtype).contiguous()
        elif part == fused.parts[0]:
            names = [f"{prefix}.{each}.weight" for each in fused.parts]
            whole = torch.cat([in_halves(each, weight(each), config) for each in names]).to(dtype)
            tensors[f"model.layers.{prefix.removeprefix('blk.')}.{fused.hf}.weight"] = whole
    return tensors


def in_halves(name: str, values: torch.Tensor, config: DecoderConfig) -> torch.Tensor:
    """`values` of a canonical tensor with the rows of query and key heads as the Hugging Face layout has them."""
    order = rotated(name, config)
    if order is None:
        return values
    halves = torch.empty_like(values)
    halves[order.to(values.device)] = values
    return halves


def write_tensors(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file."""
    save_file({name: tensor.detach().cpu() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write an object as people read it."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _family(config: DecoderConfig) -> Family:
    """The family whose class computes the model: a Mistral from a GGUF file calls itself a Llama."""
    name = config.architecture
    if name == "llama" and config.sliding_window is not None and config.sliding_from == 0:
        name = "mistral"
    family = FAMILIES[name]
    biases = (config.qkv_bias, config.output_bias)
    allowed = {"llama": ((False, False), (True, True)), "qwen3": ((False, False), (True, True))}
    if biases not in allowed.get(name, ((family.qkv_bias, False),)) or config.qk_norm is not family.qk_norm:
        raise Unimplemented(f"no class of transformers has the biases and norms of this model of the family {name}")
    return family


def _rope_scaling(scaling: RopeScaling, context: int) -> dict[str, Any]:
    raw: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return raw
    raw["original_max_position_embeddings"] = scaling.original_length or context
    if scaling.kind == "llama3":
        return raw | {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    raw |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    return raw if scaling.attention_factor is None else raw | {"attention_factor": scaling.attention_factor}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
