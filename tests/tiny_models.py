"""Tiny models with random weights, written as real files: GGUF by the library, and in the Hugging Face layout."""

from __future__ import annotations

import ctypes
import json
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from formats.checkpoint.checkpoint import Checkpoint, open_checkpoint
from services.inference.eager.decoder import Decoder
from services.inference.engine.forward import PageDtype

VOCABULARY = 256
HIDDEN = 64
FFN = 128
HEADS = 4
KV_HEADS = 2
CPU = torch.device("cpu")


def shapes(
    layers: int, *, tied: bool, qk_norm: bool = False, bias: bool = False, head_dim: int = 16, hidden=HIDDEN, ffn=FFN
):
    """GGUF names and shapes of such a model."""
    queries, keys = HEADS * head_dim, KV_HEADS * head_dim
    result = {"token_embd.weight": (VOCABULARY, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        result["output.weight"] = (VOCABULARY, hidden)
    for layer in range(layers):
        part = {
            "attn_norm.weight": (hidden,),
            "ffn_norm.weight": (hidden,),
            "attn_q.weight": (queries, hidden),
            "attn_k.weight": (keys, hidden),
            "attn_v.weight": (keys, hidden),
            "attn_output.weight": (hidden, queries),
            "ffn_gate.weight": (ffn, hidden),
            "ffn_up.weight": (ffn, hidden),
            "ffn_down.weight": (hidden, ffn),
        }
        if qk_norm:
            part |= {"attn_q_norm.weight": (head_dim,), "attn_k_norm.weight": (head_dim,)}
        if bias:
            part |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        result |= {f"blk.{layer}.{name}": shape for name, shape in part.items()}
    return result


def random_weights(seed: int = 0, **kind) -> dict[str, np.ndarray]:
    """Weights that keep activations near 1 and logits apart."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(kind.pop("layers", 2), **kind).items():
        scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        weights[name] = generator.normal(0, scale, shape).astype(np.float32)
        if name.endswith("norm.weight"):
            weights[name] += 1.0
    return weights


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    context: int = 128,
    weights: dict[str, np.ndarray] | None = None,
    head_dim: int = 16,
    hidden: int = HIDDEN,
    ffn: int = FFN,
    layers: int = 2,
    metadata: dict[str, object] | None = None,
) -> Path:
    """Write a tiny model whose matrices have the type `kind`."""
    if weights is None:
        weights = random_weights(
            layers=layers,
            tied=True,
            qk_norm=architecture == "qwen3",
            bias=architecture == "qwen2",
            head_dim=head_dim,
            hidden=hidden,
            ffn=ffn,
        )
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(VOCABULARY)])
    for key, value in (metadata or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[
            type(value)
        ]
        add(key, value)
    for name, values in weights.items():
        if values.ndim == 1 or kind is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, quantised(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantised(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """`values` [rows, columns] in blocks; K-quants by llama.cpp's library, as the `gguf` library only reads them."""
    if not kind.name.endswith("_K"):
        return gguf.quantize(values, kind)
    from llama_cpp import _ggml

    rows, columns = values.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.zeros((rows, columns // block * size), np.uint8)
    source = np.ascontiguousarray(values)
    quantize = _ggml.libggml.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)
    written = quantize(kind, source.ctypes.data, blocks.ctypes.data, 0, rows, columns, None)
    assert written == blocks.nbytes
    return blocks


def write_folder(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> Path:
    """Write a model in the Hugging Face layout."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def tiny_decoder(path: Path, dtype: torch.dtype = torch.float32, page_dtype: PageDtype = "bfloat16") -> Decoder:
    """A decoder of the model at `path`."""
    return Decoder(open_checkpoint(path), device=CPU, dtype=dtype, page_dtype=page_dtype)


def dequantized(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """One tensor as float32."""
    return checkpoint.weight(name).dequantize()
