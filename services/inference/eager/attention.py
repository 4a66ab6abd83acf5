"""Grouped-query attention over the cache (https://arxiv.org/abs/2305.13245); hot: once a layer, every step.

Two shapes of work: many sequences with one new token each (`Decode`), and many new tokens of one sequence
(`Prefill`). Both know everything that is the same in all layers before the first one runs.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch.nn import functional

from services.inference.eager.kv_cache import KVCache

__all__ = ["Attention", "Decode", "Prefill"]

# Slots x tokens from which two bfloat16 products beat the fused kernel, which takes one query row at a time: at 8 x
# 1,500 tokens 222 us against 576, at 16 x 64 48 against 86, at 1 x 256 37 against 22. Divergence is the same.
BATCHED_SCORES = 1024


class Attention(Protocol):
    """What a step's new tokens attend to, and where their keys and values go."""

    positions: torch.Tensor
    end: int  # one past the last of the positions

    def __call__(self, layer: int, window: int | None, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Store `kv` [n, 2, kv heads, head size], attend with `q` [n, heads, head size]; [n, heads * head size]."""
        ...


class Decode:
    """One new token for each of the slots 0 to n - 1."""

    def __init__(self, cache: KVCache, lengths: list[int], device: torch.device) -> None:
        """`lengths` counts each sequence's tokens in the cache so far: the positions of the new ones."""
        self._cache = cache
        self._lengths = lengths
        self.positions = torch.tensor(lengths, device=device)
        self._slots = torch.arange(len(lengths), device=device)
        self._dtype = cache.dtype
        self.end = max(lengths) + 1
        self._masks: dict[int | None, tuple[int, torch.Tensor | None]] = {}

    def __call__(self, layer: int, window: int | None, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Store `kv` [n, 2, kv heads, head size], attend with `q` [n, heads, head size]; [n, heads * head size]."""
        self._cache.write(layer, self._slots, self.positions, kv)
        first, mask = self._mask(window)
        keys, values = self._cache.read(layer, slice(0, q.shape[0]), slice(first, self.end))
        # The heads that share a key head become rows of one query: no copies of keys, a third of the passes.
        grouped = q.view(q.shape[0], keys.shape[1], -1, q.shape[2])
        if q.shape[0] * (self.end - first) < BATCHED_SCORES or q.dtype is torch.float32:
            out = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        else:
            scores = torch.matmul(grouped, keys.transpose(2, 3)).float().mul_(1 / math.sqrt(q.shape[2]))
            if mask is not None:
                scores += mask
            out = torch.matmul(torch.softmax(scores, -1).to(q.dtype), values)
        return out.reshape(q.shape[0], -1)

    def _mask(self, window: int | None) -> tuple[int, torch.Tensor | None]:
        """The first position that anyone sees, and what is added to scores: [n, 1, 1, tokens]; None if all see all."""
        if window not in self._masks:
            first = 0 if window is None else max(0, min(self._lengths) + 1 - window)
            tokens = torch.arange(first, self.end, device=self.positions.device)
            hidden = tokens > self.positions[:, None]
            if window is not None:
                hidden |= tokens <= self.positions[:, None] - window
            mask = None
            if bool(hidden.any()):
                mask = torch.zeros(hidden.shape, dtype=self._dtype, device=hidden.device)
                mask = mask.masked_fill_(hidden, -math.inf)[:, None, None, :]
            self._masks[window] = (first, mask)
        return self._masks[window]


class Prefill:
    """New tokens `start` to `start + count - 1` of one slot."""

    def __init__(self, cache: KVCache, slot: int, start: int, count: int, device: torch.device) -> None:
        self._cache = cache
        self._slot = slot
        self._start = start
        self.end = start + count
        self.positions = torch.arange(start, self.end, device=device)
        self._masks: dict[int | None, tuple[int, torch.Tensor | None]] = {}

    def __call__(self, layer: int, window: int | None, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Store `kv` [n, 2, kv heads, head size], attend with `q` [n, heads, head size]; [n, heads * head size]."""
        self._cache.write_chunk(layer, self._slot, self._start, kv)
        first, mask = self._mask(window)
        keys, values = self._cache.read(layer, slice(self._slot, self._slot + 1), slice(first, self.end))
        out = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return out[0].transpose(0, 1).reshape(q.shape[0], -1)

    def _mask(self, window: int | None) -> tuple[int, torch.Tensor | None]:
        """The first position that is seen, and who sees what: bool [n, tokens]; None is plain causal from 0."""
        if window not in self._masks:
            first = 0 if window is None else max(0, self._start + 1 - window)
            mask = None
            if self._start > 0 or (window is not None and self.end > window):
                tokens = torch.arange(first, self.end, device=self.positions.device)
                mask = tokens <= self.positions[:, None]
                if window is not None:
                    mask &= tokens > self.positions[:, None] - window
            self._masks[window] = (first, mask)
        return self._masks[window]
