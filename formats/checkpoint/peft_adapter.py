"""An adapter as a folder: `adapter_config.json` beside `adapter_model.safetensors`, as PEFT saves it.

https://huggingface.co/docs/peft/developer_guides/checkpoint. The scale is `lora_alpha / r`, with `use_rslora`
`lora_alpha / sqrt(r)` (https://arxiv.org/abs/2312.03732). A field of the configuration that is not known here is
refused if it says anything: PEFT's new kinds of adapters are told apart by such fields only.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats.checkpoint.adapter import Adapter, Raw, check_size, made_of, shortened
from formats.checkpoint.architecture import DecoderConfig, integer, number
from formats.checkpoint.safetensors_checkpoint import NAMES
from formats.checkpoint.safetensors_files import FLOATS, Span, read_object, read_spans
from microkernel.errors import DataLoss, Invalid

__all__ = ["read_peft_adapter"]

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MODULES = {module: part for part, module in NAMES.items() if not part.endswith("norm")}
NAME = re.compile(
    rf"base_model\.model\.((?:model\.)?layers\.(0|[1-9][0-9]{{0,3}})\.({'|'.join(map(re.escape, MODULES))}))"
    r"\.lora_([AB])\.weight"
)
UNKNOWN = {  # what a tensor's name tells of an adapter that is more than low-rank products
    "lora_magnitude_vector": "DoRA is not computed here",
    "lora_embedding_": "adapters of embeddings are not computed here",
    "embed_tokens": "embeddings in adapters are not computed here",
    "lm_head": "the output matrix in adapters is not computed here",
    "bias": "biases in adapters are not computed here",
}
REFUSED = {
    "use_dora": "DoRA is not computed here",
    "lora_bias": "biases in adapters are not computed here",
    "modules_to_save": "whole modules in adapters (modules_to_save) are not computed here",
    "trainable_token_indices": "embeddings in adapters (trainable_token_indices) are not computed here",
    "alora_invocation_tokens": "adapters that begin at certain tokens (aLoRA) are not computed here",
}
HARMLESS = {  # what says where an adapter comes from and how it was trained, and what is read elsewhere
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "eva_config", "exclude_modules"),
    *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout"),
    *("megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision"),
    *("runtime_config", "target_modules", "task_type", "use_rslora"),
}
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # of training; others change the model's own weights
PLAIN = re.compile(r"[A-Za-z0-9_.]+")


def read_peft_adapter(folder: Path, config: DecoderConfig, max_rank: int) -> Adapter:
    """Read the folder; raises `Invalid`, `DataLoss` or `OSError`."""
    if not (folder / CONFIG).exists():
        raise Invalid(f"{folder.name} is no adapter: it has no {CONFIG}")
    if not (folder / WEIGHTS).exists() and (folder / PICKLED).exists():
        raise Invalid(
            f"{folder.name} has {PICKLED} only, and pickled weights are never read",
            remedy="save it again with safe_serialization=True",
        )
    raw = read_object(folder / CONFIG)
    _check(folder.name, raw)
    file = folder / WEIGHTS
    check_size(file.name, file.stat().st_size, config, max_rank)
    spans = read_spans(file)
    data = np.fromfile(file, dtype=np.uint8)
    parts: dict[str, tuple[str, dict[str, NDArray[np.float32]]]] = {}  # by canonical name: PEFT's, and the tensors
    for name, span in spans.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise _unknown(folder.name, name)
        module, layer, part, which = match.groups()
        canonical = f"blk.{layer}.{MODULES[part]}.weight"
        pair = parts.setdefault(canonical, (module, {}))[1]
        if which in pair:
            raise Invalid(f"{folder.name}: {module} comes under two names")
        pair[which] = _floats(file.name, name, span, data)
    scales = _Scales(folder.name, raw)
    pairs: dict[str, Raw] = {}
    for canonical, (module, pair) in parts.items():
        if len(pair) < 2:
            raise DataLoss(f"{file.name}: {module} has only lora_{next(iter(pair))}: the file is incomplete")
        pairs[canonical] = Raw(pair["A"], pair["B"], scales.of(module, pair["A"].shape[0]))
    return made_of(folder.name, pairs, config, max_rank, halves=True)


def _check(where: str, raw: dict[str, Any]) -> None:
    if raw.get("peft_type") != "LORA":
        raise Invalid(f"{where}: adapters of the type {str(raw.get('peft_type'))[:40]!r} are not computed here")
    for field, why in REFUSED.items():
        if raw.get(field):
            raise Invalid(f"{where}: {why}", field=field)
    if raw.get("bias", "none") != "none":
        raise Invalid(f"{where}: biases in adapters are not computed here", field="bias")
    start = raw.get("init_lora_weights", True)
    if start not in STARTS:
        raise Invalid(
            f"{where}: an adapter that began with {str(start)[:40]!r} belongs to changed weights of its model",
            field="init_lora_weights",
            remedy="let PEFT convert it: save_pretrained(…, path_initial_model_for_weight_conversion=…)",
        )
    for field, value in raw.items():
        if field not in HARMLESS and value:
            raise Invalid(f"{where}: '{shortened(field)}' is not computed here", field=shortened(field))


def _unknown(where: str, name: str) -> Invalid:
    for sign, why in UNKNOWN.items():
        if sign in name:
            return Invalid(f"{where}: tensor {shortened(name)}: {why}")
    return Invalid(f"{where}: the tensor {shortened(name)} is none that an adapter may have here")


class _Scales:
    """By which factor a module's product is added, and that its rank is the one the configuration tells of."""

    def __init__(self, where: str, raw: dict[str, Any]) -> None:
        self._where = where
        self._rank = integer(raw, "r", where)
        self._alpha = number(raw, "lora_alpha", where)
        self._rooted = bool(raw.get("use_rslora"))
        self._ranks = self._pattern(raw, "rank_pattern")
        self._alphas = self._pattern(raw, "alpha_pattern")

    def of(self, module: str, rank: int) -> float:
        expected = _matched(self._ranks, module, self._rank)
        if rank != expected:
            raise Invalid(f"{self._where}: {module} has the rank {rank}, and {CONFIG} says {expected}")
        alpha = _matched(self._alphas, module, self._alpha)
        return float(alpha / (math.sqrt(rank) if self._rooted else rank)) if rank else 0.0

    def _pattern(self, raw: dict[str, Any], field: str) -> dict[str, float]:
        """Numbers by module. Keys are regular expressions to PEFT; only names are taken, which it writes itself."""
        given = raw.get(field) or {}
        if not isinstance(given, dict):
            raise Invalid(f"{self._where}: '{field}' is no object", field=field)
        for key in given:
            if not PLAIN.fullmatch(key.removeprefix("^")):
                raise Invalid(f"{self._where}: {field} has {shortened(key)!r}, and only names are taken", field=field)
        return {key: number(given, key, self._where) for key in given}


def _matched(pattern: dict[str, float], module: str, otherwise: float) -> float:
    """The number of the first key that is `module`, or its end behind a dot; `^` allows for the whole name only."""
    for key, value in pattern.items():
        if module == key.removeprefix("^") or (not key.startswith("^") and module.endswith(f".{key}")):
            return value
    return otherwise


def _floats(where: str, name: str, span: Span, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    if span.dtype not in FLOATS:
        raise Invalid(f"{where}: tensor {shortened(name)} has the type {span.dtype[:40]}, not a float")
    if len(span.shape) != 2:
        raise Invalid(f"{where}: tensor {shortened(name)} has {len(span.shape)} dimensions, not 2")
    if span.end > len(data):
        raise DataLoss(f"{where}: the file was cut while it was read")
    raw = data[span.start : span.end].tobytes()
    if span.dtype == "BF16":
        values = (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(raw, dtype="<f4" if span.dtype == "F32" else "<f2").astype(np.float32)
    return values.reshape(span.shape)
