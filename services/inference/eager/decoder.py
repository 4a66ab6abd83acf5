"""The decoder: Llama, SmolLM, Mistral, Phi-3, Qwen2 and Qwen3 as one transformer in plain torch; hot: every step.

RMSNorm before each half of a layer (https://arxiv.org/abs/1910.07467), grouped-query attention with rotary positions,
SwiGLU (https://arxiv.org/abs/2002.05202). Qwen2 adds biases to queries, keys and values; Qwen3 norms each query and
key head instead. Per layer four matrix products and few operations beside them: at one token a step, calling torch
costs as much as the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from formats.checkpoint.adapter import Adapter
from formats.checkpoint.architecture import expected_shapes
from formats.checkpoint.checkpoint import Checkpoint, Dense
from formats.checkpoint.rope import rotations
from microkernel.errors import Overloaded
from services.inference.eager.adapters import Adapters, StepAdapters
from services.inference.eager.attention import Attends, Attention
from services.inference.eager.fixed import FixedSteps, Fused
from services.inference.eager.linear import (
    INT4_BYTES,
    INT8_BYTES,
    DenseLinear,
    Int8Linear,
    Linear,
    int4_fits,
    int8_fits,
    make_linear,
)
from services.inference.eager.pages import TensorPages
from services.inference.engine.forward import PageDtype, Part

__all__ = ["Decoder", "choose_dtype", "sampling_device", "weight_bytes"]

ROTATIONS = 4096  # positions in the first table; it doubles when a sequence gets there


class Decoder:
    """A loaded model: from token ids to logits. Not thread-safe; runs on its device's thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        dtype: torch.dtype,
        threads: int | None = None,
        fixed: bool | None = None,
        flex: bool = False,
        page_dtype: PageDtype = "bfloat16",
    ) -> None:
        """Read all weights, as 4-bit blocks or `dtype`; raises `DataLoss`, and `Overloaded` where memory is short.

        On a CPU a step takes `threads` threads; None leaves torch's number as it is. With `fixed`, steps in which
        every sequence has one new token have fixed shapes, and are recorded where the device can; None: on
        accelerators. With `flex` they attend by torch's flex_attention. Pages hold numbers of `dtype`, or of 8 bits
        with `page_dtype` "int8", which flex_attention does not take.
        """
        self.config = checkpoint.config
        self._threads = threads
        self._on = device
        self.device = sampling_device(device)
        self.dtype = dtype
        self._page_dtype: PageDtype = page_dtype
        self._steps: FixedSteps | None = None
        if device.type != "cpu" if fixed is None else fixed:
            self._steps = FixedSteps(self, device, fused=_flex() if flex and page_dtype != "int8" else None)
        try:
            load = _Loader(checkpoint, device, dtype)
            self._factors = load.rope_factors()
            self._table, self._head = load.vocabulary()
            self._layers = [Layer(load, index) for index in range(self.config.layers)]
            self._norm = load.vector("output_norm.weight")
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise Overloaded(
                f"{checkpoint.path.name} does not fit into the memory of {device}",
                remedy="free memory, or take a smaller or more quantised model",
            ) from error
        self._adapters = Adapters(device, dtype)
        self._rotations = torch.empty(0)
        self._extend_rotations(min(ROTATIONS, self.config.context_length))

    def storage(self, pages: int) -> TensorPages:
        """Room for so many pages, all zero."""
        return TensorPages(self.config, pages, self._on, self.dtype, self._page_dtype, by_layer=self._steps is not None)

    @torch.inference_mode()
    def forward(self, storage: TensorPages, parts: Sequence[Part]) -> torch.Tensor:
        """Run the parts through all layers: float32 logits [sum of wanted, vocabulary], in the order of the parts."""
        if self._threads is not None and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)  # a decoder on our kernels, before us on this thread, wants but one
        self._see(max(part.start + len(part.tokens) for part in parts))
        adapters = self._adapters.arrange(parts)
        single = all(len(part.tokens) == part.wanted == 1 for part in parts)
        if self._steps is not None and adapters is None and single:
            return self._steps.run(storage, parts).to(self.device)
        attention = Attention(storage, parts)
        rows = _wanted(parts)
        tokens = torch.tensor([token for part in parts for token in part.tokens]).to(self._on)
        return self.through(tokens, attention, rows, adapters).to(self.device)

    def through(
        self,
        tokens: torch.Tensor,
        attention: Attends,
        rows: list[int] | None = None,
        adapters: StepAdapters | None = None,
    ) -> torch.Tensor:
        """Float32 logits behind `tokens` (int64 [n]), of all or of `rows`, where the weights are."""
        rotation = self._rotations[attention.positions][:, None]
        x = self._embed(tokens)
        for index, layer in enumerate(self._layers):
            x = layer.forward(x, rotation, attention, index, adapters)
        if rows is not None:
            x = x[rows]
        if x.shape[0] == 0:
            return x.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        x = functional.rms_norm(x, self._norm.shape, self._norm, self.config.norm_eps)
        return self._head(x).float()

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
        """False: torch's products choose their order of summing by the number of rows."""
        return False

    @property
    def paged(self) -> bool:
        """True: keys and values are all that a sequence has."""
        return True

    @property
    def layout(self) -> str:
        """Names how a page is laid out and computed."""
        kind = "-int8" if self._page_dtype == "int8" else ""
        return f"eager-1-{self._on.type}-{self.dtype}{kind}".replace("torch.", "")

    @property
    def weight_bytes(self) -> int:
        """What the weights take in memory."""
        head = 0 if isinstance(self._head, DenseLinear) and self._head.weight is self._table else self._head.nbytes
        table = self._table.nbytes if isinstance(self._table, torch.Tensor) else 0
        return head + table + sum(layer.nbytes for layer in self._layers)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        if isinstance(self._table, Int8Linear):
            return self._table.embed(tokens)
        return functional.embedding(tokens, self._table)

    def _see(self, end: int) -> None:
        """Have rotations for positions below `end`."""
        if end > self._rotations.shape[0]:
            self._extend_rotations(max(end, min(2 * end, self.config.context_length)))
            if self._steps is not None:
                self._steps.forget()  # what was recorded reads the old table

    def _extend_rotations(self, length: int) -> None:
        self._rotations = rotations(self.config, torch.arange(length), self._factors).to(self._on)


