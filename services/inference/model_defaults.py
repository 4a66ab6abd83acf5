"""How a model's authors say it should be sampled: GGUF's `general.sampling.*`, or `generation_config.json`.

A hint, never a reason to refuse a model: what is not a number is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from services.inference.messages import SamplingParams

__all__ = ["model_defaults"]

# GGUF's names where they differ from ours
_GGUF_NAMES = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}
_NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def model_defaults(source: Mapping[str, Any] | Path) -> SamplingParams:
    """From a checkpoint's metadata, or from the folder that it lies in. `do_sample: false` there means greedy."""
    if isinstance(source, Path):
        values = _folder(source)
        if values.get("do_sample") is False:
            return SamplingParams(temperature=0.0)
        return _params(values)
    return _params({name: source.get(f"general.sampling.{_GGUF_NAMES.get(name, name)}") for name in _NAMES})


def _folder(folder: Path) -> Mapping[str, Any]:
    try:
        values = orjson.loads((folder / "generation_config.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


def _params(values: Mapping[str, Any]) -> SamplingParams:
    known: dict[str, Any] = {}
    for name in _NAMES:
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        known[name] = int(value) if name == "top_k" else float(value)
    return SamplingParams(**known)
