"""The families of models that are computed here: a file each."""

from __future__ import annotations

from formats.checkpoint.families import llama, mistral, phi3, qwen2, qwen3
from formats.checkpoint.family import Family

__all__ = ["FAMILIES"]

FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in (llama, mistral, phi3, qwen2, qwen3)}
