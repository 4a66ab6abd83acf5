"""The decoder on the kernels; hot: every step. One call computes a step of all its sequences."""

from __future__ import annotations

import time
from collections.abc import Sequence as Several

import numpy as np
import torch
from numpy.typing import NDArray

from formats.checkpoint.adapter import Adapter
from formats.checkpoint.checkpoint import Checkpoint
from formats.checkpoint.rope import rotations
from microkernel.errors import Internal
from services.inference.engine.forward import PageDtype, Part
from services.inference.native.adapters import Adapters
from services.inference.native.library import Batch, Layer, Matrix, Model, PageKind, Sequence, Team
from services.inference.native.pages import TOKENS, HostPages
from services.inference.native.threads import ThreadCount
from services.inference.native.weights import Weights

__all__ = ["NativeDecoder"]

ROTATIONS = 4096  # positions in the first table; it doubles when a sequence gets there


class NativeDecoder:
    """A loaded model: from tokens and pages to logits. Not thread-safe; runs on its device's thread."""

    def __init__(
        self, checkpoint: Checkpoint, weights: Weights, team: Team, *, page_dtype: PageDtype = "bfloat16"
    ) -> None:
        """Compute with `weights` on the threads of `team`, which others may use between two steps."""
        self.config = checkpoint.config
        self.device = torch.device("cpu")
        self._variant = team.kernels.variant
        self._page_dtype: PageDtype = page_dtype
        self._threads = ThreadCount(team.threads)
        self._weights = weights
        self._team = team
        self._adapters = Adapters(team.kernels, self.config.layers)
        self._factors = None
        if checkpoint.has("rope_freqs.weight"):
            self._factors = checkpoint.weight("rope_freqs.weight").dequantize()
        self._layers = (Layer * self.config.layers)(*(self._layer(index) for index in range(self.config.layers)))
        config = self.config
        table = self._matrix("token_embd.weight")
        self._model = Model(
            hidden=config.hidden_size,
            ffn=config.ffn_size,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            size=config.head_dim,
            vocabulary=config.vocab_size,
            epsilon=config.norm_eps,
            pages=PageKind.INT8 if page_dtype == "int8" else PageKind.BFLOAT16,
            table=table,
            head=table if config.tied_embeddings else self._matrix("output.weight"),
            norm=weights.vector("output_norm.weight"),
            layer=self._layers,
        )
        self._rotations: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._extend_rotations(min(ROTATIONS, config.context_length))

    def storage(self, pages: int) -> HostPages:
        """Room for so many pages; memory is taken as they are used."""
        return HostPages(self.config, pages, self._page_dtype)

    def forward(self, storage: HostPages, parts: Several[Part]) -> torch.Tensor:  # noqa: ARG002 - tables hold addresses
        """Compute the parts in one step: float32 logits [sum of wanted, vocabulary], in the order of the parts."""
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # what follows a step is small, and OpenMP's threads would spin beside ours
        sequences = (Sequence * len(parts))()
        tokens: list[int] = []
        wanted: list[range] = [range(0)] * len(parts)
        end = 0
        adapters = self._adapters.arrange(parts)
        for index in adapters.order:
            row, part = sequences[index], parts[index]
            count = len(part.tokens)
            # The kernels check nothing.
            if part.start + count > TOKENS * len(part.table) or part.wanted > count:
                raise Internal(f"{count} tokens at {part.start}, {part.wanted} wanted: {len(part.table)} pages")
            row.pages, row.first, row.count, row.start = part.table.ctypes.data, len(tokens), count, part.start
            tokens += part.tokens
            wanted[index] = range(len(tokens) - part.wanted, len(tokens))
            end = max(end, part.start + count)
        if end > len(self._rotations):
            self._extend_rotations(max(end, min(2 * end, self.config.context_length)))
        if tokens and (min(tokens) < 0 or max(tokens) >= self.config.vocab_size):
            raise Internal(f"a token is outside of 0 to {self.config.vocab_size - 1}")
        ids = np.array(tokens, dtype=np.int32)
        rows = np.array([place for places in wanted for place in places], dtype=np.int32)
        logits = torch.empty(len(rows), self.config.vocab_size)
        batch = Batch(
            tokens=len(tokens),
            sequences=len(parts),
            wanted=len(rows),
            threads=self._threads.choose(len(tokens)),
            ids=ids.ctypes.data,
            sequence=sequences,
            rows=rows.ctypes.data,
            logits=logits.data_ptr(),
            adapter=adapters.ranges,
            adapters=adapters.count,
            rank=adapters.rank,
        )
        began = time.perf_counter()
        self._team.step(self._model, batch)
        self._threads.note(len(tokens), time.perf_counter() - began)
        return logits

    def adapter_bytes(self, adapter: Adapter) -> int:
        """What an adapter would take in memory."""
        return self._adapters.bytes(adapter)

    def add_adapter(self, adapter: Adapter) -> int:
        """Take an adapter; returns what parts call it."""
        return self._adapters.add(adapter)

    def remove_adapter(self, adapter: int) -> None:
        """Forget an adapter."""
        self._adapters.remove(adapter)

    @property
    def invariant(self) -> bool:
        """True: an output's sum does not depend on what else is computed, nor on the number of threads."""
        return True

    @property
    def paged(self) -> bool:
        """True: keys and values are all that a sequence has."""
        return True

    @property
    def layout(self) -> str:
        """Names how a page is laid out and computed."""
        return f"native-3-{self._variant}" + ("-int8" if self._page_dtype == "int8" else "")

    @property
    def weight_bytes(self) -> int:
        """What the weights take in memory."""
        return self._weights.nbytes

    def _layer(self, index: int) -> Layer:
        name = f"blk.{index}."
        vector = self._weights.vector
        biases = {"attn_q", "attn_k", "attn_v"} if self.config.qkv_bias else set()
        if self.config.output_bias:
            biases.add("attn_output")

        def matrix(part: str) -> Matrix:
            bias = vector(f"{name}{part}.bias") if part in biases else None
            return self._matrix(f"{name}{part}.weight", bias)

        return Layer(
            query=matrix("attn_q"),
            key=matrix("attn_k"),
            value=matrix("attn_v"),
            output=matrix("attn_output"),
            gate=matrix("ffn_gate"),
            up=matrix("ffn_up"),
            down=matrix("ffn_down"),
            attention_norm=vector(name + "attn_norm.weight"),
            ffn_norm=vector(name + "ffn_norm.weight"),
            query_norm=vector(name + "attn_q_norm.weight"),
            key_norm=vector(name + "attn_k_norm.weight"),
            window=self.config.window(index) or 0,
        )

    def _matrix(self, name: str, bias: int | None = None) -> Matrix:
        packed, (quants, scales, minima) = self._weights.matrix(name)
        return Matrix(packed.kind, packed.rows, packed.columns, quants, scales, minima, bias)

    def _extend_rotations(self, length: int) -> None:
        table = rotations(self.config, torch.arange(length), self._factors)
        self._rotations = torch.view_as_real(table).reshape(length, -1).contiguous().numpy()
        self._model.rotations = self._rotations.ctypes.data
