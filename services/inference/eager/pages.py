"""Pages as tensors, [pages, layers, 2 (keys, values), kv heads, 16 tokens, head size]; hot: in every layer.

In 8 bits they have a second tensor, [..., groups]: a scale for each 32 numbers of a head, or for as many as divide it
evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from microkernel.errors import Invalid
from services.inference.cache.keys import PAGE
from services.inference.checkpoint.architecture import DecoderConfig
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
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.page_bytes = page_bytes(config, dtype, page_dtype)
        self._shape = (count, config.layers, 2, config.kv_heads, PAGE)
        self._pieces = _pieces(config, dtype, page_dtype)
        self._tensors = self._empty()

    def table(self, pages: Sequence[int]) -> torch.Tensor:
        """The pages' numbers, int64 on the device."""
        return torch.tensor(pages, dtype=torch.int64, device=self.device)

    def write(self, page: int, content: bytes) -> None:
        """Put back what `read` gave."""
        if len(content) != self.page_bytes:
            raise Invalid(f"a page has {self.page_bytes} bytes, not {len(content)}")
        left = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for tensor in self._tensors:
            values, left = left[: tensor[page].nbytes], left[tensor[page].nbytes :]
            tensor[page].view(-1).copy_(values.view(tensor.dtype))

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

    def release(self) -> None:
        """Give the memory back; contents are lost."""
        self._tensors = self._empty()

    def store(self, layer: int, pages: torch.Tensor, offsets: torch.Tensor, kv: torch.Tensor) -> None:
        """Write `kv` [n, 2, kv heads, head size], one token each, at `offsets` of `pages` (both int64 [n])."""
        parts = (kv,) if len(self._tensors) == 1 else _rounded(kv, self._tensors[1].shape[-1], self.dtype)
        for tensor, part in zip(self._tensors, parts, strict=True):
            tensor[:, layer][pages, :, :, offsets] = part

    def load(self, layer: int, tables: torch.Tensor) -> torch.Tensor:
        """Keys and values of the pages in `tables` [n, pages]: [2, n, kv heads, tokens, head size]."""
        found = [tensor[:, layer][tables] for tensor in self._tensors]  # [n, pages, 2, kv heads, 16, head size]
        values = found[0]
        if len(found) == 2:
            grouped = values.to(self.dtype).reshape(*found[1].shape, -1)
            values = grouped.mul_(found[1][..., None]).flatten(-2)
        n, count, _, heads, _, size = values.shape
        return values.permute(2, 0, 3, 1, 4, 5).reshape(2, n, heads, count * PAGE, size)

    def _empty(self) -> list[torch.Tensor]:
        with torch.inference_mode(mode=False):
            return [torch.zeros(*self._shape, width, device=self.device, dtype=dtype) for width, dtype in self._pieces]


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
