"""Low-rank adapters with random weights for tiny models, as PEFT's folders and llama.cpp's GGUF files; and merged."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from formats.checkpoint.architecture import DecoderConfig, expected_shapes
from formats.checkpoint.checkpoint import Checkpoint, Dense, open_checkpoint, pair_rows
from formats.checkpoint.safetensors_checkpoint import NAMES
from services.inference.eager.decoder import Decoder

TARGETS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def random_pairs(
    config: DecoderConfig, *, rank: int = 8, seed: int = 0, targets: tuple[str, ...] = TARGETS, layers=None
) -> Pairs:
    """By canonical name `a` [rank, inputs] and `b` [outputs, rank], rows of `b` as a checkpoint has them.

    Large enough that leaving out one of them moves the logits further than rounding does.
    """
    generator = np.random.default_rng(seed)
    pairs = {}
    for layer in range(config.layers) if layers is None else layers:
        for part in targets:
            outputs, inputs = expected_shapes(config)[f"blk.{layer}.{part}.weight"]
            a = generator.normal(0, inputs**-0.5, (rank, inputs)).astype(np.float32)
            b = generator.normal(0, 0.5 * rank**-0.5, (outputs, rank)).astype(np.float32)
            pairs[f"blk.{layer}.{part}.weight"] = (a, b)
    return pairs


class Merged:
    """A checkpoint with the products added to its dequantised weights."""

    def __init__(self, checkpoint: Checkpoint, pairs: Pairs, scale: float = 1.0) -> None:
        self._checkpoint = checkpoint
        self._pairs = pairs
        self._scale = scale

    def __getattr__(self, name: str):
        return getattr(self._checkpoint, name)

    def weight(self, name: str, dtype: torch.dtype = torch.float32) -> Dense:
        values = self._checkpoint.weight(name).dequantize()
        if name in self._pairs:
            a, b = (torch.tensor(each) for each in self._pairs[name])
            values = values + self._scale * (b @ a)
        return Dense(values.to(dtype), 32.0)


def merged_decoder(path: Path, pairs: Pairs, scale: float = 1.0) -> Decoder:
    """Plain torch in float32 with merged weights: what an adapter is held against."""
    checkpoint = Merged(open_checkpoint(path), pairs, scale)
    return Decoder(checkpoint, device=torch.device("cpu"), dtype=torch.float32)


def in_halves(name: str, rows: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """Rows of queries and keys as the Hugging Face layout has them, the others as they are."""
    part = name.split(".")[2]
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(part)
    if heads is None:
        return rows
    stored = np.empty_like(rows)
    stored[pair_rows(heads, config.head_dim).numpy()] = rows
    return stored


def peft_tensors(pairs: Pairs, config: DecoderConfig, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The tensors of a PEFT folder."""
    tensors = {}
    for name, (a, b) in pairs.items():
        _, layer, part, _ = name.split(".")
        module = f"base_model.model.model.layers.{layer}.{NAMES[part]}"
        tensors[f"{module}.lora_A.weight"] = torch.tensor(a).to(dtype)
        tensors[f"{module}.lora_B.weight"] = torch.tensor(in_halves(name, b, config)).to(dtype)
    return tensors


def write_peft(folder: Path, tensors: dict[str, torch.Tensor], **fields: object) -> Path:
    """Write a PEFT folder; its configuration is what PEFT writes for a plain adapter, but for `fields`."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = next((len(tensor) for name, tensor in tensors.items() if "lora_A" in name), 8)
    config = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": rank,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | fields))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def write_gguf_adapter(
    path: Path,
    pairs: Pairs,
    config: DecoderConfig,
    *,
    alpha: float | None = None,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    **metadata: str,
) -> Path:
    """Write a GGUF adapter; without `alpha` none is in it. Keys of `metadata` have `__` for a dot."""
    architecture = "llama" if config.architecture == "mistral" else config.architecture
    writer = gguf.GGUFWriter(path, metadata.pop("general__architecture", architecture))
    writer.add_type(metadata.pop("general__type", gguf.GGUFType.ADAPTER))
    writer.add_string("adapter.type", metadata.pop("adapter__type", "lora"))
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in pairs.items():
        rows = b if architecture == "llama" else in_halves(name, b, config)
        writer.add_tensor(f"{name}.lora_a", gguf.quantize(a, kind), raw_dtype=kind)
        writer.add_tensor(f"{name}.lora_b", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
