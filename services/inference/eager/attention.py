"""Grouped-query attention over pages (https://arxiv.org/abs/2305.13245); hot: once a layer, every step.

Two shapes of work: many sequences with one new token each, which are computed together, and many new tokens of one
sequence. What is the same in all layers is made before the first one runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn import functional

from services.inference.cache.keys import PAGE
from services.inference.eager.pages import TensorPages
from services.inference.engine.forward import Part

__all__ = ["Attends", "Attention"]

# Sequences x tokens from which two bfloat16 products beat the fused kernel, which takes one query row at a time: at 8 x
# 1,500 tokens 222 us against 576, at 16 x 64 48 against 86, at 1 x 256 37 against 22. Divergence is the same.
BATCHED_SCORES = 1024


class Attends(Protocol):
    """A step's attention, asked by each layer in turn."""

    @property
    def positions(self) -> torch.Tensor:
        """Where the step's new tokens are: int64 [n]."""
        ...

    def __call__(self, layer: int, window: int | None, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Store `kv` [n, 2, kv heads, head size], attend with `q` [n, heads, head size]; [n, heads * head size]."""
        ...


class Attention:
    """What a step's new tokens attend to, and where their keys and values go."""

    def __init__(self, pages: TensorPages, parts: Sequence[Part]) -> None:
        device = pages.device
        self._pages = pages
        places = [range(part.start, part.start + len(part.tokens)) for part in parts]
        self.positions = torch.tensor([place for some in places for place in some]).to(device)
        self.end = max(some.stop for some in places)
        self._page = torch.cat(
            [part.table[torch.arange(some.start, some.stop) // PAGE] for part, some in zip(parts, places, strict=True)]
        ).to(device)
        self._offset = self.positions % PAGE
        self._many: list[_Many] = []
        single, first = [], 0
        for part in parts:
            if len(part.tokens) == 1:
                single.append((first, part))
            else:
                self._many.append(_Many(pages, part, first))
            first += len(part.tokens)
        self._single = _Single(pages, single) if single else None

    def __call__(self, layer: int, window: int | None, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Store `kv` [n, 2, kv heads, head size], attend with `q` [n, heads, head size]; [n, heads * head size]."""
        self._pages.store(layer, self._page, self._offset, kv)
        out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
        if self._single is not None:
            out[self._single.rows] = self._single.attend(layer, window, q[self._single.rows])
        for many in self._many:
            out[many.rows] = many.attend(layer, window, q[many.rows])
        return out


class _Single:
    """One new token for each of some sequences."""

    def __init__(self, pages: TensorPages, parts: list[tuple[int, Part]]) -> None:
        device = pages.device
        self.rows = torch.tensor([row for row, _ in parts], device=device)
        self._pages = pages
        self._starts = [part.start for _, part in parts]
        self._positions = torch.tensor(self._starts, device=device)
        end = max(self._starts) + 1
        count = -(-end // PAGE)
        tables = torch.zeros(len(parts), count, dtype=torch.int64)  # behind its end: hidden
        for row, (_, part) in enumerate(parts):
            own = min(count, len(part.table))
            tables[row, :own] = part.table[:own]
        self._tables = tables.to(device)
        self._masks: dict[int | None, tuple[int, torch.Tensor]] = {}

    def attend(self, layer: int, window: int | None, q: torch.Tensor) -> torch.Tensor:
        """`q` [n, heads, head size] to [n, heads * head size]."""
        first, mask = self._mask(window, q.dtype)
        keys, values = self._pages.load(layer, self._tables[:, first // PAGE :])
        # The heads that share a key head become rows of one query: no copies of keys, a third of the passes.
        grouped = q.view(q.shape[0], keys.shape[1], -1, q.shape[2])
        if q.shape[0] * keys.shape[2] < BATCHED_SCORES or q.dtype is torch.float32:
            out = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        else:
            scores = torch.matmul(grouped, keys.transpose(2, 3)).float().mul_(1 / math.sqrt(q.shape[2]))
            out = torch.matmul(torch.softmax(scores + mask, -1).to(q.dtype), values)
        return out.reshape(q.shape[0], -1)

    def _mask(self, window: int | None, dtype: torch.dtype) -> tuple[int, torch.Tensor]:
        """The first position that anyone sees, a page's first, and what is added to scores: [n, 1, 1, tokens]."""
        if window not in self._masks:
            first = 0 if window is None else max(0, min(self._starts) + 1 - window) // PAGE * PAGE
            tokens = torch.arange(first, self._tables.shape[1] * PAGE, device=self._positions.device)
            hidden = tokens > self._positions[:, None]
            if window is not None:
                hidden |= tokens <= self._positions[:, None] - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._masks[window] = (first, mask.masked_fill_(hidden, -math.inf)[:, None, None, :])
        return self._masks[window]


class _Many:
    """Several new tokens of one sequence."""

    def __init__(self, pages: TensorPages, part: Part, row: int) -> None:
        self.rows = slice(row, row + len(part.tokens))
        self._pages = pages
        self._start = part.start
        self._end = part.start + len(part.tokens)
        self._table = part.table.to(pages.device)
        self._positions = torch.arange(self._start, self._end, device=pages.device)
        self._masks: dict[int | None, tuple[int, torch.Tensor | None]] = {}
        # Accelerators' fused kernels, for 16 bits, know a causal mask that ends at the last key and materialise none.
        self._lower_right = pages.by_layer and pages.dtype is not torch.float32

    def attend(self, layer: int, window: int | None, q: torch.Tensor) -> torch.Tensor:
        """`q` [n, heads, head size] to [n, heads * head size]."""
        first, mask = self._mask(window)
        keys, values = self._pages.load(layer, self._table[None, first // PAGE : -(-self._end // PAGE)])
        seen = self._end - first
        out = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[:, :, :seen],
            values[:, :, :seen],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1).reshape(q.shape[0], -1)

    def _mask(self, window: int | None) -> tuple[int, torch.Tensor | None]:
        """The first position that is loaded, and who sees what: bool [n, tokens]; None is plain causal from 0."""
        if window not in self._masks:
            first = 0 if window is None else max(0, self._start + 1 - window) // PAGE * PAGE
            mask: torch.Tensor | None = None
            windowed = window is not None and self._end > window
            if self._lower_right and self._start > 0 and not windowed:
                mask = _lower_right(self._end - self._start, self._end)
            elif self._start > 0 or windowed:
                tokens = torch.arange(first, self._end, device=self._positions.device)
                mask = tokens <= self._positions[:, None]
                if window is not None:
                    mask = mask & (tokens > self._positions[:, None] - window)
            self._masks[window] = (first, mask)
        return self._masks[window]


def _lower_right(queries: int, keys: int) -> torch.Tensor:
    """The causal mask whose last query sees the last key, by its name instead of its numbers."""
    from torch.nn.attention.bias import causal_lower_right  # noqa: PLC0415 - it brings torch's compiler: seconds

    return causal_lower_right(queries, keys)
