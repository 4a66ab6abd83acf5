"""Writes an adapter as PEFT saves it: `adapter_config.json` beside `adapter_model.safetensors`.

https://huggingface.co/docs/peft/developer_guides/checkpoint. What `peft_adapter` reads; modules are named as the
Hugging Face layout of the model names them. Phi-3's fused modules have no such parts in transformers, so PEFT does not
take an adapter of theirs, and `open_adapter` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from formats.checkpoint.adapter import TARGETS
from formats.checkpoint.architecture import DecoderConfig
from formats.checkpoint.safetensors_checkpoint import NAMES
from formats.checkpoint.safetensors_writer import fresh_folder, in_halves, write_json, write_tensors
from microkernel.errors import Invalid

__all__ = ["write_peft_adapter"]


def write_peft_adapter(
    folder: Path,
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    config: DecoderConfig,
    *,
    alpha: float,
    dropout: float = 0.0,
    model: str = "",
) -> None:
    """Write `pairs`: by canonical name `a` [rank, inputs] and `b` [outputs, rank] without the scale, all of one rank.

    `model` is what PEFT looks its base up by. Raises `AlreadyExists`, `Invalid` where ranks differ, and `OSError`.
    """
    ranks = {len(a) for a, _ in pairs.values()} | {b.shape[1] for _, b in pairs.values()}
    if len(ranks) != 1:
        raise Invalid(f"an adapter has one rank, and {sorted(ranks)} are given")
    tensors: dict[str, torch.Tensor] = {}
    for name, (a, b) in pairs.items():
        _, layer, part, _ = name.split(".")
        module = f"base_model.model.model.layers.{layer}.{NAMES[part]}"
        tensors[f"{module}.lora_A.weight"] = a.float().contiguous()
        tensors[f"{module}.lora_B.weight"] = in_halves(name, b.float(), config).contiguous()
    parts = {name.split(".")[2] for name in pairs}
    with fresh_folder(folder) as fresh:
        write_tensors(fresh / "adapter_model.safetensors", tensors)
        described = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": model,
            "r": ranks.pop(),
            "lora_alpha": alpha,
            "lora_dropout": dropout,
            "target_modules": [NAMES[part].rpartition(".")[2] for part in TARGETS if part in parts],
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
        }
        write_json(fresh / "adapter_config.json", described)
