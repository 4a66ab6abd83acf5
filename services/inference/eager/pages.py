"""Pages as tensors, [pages, layers, 2 (keys, values), kv heads, 16 tokens, head size]; hot: in every layer.

In 8 bits they have a second tensor, [..., groups]: a scale for each 32 numbers of a head, or for as many as divide it
evenly. On a CPU a page lies in one piece of each. On accelerators all pages of a layer's head do, so that a kernel can
be given them as one row of keys, and one page more takes what steps of a fixed shape write for rows that nobody needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from formats.checkpoint.architecture import DecoderConfig
from microkernel.errors import Invalid
from services.inference.cache.host_memory import ELASTIC, give_back
from services.inference.cache.keys import PAGE
from services.inference.engine.forward import PageDtype

__all__ = ["TensorPages", "page_bytes"]

GROUP = 32


class TensorPages:
    """Keys and values of `count` pages, which compute in `dtype`. A position that was never written is zero."""

    def __init__(
        self,
        config: DecoderConfig,
        count: int,
        device: torch.device,
        dtype: torch.dtype,
        page_dtype: PageDtype = "bfloat16",
        *,
        by_layer: bool = False,
    ) -> None:
        """All zero. With `by_layer` they lie as accelerators want them, and there is a page `scratch`."""
        self.device = device
        self.dtype = dtype
        self.page_bytes = page_bytes(config, dtype, page_dtype)
        self.count = count
        self.scratch = count
        self.by_layer = by_layer
        self._shape = (config.layers, 2, config.kv_heads, PAGE)  # a page's, without the numbers of a head
        self._pieces = _pieces(config, dtype, page_dtype)
        self._tensors = self._empty()

    def table(self, pages: Sequence[int]) -> torch.Tensor:
        """The pages' numbers, int64 on the CPU: a step's tables go to the device together."""
        return torch.tensor(pages, dtype=torch.int64)

    def write(self, page: int, content: bytes) -> None:
        """Put back what `read` gave."""
        if len(content) != self.page_bytes:
            raise Invalid(f"a page has {self.page_bytes} bytes, not {len(content)}")
        self.lift(page, torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def read(self, page: int) -> bytes:
        """A page's content."""
        return b"".join(tensor[page].reshape(-1).view(torch.uint8).cpu().numpy().tobytes() for tensor in self._tensors)

    def copy(self, source: int, target: int) -> None:
        """Write all of page `source` over page `target`."""
        for tensor in self._tensors:
            tensor[target].copy_(tensor[source])

    def clear(self, page: int) -> None:
        """Make a page zero: a NaN left behind would reach later sequences, as a weight of 0 does not undo it."""
        for tensor in self._tensors:
            tensor[page].zero_()

    def lower(self, page: int, into: torch.Tensor) -> None:
        """Copy a page to `into`, `page_bytes` as uint8 on the CPU; without waiting where that memory is pinned."""
        for tensor, part in self._parts(page, into):
            part.copy_(tensor, non_blocking=True)

    def lift(self, page: int, source: torch.Tensor) -> None:
        """Copy back what `lower` gave, behind all that the device was asked for before."""
        for tensor, part in self._parts(page, source):
            tensor.copy_(part, non_blocking=True)

    @property
    def elastic(self) -> bool:
        """Whether the system takes single pages back: main memory, where the system is Linux."""
        return ELASTIC and self.device.type == "cpu" and not self.by_layer

    def give_back(self, pages: Sequence[int]) -> None:
        """Give the memory of these pages back; they are zero when they are used again. Other devices keep it."""
        if self.elastic:
            for tensor in self._tensors:
                give_back(tensor.data_ptr(), tensor[0].nbytes, pages)

    def release(self) -> None:
        """Give the memory back; contents are lost. Accelerators keep it: steps that were recorded know its address."""
        if not self.by_layer:
            self._tensors = self._empty()
            return
        for tensor in self._tensors:
            tensor.zero_()

    def rows(self, layer: int) -> torch.Tensor:
        """All keys and all values of a layer, [2, kv heads, (count + 1) * 16, head size], no copy.

        Only `by_layer`, and not in 8 bits.
        """
        (pages,) = self._tensors
        return pages.permute(1, 2, 3, 0, 4, 5)[layer].flatten(2, 3)

    def store(self, layer: int, pages: torch.Tensor, offsets: torch.Tensor, kv: torch.Tensor) -> None:
        """Write `kv` [n, 2, kv heads, head size], one token each, at `offsets` of `pages` (both int64 [n])."""
        parts = (kv,) if len(self._tensors) == 1 else _rounded(kv, self._tensors[1].shape[-1], self.dtype)
        for tensor, part in zip(self._tensors, parts, strict=True):
            tensor[:, layer][pages, :, :, offsets] = part

    def load(self, layer: int, tables: torch.Tensor) -> torch.Tensor:
        """Keys and values of the pages in `tables` [n, pages]: [2, n, kv heads, tokens, head size]."""
        found = [self._found(tensor, layer, tables) for tensor in self._tensors]
        values = found[0]
        if len(found) == 2:
            grouped = values.to(self.dtype).reshape(*found[1].shape, -1)
            values = grouped.mul_(found[1][..., None]).flatten(-2)
        return values

    def _found(self, tensor: torch.Tensor, layer: int, tables: torch.Tensor) -> torch.Tensor:
        """What pages have of `tensor`: [2, n, kv heads, tokens, numbers of a head]."""
        if self.by_layer:
            pages = tensor.permute(1, 2, 3, 0, 4, 5)[layer]  # as they lie
            return pages[:, :, tables].transpose(1, 2).flatten(3, 4)
        found = tensor[:, layer][tables]  # [n, pages, 2, kv heads, 16, numbers]
        n, count, _, heads, _, width = found.shape
        return found.permute(2, 0, 3, 1, 4, 5).reshape(2, n, heads, count * PAGE, width)

    def _parts(self, page: int, content: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """A page's tensors, each with its part of `content`, uint8 [page_bytes]."""
        start = 0
        for tensor in self._tensors:
            end = start + tensor[page].nbytes
            yield tensor[page], content[start:end].view(tensor.dtype).view(tensor[page].shape)
            start = end

    def _empty(self) -> list[torch.Tensor]:
        layers, two, heads, tokens = self._shape
        with torch.inference_mode(mode=False):
            if self.by_layer:
                return [
                    torch.zeros(
                        layers, two, heads, self.count + 1, tokens, width, device=self.device, dtype=dtype
                    ).permute(3, 0, 1, 2, 4, 5)
                    for width, dtype in self._pieces
                ]
            tensors = [
                torch.zeros(self.count, *self._shape, width, device=self.device, dtype=dtype)
                for width, dtype in self._pieces
            ]
        if self.elastic:
            for tensor in tensors:
                # torch has written all the zeros: without them, a page takes memory when it is first used.
                give_back(tensor.data_ptr(), tensor[0].nbytes, range(self.count))
        return tensors


def page_bytes(config: DecoderConfig, dtype: torch.dtype, page_dtype: PageDtype = "bfloat16") -> int:
    """What one page takes in all layers."""
    token = sum(width * kind.itemsize for width, kind in _pieces(config, dtype, page_dtype))
    return 2 * PAGE * config.layers * config.kv_heads * token


def _pieces(config: DecoderConfig, dtype: torch.dtype, page_dtype: PageDtype) -> list[tuple[int, torch.dtype]]:
    """What a token's key or value is, for one head: how many of which numbers."""
    size = config.head_dim
    if page_dtype == "int8":
        return [(size, torch.int8), (size // math.gcd(size, GROUP), dtype)]
    return [(size, dtype)]


def _rounded(kv: torch.Tensor, groups: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`kv` [..., head size] as int8, and a scale in `dtype` for each of the `groups`."""
    grouped = kv.float().reshape(*kv.shape[:-1], groups, -1)
    scale = (grouped.abs().amax(-1, keepdim=True) / 127).to(dtype)  # rounded before it is used
    quants = (grouped / scale.float().clamp_min(1e-30)).round_().clamp_(-127, 127)
    return quants.to(torch.int8).flatten(-2), scale.squeeze(-1)
