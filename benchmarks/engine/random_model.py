"""A model of a given shape with random weights, as a GGUF file: as fast as a trained one, and nobody has to fetch it.

Weights are normal with a deviation of 0.02, norms are one; a seed makes the same file again. It is written a tensor at
a time, so that a model that is larger than the memory can be made. The tokenizer is that of another file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from benchmarks.first_token.llama_cpp_peer import requantise

__all__ = ["BIG", "Shape", "kept", "write_quantised", "write_random"]

DEVIATION = 0.02
SEED = 20_011
SLAB = 1 << 22  # weights drawn at once: 16 MiB

Floats = np.ndarray[Any, np.dtype[Any]]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the architecture `llama`, with the embedding as its last layer too."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    words: int
    context: int = 8192

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return sum(rows * columns for _, rows, columns in self.tensors())

    @property
    def name(self) -> str:
        """Says what is in the file, so that one of another shape is another file."""
        return (
            f"random-{self.hidden}x{self.layers}-heads{self.heads}.{self.kv_heads}x{self.head}"
            f"-ffn{self.feed_forward}-vocabulary{self.words}-seed{SEED}"
        )

    def tensors(self) -> Iterator[tuple[str, int, int]]:
        """Name, rows and columns; a norm has one row."""
        queries, values = self.heads * self.head, self.kv_heads * self.head
        yield "token_embd.weight", self.words, self.hidden
        for layer in range(self.layers):
            for name, rows, columns in (
                ("attn_norm", 1, self.hidden),
                ("attn_q", queries, self.hidden),
                ("attn_k", values, self.hidden),
                ("attn_v", values, self.hidden),
                ("attn_output", self.hidden, queries),
                ("ffn_norm", 1, self.hidden),
                ("ffn_gate", self.feed_forward, self.hidden),
                ("ffn_up", self.feed_forward, self.hidden),
                ("ffn_down", self.hidden, self.feed_forward),
            ):
                yield f"blk.{layer}.{name}.weight", rows, columns
        yield "output_norm.weight", 1, self.hidden


# 680 million weights; all columns are multiples of 256, so that K-quants apply to each matrix. The vocabulary is that
# of SmolLM2.
BIG = Shape(hidden=1536, layers=24, heads=12, kv_heads=4, head=128, feed_forward=4096, words=49_152)


def write_random(target: Path, shape: Shape, *, tokenizer: Path, seed: int = SEED) -> None:
    """Write a model of `shape` as F16, with the tokenizer of the GGUF file `tokenizer`."""
    writer = GGUFWriter(target, "llama")
    try:
        _describe(writer, shape)
        _copy_tokenizer(writer, tokenizer)
        for name, rows, columns in shape.tensors():
            kind = np.dtype(np.float32 if rows == 1 else np.float16)
            size = (columns,) if rows == 1 else (rows, columns)
            writer.add_tensor_info(name, size, kind, rows * columns * kind.itemsize)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for number, (_, rows, columns) in enumerate(shape.tensors()):
            writer.write_tensor_data(_weights(rows, columns, [seed, number]))
    finally:
        writer.close()


def write_quantised(target: Path, shape: Shape, *, tokenizer: Path, kind: str) -> None:
    """The same in one of llama.cpp's formats; the F16 file lies beside it for as long as that takes."""
    plain = target.with_suffix(".f16")
    try:
        write_random(plain, shape, tokenizer=tokenizer)
        requantise(plain, target, kind)
    finally:
        plain.unlink(missing_ok=True)


def kept(path: Path, write: Callable[[Path], None], tell: Callable[[str], None]) -> Path:
    """The file `path`, written if it is not there; who is interrupted leaves no half of it under that name."""
    if path.exists():
        return path
    tell(f"writing {path.name}: once, it is kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".partial")
    try:
        write(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _describe(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_name(shape.name)
    writer.add_vocab_size(shape.words)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(1)  # mostly F16


def _copy_tokenizer(writer: GGUFWriter, source: Path) -> None:
    for name, field in GGUFReader(source).fields.items():
        if name.startswith("tokenizer."):
            kind, *inner = field.types
            writer.add_key_value(name, field.contents(), kind, inner[-1] if kind is GGUFValueType.ARRAY else None)


def _weights(rows: int, columns: int, seed: list[int]) -> Floats:
    if rows == 1:
        return np.ones(columns, np.float32)
    draw = np.random.default_rng(seed)
    weights = np.empty((rows, columns), np.float16)
    step = max(1, SLAB // columns)
    for first in range(0, rows, step):
        part = weights[first : first + step]
        part[:] = draw.standard_normal(part.shape, np.float32) * np.float32(DEVIATION)
    return weights
