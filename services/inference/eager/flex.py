"""Attention over pages where they lie, by torch's flex_attention (https://arxiv.org/abs/2412.05496); hot.

Gathering reads and writes all keys and values before they are read once more. Here the compiled kernel is given the
whole pool as one row of keys, and which blocks of it are whose: a block is a page. Inside of one, a mask finds the
position of each key from the page's place in the sequence's table, as torch's own paged attention does.

The kernel is compiled for each number of rows, which takes seconds: the settings have to ask for it. Not compiled, as
in most tests, torch computes the scores of the whole pool and looks at the mask alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from services.inference.cache.keys import PAGE
from services.inference.eager.fixed import Fused
from services.inference.eager.pages import TensorPages

__all__ = ["FlexAttention", "fused"]

SHAPES = 64  # that are compiled at most; beyond, torch would compute without its kernel, many times slower
BEHIND = 1 << 24  # a page's place: its positions are beyond those of any context, and still 32-bit numbers

Attend = Callable[..., torch.Tensor]


def fused() -> Fused:
    """Attention by a kernel that is compiled for each shape."""
    attend: Attend = torch.compile(flex_attention, dynamic=False, recompile_limit=SHAPES)  # type: ignore[call-overload] # its overloads lack the limit
    return partial(FlexAttention, attend)


class FlexAttention:
    """One new token for each of some sequences, as `FixedAttention`."""

    def __init__(self, attend: Attend, pages: TensorPages, positions: torch.Tensor, tables: torch.Tensor) -> None:
        """`positions` [n] of the new tokens, `tables` [n, pages] of numbers, both int64; `pages` lie by layer."""
        self.positions = positions
        self._attend = attend
        self._pages = pages
        self._tables = tables
        self._page = tables.gather(1, positions[:, None] // PAGE).squeeze(1)
        self._offset = positions % PAGE
        self._places = self._find_places()
        self._last = positions.int()  # in one piece, as the compiled kernel wants what its mask reads
        self._masks: dict[int | None, BlockMask] = {}

    def __call__(self, layer: int, window: int | None, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Store `kv` [n, 2, kv heads, head size], attend with `q` [n, heads, head size]; [n, heads * head size]."""
        self._pages.store(layer, self._page, self._offset, kv)
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        keys, values = self._pages.rows(layer)
        gqa = q.shape[1] != keys.shape[0]
        out = self._attend(q[:, :, None], keys[None], values[None], block_mask=self._masks[window], enable_gqa=gqa)
        return out.reshape(q.shape[0], -1)

    def _find_places(self) -> torch.Tensor:
        """Where in a sequence each page of the pool is first: int32 [n, pool], behind all for those of others."""
        rows, count = self._tables.shape
        places = torch.full((rows, self._pages.count + 1), BEHIND, dtype=torch.int32, device=self._tables.device)
        numbers = torch.arange(count, dtype=torch.int32, device=self._tables.device).expand(rows, -1)
        return places.scatter_reduce_(1, self._tables, numbers, "amin")  # tables repeat a page behind their end

    def _mask(self, window: int | None) -> BlockMask:
        positions, last, places = self.positions, self._last, self._places

        def seen(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:  # noqa: ARG001 - torch's signature
            position = places[row, key // PAGE] * PAGE + key % PAGE
            visible = position <= last[row]
            return visible if window is None else visible & (position > last[row] - window)

        rows, count = self._tables.shape
        first = torch.zeros_like(positions) if window is None else (positions + 1 - window).clamp(min=0) // PAGE
        order = (first[:, None] + torch.arange(count, device=positions.device)).clamp(max=count - 1)
        # As many as the pool has, of which the first few count: torch wants room for all.
        blocks = torch.zeros(rows, self._pages.count + 1, dtype=torch.int32, device=positions.device)
        blocks[:, : min(count, blocks.shape[1])] = self._tables.gather(1, order)[:, : blocks.shape[1]].int()
        many = (positions // PAGE + 1 - first).int()
        return BlockMask.from_kv_blocks(
            many[:, None, None],
            blocks[:, None, None],
            BLOCK_SIZE=(1, PAGE),
            mask_mod=seen,
            seq_lengths=(1, PAGE * (self._pages.count + 1)),
            compute_q_blocks=False,
        )
