"""Pages as one tensor, [pages, layers, 2 (keys, values), kv heads, 16 tokens, head size]; hot: in every layer.

On a CPU a page lies in one piece. On accelerators all pages of a layer's head do, so that a kernel can be given them as
one row of keys, and one page more takes what steps of a fixed shape write for rows that nobody needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from microkernel.errors import Invalid
from services.inference.cache.host_memory import ELASTIC, give_back
from services.inference.cache.keys import PAGE
from services.inference.checkpoint.architecture import DecoderConfig

__all__ = ["TensorPages", "page_bytes"]


class TensorPages:
    """Keys and values of `count` pages. A position that was never written is zero."""

    def __init__(
        self, config: DecoderConfig, count: int, device: torch.device, dtype: torch.dtype, *, by_layer: bool = False
    ) -> None:
        """All zero. With `by_layer` they lie as accelerators want them, and there is a page `scratch`."""
        self.device = device
        self.dtype = dtype
        self.page_bytes = page_bytes(config, dtype)
        self.count = count
        self.scratch = count
        self.by_layer = by_layer
        self._shape = (config.layers, 2, config.kv_heads, PAGE, config.head_dim)  # a page's
        self._pages = self._empty()

    def table(self, pages: Sequence[int]) -> torch.Tensor:
        """The pages' numbers, int64 on the CPU: a step's tables go to the device together."""
        return torch.tensor(pages, dtype=torch.int64)

    def write(self, page: int, content: bytes) -> None:
        """Put back what `read` gave."""
        if len(content) != self.page_bytes:
            raise Invalid(f"a page has {self.page_bytes} bytes, not {len(content)}")
        values = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(self.dtype)
        self._pages[page].copy_(values.view(self._shape))

    def read(self, page: int) -> bytes:
        """A page's content."""
        return self._pages[page].reshape(-1).view(torch.uint8).cpu().numpy().tobytes()

    def copy(self, source: int, target: int) -> None:
        """Write all of page `source` over page `target`."""
        self._pages[target].copy_(self._pages[source])

    def clear(self, page: int) -> None:
        """Make a page zero: a NaN left behind would reach later sequences, as a weight of 0 does not undo it."""
        self._pages[page].zero_()

    def lower(self, page: int, into: torch.Tensor) -> None:
        """Copy a page to `into`, `page_bytes` as uint8 on the CPU; without waiting where that memory is pinned."""
        into.view(self.dtype).view(self._shape).copy_(self._pages[page], non_blocking=True)

    def lift(self, page: int, source: torch.Tensor) -> None:
        """Copy back what `lower` gave, behind all that the device was asked for before."""
        self._pages[page].copy_(source.view(self.dtype).view(self._shape), non_blocking=True)

    @property
    def elastic(self) -> bool:
        """Whether the system takes single pages back: main memory, where the system is Linux."""
        return ELASTIC and self.device.type == "cpu" and not self.by_layer

    def give_back(self, pages: Sequence[int]) -> None:
        """Give the memory of these pages back; they are zero when they are used again. Other devices keep it."""
        if self.elastic:
            give_back(self._pages.data_ptr(), self.page_bytes, pages)

    def release(self) -> None:
        """Give the memory back; contents are lost. Accelerators keep it: steps that were recorded know its address."""
        if self.by_layer:
            self._pages.zero_()
        else:
            self._pages = self._empty()

    def rows(self, layer: int) -> torch.Tensor:
        """All keys and all values of a layer, `by_layer` only: [2, kv heads, (count + 1) * 16, head size], no copy."""
        return self._pages.permute(1, 2, 3, 0, 4, 5)[layer].flatten(2, 3)

    def store(self, layer: int, pages: torch.Tensor, offsets: torch.Tensor, kv: torch.Tensor) -> None:
        """Write `kv` [n, 2, kv heads, head size], one token each, at `offsets` of `pages` (both int64 [n])."""
        self._pages[:, layer][pages, :, :, offsets] = kv

    def load(self, layer: int, tables: torch.Tensor) -> torch.Tensor:
        """Keys and values of the pages in `tables` [n, pages]: [2, n, kv heads, tokens, head size]."""
        if self.by_layer:
            pages = self._pages.permute(1, 2, 3, 0, 4, 5)[layer]  # as they lie
            return pages[:, :, tables].transpose(1, 2).flatten(3, 4)
        found = self._pages[:, layer][tables]  # [n, pages, 2, kv heads, 16, head size]
        n, count, _, heads, _, size = found.shape
        return found.permute(2, 0, 3, 1, 4, 5).reshape(2, n, heads, count * PAGE, size)

    def _empty(self) -> torch.Tensor:
        layers, two, heads, tokens, size = self._shape
        with torch.inference_mode(mode=False):
            if self.by_layer:
                shape = (layers, two, heads, self.count + 1, tokens, size)
                return torch.zeros(shape, device=self.device, dtype=self.dtype).permute(3, 0, 1, 2, 4, 5)
            pages = torch.zeros((self.count, *self._shape), device=self.device, dtype=self.dtype)
        if self.elastic:
            # torch has written all the zeros: without them, a page takes memory when it is first used.
            give_back(pages.data_ptr(), self.page_bytes, range(len(pages)))
        return pages


def page_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """What one page takes in all layers."""
    return 2 * PAGE * config.layers * config.kv_heads * config.head_dim * dtype.itemsize
