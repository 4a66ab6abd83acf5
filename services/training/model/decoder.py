"""The decoder as it is trained: Llama, Mistral, Phi-3, Qwen2 and Qwen3 over whole rows, with gradients.

As the decoder that answers computes them: RMSNorm before each half of a layer, grouped-query attention with rotary
positions (https://arxiv.org/abs/2104.09864) in pairs, SwiGLU; per layer four matrix products. A row holds several
documents that do not see each other. The stream between layers and all trained parameters are float32; with `dtype`
bfloat16 the products are computed in it, as `torch.autocast` would have them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.autograd import Function
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recomputed

from formats.checkpoint.architecture import DecoderConfig
from formats.checkpoint.rope import rotations
from microkernel.errors import Invalid
from services.training.batch import NOT_LEARNED, Batch
from services.training.config import MethodConfig
from services.training.model.attention import Documents
from services.training.model.cross_entropy import cross_entropy
from services.training.model.flat import FlatParameters
from services.training.model.gradients import add_rows
from services.training.model.heads import Norms, split_heads
from services.training.model.layer_products import LayerProducts, Product, Weights
from services.training.model.norm import norm

__all__ = ["Decoder", "choose_dtype"]


class Decoder(nn.Module):
    """A model in training. `flat` are its trained parameters; what is frozen lies beside them."""

    def __init__(
        self, config: DecoderConfig, method: MethodConfig, weights: Weights, *, dtype: torch.dtype, recompute: bool
    ) -> None:
        """Take the tensors of `weights`; see `loading.open_model`, which makes them."""
        super().__init__()
        self.config = config
        self.method = method
        self.flat: FlatParameters = weights.flat
        self.device = weights.flat.values.device
        self.dtype = dtype
        self.recompute = recompute
        self.rope_factors = weights.rope_factors
        self.table = weights.tensor("token_embd.weight")
        self.head = self.table if config.tied_embeddings else weights.tensor("output.weight")
        self.layers = nn.ModuleList([Layer(config, weights, index, dtype) for index in range(config.layers)])
        self.norm = weights.tensor("output_norm.weight")
        self._rotations = rotations(config, torch.arange(0), self.rope_factors).to(self.device)

    def loss(self, batch: Batch, draws: int | None = None) -> tuple[torch.Tensor, int]:
        """The sum of what is lost over the learned tokens (nats, float32 scalar), and how many there are.

        Its `backward` adds to `flat.gradients`. `draws` (see `lora.draw_seed`) is what dropout draws from; without it
        nothing is dropped. Raises `Invalid` for tokens that the vocabulary does not have.
        """
        hidden = self.hidden(batch.tokens, batch.positions, batch.documents, draws)
        learned = np.flatnonzero(batch.targets != NOT_LEARNED)
        targets = batch.targets.reshape(-1)[learned]
        self._check("targets", targets)
        hidden = hidden.flatten(0, 1)
        if len(learned) < len(hidden):
            hidden = hidden[torch.from_numpy(learned).to(self.device)]
        total = cross_entropy(self._normed(hidden), self.head, torch.from_numpy(targets).to(self.device))
        return total, len(learned)

    def logits(self, batch: Batch) -> torch.Tensor:
        """All logits, float32 [rows, length, vocabulary]: for small models and comparisons."""
        hidden = self.hidden(batch.tokens, batch.positions, batch.documents)
        return functional.linear(self._normed(hidden), self.head.to(self.dtype)).float()

    def hidden(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        documents: NDArray[np.int64],
        draws: int | None = None,
    ) -> torch.Tensor:
        """What is behind the last layer, before its norm: float32 [rows, length, hidden size]."""
        self._check("tokens", tokens)
        end = int(positions.max(initial=0)) + 1
        if end > len(self._rotations):
            self._rotations = rotations(self.config, torch.arange(2 * end), self.rope_factors).to(self.device)
        step = Step(
            rotation=self._rotations[torch.from_numpy(positions).to(self.device)][:, :, None],
            documents=Documents(documents, self.device),
            draws=draws,
        )
        x = self._embed(torch.from_numpy(tokens).to(self.device))
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = recomputed(layer, x, step, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, step)
        return x

    @property
    def frozen_bytes(self) -> int:
        """What the weights that are not trained take in memory."""
        tensors = {self.table, self.head, self.norm} - set(self.parameters())
        return sum(tensor.nbytes for tensor in tensors) + sum(layer.frozen_bytes for layer in self._each())

    def _each(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.table.requires_grad:
            x: torch.Tensor = _Embedding.apply(tokens, self.table)  # type: ignore[no-untyped-call]  # torch's own
            return x
        return functional.embedding(tokens, self.table).float()

    def _normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return norm(hidden, self.norm, self.config.norm_eps, self.dtype)

    def _check(self, field: str, tokens: NDArray[np.int64]) -> None:
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.vocab_size:
            raise Invalid(
                f"{field} are from {tokens.min()} to {tokens.max()}, and the vocabulary has {self.config.vocab_size}",
                field=field,
            )


class Step(NamedTuple):
    """What all layers see of a batch: rotations complex64 [rows, length, 1, head size / 2], documents, draws."""

    rotation: torch.Tensor
    documents: Documents
    draws: int | None


class Layer(nn.Module):
    """One block: attention and feed-forward, each normed before and added after."""

    def __init__(self, config: DecoderConfig, weights: Weights, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._config = config
        self._dtype = dtype
        self._window = config.window(index)
        name = f"blk.{index}."
        self.attention_norm = weights.tensor(name + "attn_norm.weight")
        self.ffn_norm = weights.tensor(name + "ffn_norm.weight")
        self.query_norm = weights.tensor(name + "attn_q_norm.weight") if config.qk_norm else None
        self.key_norm = weights.tensor(name + "attn_k_norm.weight") if config.qk_norm else None
        self.products = LayerProducts(config, weights, index)

    def forward(self, x: torch.Tensor, step: Step) -> torch.Tensor:
        """`x` float32 [rows, length, hidden size] behind this layer."""
        config, eps = self._config, self._config.norm_eps

        def product(of: Product, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = of(x, step.draws)
            return y

        qkv = product(self.products.qkv, norm(x, self.attention_norm, eps, self._dtype))
        q, k, v = split_heads(qkv, step.rotation, config.heads, config.kv_heads, self._norms())
        x = x + product(self.products.output, step.documents.attend(q, k, v, self._window))
        both = product(self.products.gate_up, norm(x, self.ffn_norm, eps, self._dtype))
        return x + product(self.products.down, both)

    @property
    def frozen_bytes(self) -> int:
        """What of it is not trained, in memory; norms left out."""
        return self.products.frozen_bytes

    def _norms(self) -> Norms | None:
        if self.query_norm is None or self.key_norm is None:
            return None
        return self.query_norm, self.key_norm, self._config.norm_eps


class _Embedding(Function):
    """Rows of the table; their gradients go where the table's are kept, and no second table is made."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(tokens, table)
        return functional.embedding(tokens, table)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        tokens, table = ctx.saved_tensors
        return None, add_rows(table, gradients[0].flatten(0, -2), tokens.flatten())


def choose_dtype(device: torch.device) -> torch.dtype:
    """What products are computed in: bfloat16 where the device computes in it, or float32.

    Never float16, whose range gradients leave. Measured on a CPU without AVX512: bfloat16 takes 4 to 11 times as long.
    """
    if device.type == "cpu":
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - it has no public name
    elif device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "xpu"
    return torch.bfloat16 if fast else torch.float32