class Layer:
    """One block: attention and feed-forward, each normed before and added after."""

    def __init__(self, load: _Loader, index: int) -> None:
        self._config = load.config
        self._window = load.config.window(index)
        name = f"blk.{index}."
        self._attention_norm = load.vector(name + "attn_norm.weight")
        self._qkv = load.linear(name + "attn_q", name + "attn_k", name + "attn_v", biased=load.config.qkv_bias)
        self._head_norm = load.head_norm(name)
        self._output = load.linear(name + "attn_output", biased=load.config.output_bias)
        self._ffn_norm = load.vector(name + "ffn_norm.weight")
        self._gate_up = load.linear(name + "ffn_gate", name + "ffn_up")
        self._down = load.linear(name + "ffn_down")

    def forward(
        self,
        x: torch.Tensor,
        rotation: torch.Tensor,
        attention: Attends,
        index: int,
        adapters: StepAdapters | None = None,
    ) -> torch.Tensor:
        """`x` [n, hidden] after this layer, changed in place; `rotation` complex64 [n, 1, head size / 2]."""
        config, hidden, eps = self._config, self._attention_norm.shape, self._config.norm_eps
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim

        def product(linear: Linear, x: torch.Tensor, **starts: int) -> torch.Tensor:
            y = linear(x)
            return y if adapters is None else adapters.add(y, x, index, **starts)

        normed = functional.rms_norm(x, hidden, self._attention_norm, eps)
        qkv = product(self._qkv, normed, attn_q=0, attn_k=queries, attn_v=queries + keys)
        q, kv = self._heads(qkv, rotation)
        x += product(self._output, attention(index, self._window, q, kv), attn_output=0)
        normed = functional.rms_norm(x, hidden, self._ffn_norm, eps)
        gate, up = product(self._gate_up, normed, ffn_gate=0, ffn_up=config.ffn_size).chunk(2, -1)
        x += product(self._down, functional.silu(gate).mul_(up), ffn_down=0)
        return x

    def _heads(self, qkv: torch.Tensor, rotation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split heads, norm and turn those of queries and keys: [n, heads, size] and [n, 2, kv heads, size]."""
        heads, kv_heads, size = self._config.heads, self._config.kv_heads, self._config.head_dim
        turned = heads + kv_heads  # the values, behind them, are not
        x = qkv.float().view(-1, turned + kv_heads, size)
        if self._head_norm is not None:
            normed = functional.rms_norm(x[:, :turned], (size,), eps=self._config.norm_eps)
            x[:, :turned] = normed.mul_(self._head_norm)
        pairs = torch.view_as_complex(x.view(x.shape[0], x.shape[1], size // 2, 2))
        pairs[:, :turned] *= rotation
        x = x.to(qkv.dtype)
        return x[:, :heads], x[:, heads:].view(-1, 2, kv_heads, size)

    @property
    def nbytes(self) -> int:
        """What the layer's matrices take in memory."""
        return self._qkv.nbytes + self._output.nbytes + self._gate_up.nbytes + self._down.nbytes


class _Loader:
    """Brings weights from a checkpoint to a device."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        self._device = device
        self._dtype = dtype

    def vector(self, name: str) -> torch.Tensor:
        return self._dense(name, self._dtype)

    def linear(self, *names: str, biased: bool = False) -> Linear:
        weights = [self._checkpoint.weight(name + ".weight", self._dtype) for name in names]
        biases = [self._dense(name + ".bias", self._dtype) for name in names] if biased else []
        return make_linear(weights, self._device, self._dtype, biases)

    def head_norm(self, layer: str) -> torch.Tensor | None:
        """Qwen3's norm weights, a row for each query and key head: float32 [heads + kv heads, head size]."""
        if not self.config.qk_norm:
            return None
        query = self._dense(layer + "attn_q_norm.weight", torch.float32).expand(self.config.heads, -1)
        key = self._dense(layer + "attn_k_norm.weight", torch.float32).expand(self.config.kv_heads, -1)
        return torch.cat((query, key))

    def rope_factors(self) -> torch.Tensor | None:
        if not self._checkpoint.has("rope_freqs.weight"):
            return None
        return self._checkpoint.weight("rope_freqs.weight").dequantize()

    def vocabulary(self) -> tuple[torch.Tensor | Int8Linear, Linear]:
        """The embedding table and the projection to the vocabulary: one and the same where they are tied."""
        table = self._table("token_embd.weight")
        if self.config.tied_embeddings:
            return table, table if isinstance(table, Int8Linear) else DenseLinear(table)
        if self._checkpoint.is_blocks("output.weight"):
            return table, self.linear("output")
        head = self._table("output.weight")
        return table, head if isinstance(head, Int8Linear) else DenseLinear(head)

    def _table(self, name: str) -> torch.Tensor | Int8Linear:
        rows = self.config.vocab_size
        if int8_fits(rows, self._checkpoint.bits(name), self._device, self._dtype):
            return Int8Linear(self._dense(name, torch.float32))  # bfloat16 would blur the scales that it looks for
        return self._dense(name, self._dtype)

    def _dense(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        weight = self._checkpoint.weight(name, dtype)
        values = weight.values if isinstance(weight, Dense) else weight.dequantize()
        return values.to(self._device, dtype)


def weight_bytes(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> int:
    """What the checkpoint's weights will take in the memory of `device`, before any is read."""
    total = 0.0
    config = checkpoint.config
    for name, shape in expected_shapes(config).items():
        count = math.prod(shape)
        table = name in ("token_embd.weight", "output.weight")
        if checkpoint.is_blocks(name) and int4_fits(shape[0], device, dtype) and name != "token_embd.weight":
            total += count * INT4_BYTES
        elif table and int8_fits(shape[0], checkpoint.bits(name), device, dtype):
            total += count * INT8_BYTES
        else:
            total += count * dtype.itemsize
    return int(total)


def _flex() -> Fused:
    from services.inference.eager.flex import fused  # noqa: PLC0415 - it brings torch's compiler: seconds

    return fused()


def _wanted(parts: Sequence[Part]) -> list[int]:
    """The rows whose logits are asked for."""
    rows: list[int] = []
    end = 0
    for part in parts:
        end += len(part.tokens)
        rows += range(end - part.wanted, end)
    return rows


def choose_dtype(device: torch.device) -> torch.dtype:
    """The fastest dtype that keeps the model's meaning: bfloat16 where the device computes in it, or float32.

    Measured (see `linear`): on a CPU with AVX512, bfloat16 takes a third of the time of float32 from 8 rows on.
    """
    if device.type == "cpu":
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - it has no public name
        return torch.bfloat16 if fast else torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def sampling_device(device: torch.device) -> torch.device:
    """Where logits go: the sampler counts in float64, which neither Apple's GPUs nor all of Intel's know."""
    return device if device.type in {"cpu", "cuda"} else torch.device("cpu")
