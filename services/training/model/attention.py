"""Attention inside documents: each token to those of its own document, up to itself and within the layer's window.

Rows are cut at the borders of documents, and each is one causal attention: with documents of 128 tokens in rows of 512
a quarter of what a mask over the row would compute. Accelerators take the mask, one kernel for all rows.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["Documents"]


class Documents:
    """Which tokens of a batch belong together."""

    def __init__(self, documents: NDArray[np.int64], device: torch.device) -> None:
        """`documents` [rows, length] numbers the documents of each row, one behind the other."""
        self._device = device
        self._numbers = documents
        rows, self._length = documents.shape
        begins = np.ones((rows, self._length), dtype=bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        edges = np.flatnonzero(begins.reshape(-1))
        self.lengths: list[int] = np.diff(edges, append=documents.size).tolist()
        self.whole = len(self.lengths) == rows
        self._bands: dict[tuple[int, int], torch.Tensor] = {}
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        """What each token takes from the others: [rows, length, heads * size].

        `q` [rows, heads, length, size], `k` and `v` [rows, kv heads, length, size]. `window` None sees everything.
        """
        if self.whole and (window is None or window >= self._length):
            return _joined(scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        if self._device.type != "cpu":
            return _joined(scaled_dot_product_attention(q, k, v, attn_mask=self._mask(window), enable_gqa=True))
        queries, keys, values = (torch.split(_in_one_row(x), self.lengths, 2) for x in (q, k, v))
        rows = [self._one(*document, window) for document in zip(queries, keys, values, strict=True)]
        return torch.cat(rows, 1).view(len(self._numbers), self._length, -1)

    def _one(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        length = q.shape[2]
        if window is None or window >= length:
            return _joined(scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        band = self._bands.get((length, window))
        if band is None:
            band = self._bands[length, window] = _band(length, window, self._device)
        return _joined(scaled_dot_product_attention(q, k, v, attn_mask=band, enable_gqa=True))

    def _mask(self, window: int | None) -> torch.Tensor:
        """Bool [rows, 1, length, length]: whether the first of two places sees the second."""
        mask = self._masks.get(window)
        if mask is None:
            mask = self._same & _band(self._length, window, self._device)
            self._masks[window] = mask
        return mask

    @cached_property
    def _same(self) -> torch.Tensor:
        numbers = torch.from_numpy(self._numbers).to(self._device)
        return (numbers[:, :, None] == numbers[:, None, :])[:, None]


def _band(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Bool [length, length]: a place sees itself and the `window - 1` before it."""
    band = torch.ones(length, length, dtype=torch.bool, device=device).tril_()
    return band if window is None else band.triu_(1 - window)


def _in_one_row(x: torch.Tensor) -> torch.Tensor:
    """From [rows, heads, length, size] to [1, heads, rows * length, size], a view where heads lie innermost."""
    return x.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]


def _joined(x: torch.Tensor) -> torch.Tensor:
    """From [rows, heads, length, size] to [rows, length, heads * size]."""
    return x.transpose(1, 2).flatten(2)
