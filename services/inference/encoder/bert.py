"""BERT in torch; hot: once a batch. https://arxiv.org/abs/1810.04805

No text is padded. The tokens of all texts of a batch lie one behind the other, as one matrix, through all that looks at
a token by itself; only to attend are texts of the same length taken together. So a batch costs what its tokens cost.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import chain, groupby

import msgspec
import torch
from torch.nn import functional

from microkernel.errors import DataLoss, Overloaded
from services.inference.encoder.config import EncoderConfig, Pooling
from services.inference.encoder.folder import EncoderFolder

__all__ = ["BertEncoder", "weight_bytes", "working_bytes"]

DTYPE = torch.float32


class BertEncoder:
    """An encoder's weights on a device. Used on the device's thread only."""

    def __init__(self, folder: EncoderFolder, device: torch.device) -> None:
        """Read the weights; takes a moment. Raises `DataLoss`, and `Overloaded` where memory is short."""
        self.config = folder.config
        self._where = folder.path.name
        self._on = device
        try:
            read = _Reader(folder, device)
            words, positions, types = (
                read.tensor(f"embeddings.{name}_embeddings.weight") for name in ("word", "position", "token_type")
            )
            self._words = words
            self._places = positions + types[0]  # a text is one sentence to the model
            self._norm = read.norm("embeddings.LayerNorm")
            self._layers = [_Layer(read, index, self.config) for index in range(self.config.layers)]
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise Overloaded(
                f"{self._where} does not fit into the memory of {device}", remedy="free memory, or take a smaller model"
            ) from error

    @torch.inference_mode()
    def encode(self, texts: Sequence[Sequence[int]]) -> Generator[None, None, torch.Tensor]:
        """The vectors of texts, given as tokens, the longest first: float32 [texts, hidden size], in main memory.

        It yields between two layers. Raises `DataLoss` where a number is not finite.
        """
        groups = [_Group(length, len(list(same))) for length, same in groupby(map(len, texts))]
        tokens = torch.tensor(list(chain.from_iterable(texts))).to(self._on)
        places = torch.cat([torch.arange(group.length).repeat(group.texts) for group in groups]).to(self._on)
        x = self._norm.of(functional.embedding(tokens, self._words) + functional.embedding(places, self._places))
        for layer in self._layers:
            x = layer.forward(x, groups)
            yield
        vectors = torch.cat([self._pooled(part, group) for part, group in _parts(x, groups)])
        if self.config.normalized:
            vectors = functional.normalize(vectors)
        vectors = vectors.cpu()
        if not bool(torch.isfinite(vectors).all()):
            raise DataLoss(f"{self._where}: its output is not finite", remedy="verify the model's files")
        return vectors

    def _pooled(self, tokens: torch.Tensor, group: _Group) -> torch.Tensor:
        """One vector for each text of a group."""
        by_text = tokens.view(group.texts, group.length, self.config.hidden_size)
        return by_text[:, 0] if self.config.pooling is Pooling.CLS else by_text.mean(1)


def weight_bytes(folder: EncoderFolder) -> int:
    """What the weights take."""
    return folder.parameters * DTYPE.itemsize


def working_bytes(config: EncoderConfig, tokens: int, waiting: int) -> int:
    """What batches of so many tokens take beside the weights: one in a layer, and those that wait between two."""
    widest = max(config.ffn_size, 3 * config.hidden_size)
    return tokens * (2 * widest + (4 + waiting) * config.hidden_size) * DTYPE.itemsize


class _Group(msgspec.Struct, frozen=True):
    """Texts of `length` tokens that lie one behind the other."""

    length: int
    texts: int

    @property
    def tokens(self) -> int:
        return self.length * self.texts


class _Reader:
    """Weights of a folder, as they are computed with."""

    def __init__(self, folder: EncoderFolder, device: torch.device) -> None:
        self._folder = folder
        self._on = device

    def tensor(self, name: str) -> torch.Tensor:
        return self._folder.weight(name, DTYPE).to(self._on)

    def linear(self, *names: str) -> _Linear:
        """One product for all that multiply the same input."""
        weights, biases = ([self.tensor(f"{name}.{part}") for name in names] for part in ("weight", "bias"))
        return _Linear(torch.cat(weights).T.contiguous(), torch.cat(biases))

    def norm(self, name: str) -> _Norm:
        config = self._folder.config
        return _Norm(self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"), config.norm_eps)


class _Linear(msgspec.Struct, frozen=True, eq=False):
    """`weight` is [inputs, outputs], the other way round than in files: a CPU takes half as long for a short text."""

    weight: torch.Tensor
    bias: torch.Tensor

    def of(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


class _Norm(msgspec.Struct, frozen=True, eq=False):
    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def of(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class _Layer:
    """Attention and feed-forward, each with a norm behind what it adds."""

    def __init__(self, read: _Reader, index: int, config: EncoderConfig) -> None:
        prefix = f"encoder.layer.{index}."
        self._config = config
        self._qkv = read.linear(*(f"{prefix}attention.self.{name}" for name in ("query", "key", "value")))
        self._output = read.linear(f"{prefix}attention.output.dense")
        self._attention_norm = read.norm(f"{prefix}attention.output.LayerNorm")
        self._up = read.linear(f"{prefix}intermediate.dense")
        self._down = read.linear(f"{prefix}output.dense")
        self._ffn_norm = read.norm(f"{prefix}output.LayerNorm")

    def forward(self, x: torch.Tensor, groups: Sequence[_Group]) -> torch.Tensor:
        """`x` and the result are [tokens, hidden size]."""
        attended = [self._attend(part, group) for part, group in _parts(self._qkv.of(x), groups)]
        seen = self._output.of(attended[0] if len(attended) == 1 else torch.cat(attended))
        x = self._attention_norm.of(seen.add_(x))
        return self._ffn_norm.of(self._down.of(functional.gelu(self._up.of(x))).add_(x))

    def _attend(self, qkv: torch.Tensor, group: _Group) -> torch.Tensor:
        heads, size = self._config.heads, self._config.head_dim
        by_head = qkv.view(group.texts, group.length, 3, heads, size).permute(2, 0, 3, 1, 4)
        query, key, value = by_head.unbind()
        seen = functional.scaled_dot_product_attention(query, key, value)
        return seen.transpose(1, 2).reshape(group.tokens, self._config.hidden_size)


def _parts(x: torch.Tensor, groups: Sequence[_Group]) -> zip[tuple[torch.Tensor, _Group]]:
    """The rows of each group."""
    return zip(torch.split(x, [group.tokens for group in groups]), groups, strict=True)
