"""A GGUF file as a checkpoint: memory-mapped, 4-bit blocks kept as they are, every other type dequantised.

Converters write the query and key rows of `llama` in rotary pairs and leave those of others in halves (llama.cpp calls
them NORM and NEOX); `weight` gives pairs for both.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import dequantize

from formats.checkpoint.architecture import (
    DecoderConfig,
    RopeScaling,
    check_config,
    expected_shapes,
    integer,
    number,
)
from formats.checkpoint.checkpoint import GROUP, Blocks, Dense, Stored, Weight, check_tensors, rotated
from formats.checkpoint.families import FAMILIES
from formats.checkpoint.family import Family
from formats.checkpoint.gguf_header import Header, TensorSpan, read_header
from microkernel.errors import DataLoss, Invalid

__all__ = ["GGUFCheckpoint"]

NAMES = {family.name: family for family in FAMILIES.values() if family.in_gguf}
FOUR_BITS = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1)
SLAB = 1 << 22  # weights dequantised at once: 16 MiB of float32 beside the result


class GGUFCheckpoint:
    """Weights of one `.gguf` file. Nothing read from it refers to the file afterwards."""

    def __init__(self, path: Path) -> None:
        """Read and check the header; raises `Invalid`, `DataLoss` or `OSError`."""
        self.path = path
        header = read_header(path)
        self.config = _config(path.name, header)
        self._family = NAMES[self.config.architecture]
        self._spans = _unfused(path.name, header.tensors, self.config, self._family)
        self.tokenizer_source: dict[str, Any] = {
            key: value for key, value in header.metadata.items() if key.startswith(("tokenizer.", "general.sampling."))
        }
        check_tensors(path.name, self.config, {name: span.shape for name, span in self._spans.items()})
        if "rope_freqs.weight" in self._spans:
            _check_factors(path.name, self._spans["rope_freqs.weight"], self.config)
        for name in expected_shapes(self.config):
            self._check_type(self._spans[name])
        # Copy on write: torch takes no read-only memory, and nobody writes to it.
        self._data = np.memmap(path, dtype=np.uint8, mode="c")

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that canonical name."""
        return name in self._spans

    def bits(self, name: str) -> float:
        """How many bits one weight of this tensor takes in the file, scales included."""
        block, block_bytes = GGML_QUANT_SIZES[self._spans[name].kind]
        return block_bytes * 8 / block

    def is_blocks(self, name: str) -> bool:
        """Whether `weight` gives this tensor as 4-bit blocks."""
        return self._spans[name].kind in FOUR_BITS

    def kind(self, name: str) -> str:
        """GGML's name for the type that this tensor is stored in: Q4_1, BF16."""
        return self._spans[name].kind.name

    def stored(self, name: str) -> Stored:
        """One matrix as the file has it, its rows in canonical order. It may be a view of the file."""
        span = self._spans[name]
        block, block_bytes = GGML_QUANT_SIZES[span.kind]
        rows, columns = span.shape
        raw = self._data[span.start : span.end].reshape(rows, columns // block * block_bytes)
        order = rotated(name, self.config) if self._family.gguf_halves else None
        return Stored(span.kind.name, raw if order is None else raw[order.numpy()])

    def weight(self, name: str, dtype: torch.dtype = torch.float32) -> Weight:
        """Read one tensor; a dense one as `dtype`. Raises `DataLoss` where its numbers are not finite."""
        span = self._spans[name]
        weight = self._blocks(span) if self.is_blocks(name) else self._dense(span, dtype)
        order = rotated(name, self.config) if self._family.gguf_halves else None
        if order is None:
            return weight
        return weight.rows(order) if isinstance(weight, Blocks) else Dense(weight.values[order], weight.bits)

    def _check_type(self, span: TensorSpan) -> None:
        if not _dequantisable(span.kind):
            raise Invalid(f"{self.path.name}: tensor {span.name} has the type {span.kind.name}, which cannot be read")

    def _check_finite(self, values: torch.Tensor, name: str) -> None:
        # A NaN comes out as both; no copy is made, as a sum in float64 would.
        if not bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):
            raise DataLoss(
                f"{self.path.name}: tensor {name} holds numbers that are not finite: the file is damaged",
                remedy="pull the model again",
            )

    def _dense(self, span: TensorSpan, dtype: torch.dtype) -> Dense:
        block, block_bytes = GGML_QUANT_SIZES[span.kind]
        rows, columns = max(1, int(np.prod(span.shape[:-1]))), span.shape[-1]
        raw = self._data[span.start : span.end].reshape(rows, columns // block * block_bytes)
        values = torch.empty(rows, columns, dtype=dtype)
        step = max(1, SLAB // columns)
        for first in range(0, rows, step):
            values[first : first + step] = torch.from_numpy(_floats(raw[first : first + step], span.kind))
        self._check_finite(values, span.name)
        return Dense(values.view(span.shape), self.bits(span.name))

    def _blocks(self, span: TensorSpan) -> Blocks:
        rows, columns = span.shape
        raw = self._data[span.start : span.end].reshape(rows, columns // GROUP, -1)
        scale = torch.from_numpy(raw[..., 0:2].copy().view(np.float16)[..., 0].astype(np.float32))
        if span.kind is GGMLQuantizationType.Q4_1:
            minimum = torch.from_numpy(raw[..., 2:4].copy().view(np.float16)[..., 0].astype(np.float32))
            zero = minimum + 8.0 * scale
        else:
            zero = torch.zeros_like(scale)
        self._check_finite(scale, span.name)
        self._check_finite(zero, span.name)
        nibbles = torch.from_numpy(raw[..., -GROUP // 2 :].copy())
        quants = torch.cat((nibbles & 15, nibbles >> 4), -1).view(rows, columns)
        return Blocks(quants, scale, zero)


def _floats(raw: np.ndarray[Any, np.dtype[np.uint8]], kind: GGMLQuantizationType) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"):  # damaged scales overflow: told afterwards, with the tensor's name
        return np.ascontiguousarray(dequantize(np.ascontiguousarray(raw), kind), dtype=np.float32)


@cache
def _dequantisable(kind: GGMLQuantizationType) -> bool:
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _config(where: str, header: Header) -> DecoderConfig:
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if architecture not in NAMES:
        raise Invalid(
            f"{where}: the architecture {str(architecture)[:40]!r} is not one that is computed here",
            remedy=f"use a model of the family {', '.join(FAMILIES)}, or this one's folder with "
            "safetensors, which transformers may compute",
        )
    if "rope_factors_long.weight" in header.tensors:
        raise Invalid(
            f"{where}: rope scaling 'longrope' is not known here", remedy="use the one with the short context"
        )
    if metadata.get(f"{architecture}.expert_count"):
        raise Invalid(f"{where}: a mixture of experts is not computed here", remedy="use a dense model")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise DataLoss(f"{where}: tensor token_embd.weight is missing", remedy="pull the model again")

    hidden = integer(metadata, f"{architecture}.embedding_length", where)
    heads = integer(metadata, f"{architecture}.attention.head_count", where)
    if heads < 1:
        raise Invalid(f"{where}: '{architecture}.attention.head_count' is {heads}", field="heads")
    head_dim = integer(metadata, f"{architecture}.attention.key_length", where, hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if integer(metadata, f"{architecture}.{key}", where, head_dim) != head_dim:
            raise Invalid(f"{where}: '{architecture}.{key}' differs from the head size {head_dim}: not computed here")
    config = DecoderConfig(
        architecture=architecture,
        layers=integer(metadata, f"{architecture}.block_count", where),
        hidden_size=hidden,
        heads=heads,
        kv_heads=integer(metadata, f"{architecture}.attention.head_count_kv", where, heads),
        head_dim=head_dim,
        ffn_size=integer(metadata, f"{architecture}.feed_forward_length", where),
        vocab_size=embedding.shape[0],
        context_length=integer(metadata, f"{architecture}.context_length", where),
        rope_theta=float(number(metadata, f"{architecture}.rope.freq_base", where, 10000.0)),
        rope_scaling=_rope_scaling(where, metadata, architecture),
        norm_eps=float(number(metadata, f"{architecture}.attention.layer_norm_rms_epsilon", where, 1e-5)),
        tied_embeddings="output.weight" not in header.tensors,
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        output_bias="blk.0.attn_output.bias" in header.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in header.tensors,
        sliding_window=integer(metadata, f"{architecture}.attention.sliding_window", where, 0) or None,
        quantization=_label(metadata, header),
    )
    return check_config(config, where)


def _rope_scaling(where: str, metadata: dict[str, Any], architecture: str) -> RopeScaling | None:
    kind = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise Invalid(f"{where}: rope scaling {str(kind)[:40]!r} is not known here: linear, yarn and llama3 are")
    attention = metadata.get(f"{architecture}.rope.scaling.attn_factor")
    return RopeScaling(
        kind=kind,
        factor=float(number(metadata, f"{architecture}.rope.scaling.factor", where)),
        original_length=integer(metadata, f"{architecture}.rope.scaling.original_context_length", where, 0),
        attention_factor=None
        if attention is None
        else float(number(metadata, f"{architecture}.rope.scaling.attn_factor", where)),
    )


def _unfused(where: str, spans: dict[str, TensorSpan], config: DecoderConfig, family: Family) -> dict[str, TensorSpan]:
    """`spans` with those of the parts of fused tensors, which are rows of them. Raises `Invalid` where they are not."""
    shapes, found = expected_shapes(config), dict(spans)
    for layer in range(config.layers):
        for fused in family.fused:
            names = [f"blk.{layer}.{part}.weight" for part in fused.parts]
            whole = spans.get(f"blk.{layer}.{fused.gguf}.weight")
            if whole is None or all(name in spans for name in names):
                continue
            rows = sum(shapes[name][0] for name in names)
            expected = (rows, *shapes[names[0]][1:])
            if whole.shape != expected:
                raise Invalid(
                    f"{where}: tensor {whole.name} has the shape {list(whole.shape)}, and {list(expected)} is expected"
                )
            start, row_bytes = whole.start, (whole.end - whole.start) // rows
            for name in names:
                end = start + shapes[name][0] * row_bytes
                found[name] = TensorSpan(name, whole.kind, shapes[name], start, end)
                start = end
    return found


def _check_factors(where: str, span: TensorSpan, config: DecoderConfig) -> None:
    if span.shape != (config.head_dim // 2,):
        raise Invalid(
            f"{where}: tensor rope_freqs.weight has the shape {list(span.shape)}, not [{config.head_dim // 2}]"
        )
    if span.kind is not GGMLQuantizationType.F32:
        raise Invalid(f"{where}: tensor rope_freqs.weight has the type {span.kind.name}, not F32")


def _label(metadata: dict[str, Any], header: Header) -> str:
    try:
        return LlamaFileType(metadata["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError, TypeError):
        kinds = [span.kind.name for span in header.tensors.values() if len(span.shape) > 1]
        return max(sorted(set(kinds)), key=kinds.count, default="")
