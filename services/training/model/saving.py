"""What was trained as files that others load: an adapter as PEFT's folder, a whole model as Hugging Face's.

Each appears under its name only when all of it is on the disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from formats.checkpoint.architecture import DecoderConfig, RopeScaling
from formats.checkpoint.peft_writer import write_peft_adapter
from formats.checkpoint.rope import frequencies
from formats.checkpoint.safetensors_writer import fresh_folder, hf_config, hf_tensors, write_json, write_tensors
from microkernel.errors import Unimplemented
from services.training.config import MethodConfig
from services.training.model.flat import FlatParameters
from services.training.model.tokenizer_files import define_tokenizer, write_tokenizer

__all__ = ["save_adapter", "save_model"]


def save_adapter(
    folder: Path, flat: FlatParameters, config: DecoderConfig, method: MethodConfig, *, model: str = ""
) -> None:
    """Write the adapter in `flat`; `model` names its base to PEFT. Raises `AlreadyExists` and `OSError`."""
    names = [slot.name.removesuffix(".lora_a") for slot in flat.layout.slots if slot.name.endswith(".lora_a")]
    pairs = {name: (flat.value(f"{name}.lora_a"), flat.value(f"{name}.lora_b")) for name in names}
    write_peft_adapter(folder, pairs, config, alpha=method.alpha, dropout=method.dropout, model=model)


def save_model(
    folder: Path,
    flat: FlatParameters,
    config: DecoderConfig,
    tokenizer: Path | Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
    rope_factors: torch.Tensor | None = None,
) -> None:
    """Write the model in `flat`, trained in full, as `dtype`, with the tokenizer of a checkpoint's `tokenizer_source`.

    `rope_factors` are those of a GGUF file. Raises `AlreadyExists`, `OSError`, what reading the tokenizer raises, and
    `Unimplemented` for a model that `config.json` cannot say.
    """
    if rope_factors is not None:
        config = _with_scaling(config, rope_factors)
    definition = define_tokenizer(tokenizer)
    with fresh_folder(folder) as fresh:
        write_json(
            fresh / "config.json", hf_config(config, dtype, bos=definition.bos_id, eos=sorted(definition.eos_ids))
        )
        write_tensors(fresh / "model.safetensors", hf_tensors(config, flat.value, dtype))
        write_tokenizer(fresh, tokenizer, definition)


def _with_scaling(config: DecoderConfig, factors: torch.Tensor) -> DecoderConfig:
    """`config` with the scaling by name that `factors` [head size / 2] came from: Llama 3.1's, as all published."""
    scaling = RopeScaling(kind="llama3", factor=float(factors.max()), original_length=8192)
    named = msgspec.structs.replace(config, rope_scaling=scaling)
    expected = frequencies(config)[0] / frequencies(named)[0]
    if not torch.allclose(expected, factors.double().cpu(), rtol=1e-4):
        raise Unimplemented(
            "the factors of this GGUF file's rotary frequencies have no name that config.json could have for them",
            remedy="train from the model's folder with safetensors, or an adapter",
        )
    return named
