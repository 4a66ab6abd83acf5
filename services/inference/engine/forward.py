"""What the engine needs of a model: a pass over some tokens of several sequences, and pages for their keys and values.

`eager`, `native` and `foreign` each have such a decoder. How a page is laid out is theirs; all that the engine knows
of one is its number, and that it holds `PAGE` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec
import torch

from formats.checkpoint.adapter import Adapter
from formats.checkpoint.architecture import DecoderConfig

__all__ = ["Decoder", "PageDtype", "Part", "Storage"]

# What keys and values are kept in. "bfloat16" stands for what a decoder computes in, where that is another one.
PageDtype = Literal["bfloat16", "int8"]


class Part(msgspec.Struct):
    """Some tokens of one sequence: `tokens` at positions from `start` on, in the pages that `table` stands for.

    The logits of its last `wanted` tokens are asked for. `adapter` is one of the decoder's, None the model alone.
    """

    tokens: list[int]
    start: int
    table: Any
    wanted: int = 1
    adapter: int | None = None


class Storage(Protocol):
    """Pages on a device, by number. None of them holds anything that is not finite: the others would be spoilt.

    Those of a decoder that is not `paged` only count what its sequences hold elsewhere: `clear` forgets the state of
    the sequence whose first page it is, and `copy`, `read` and `write` raise `PreconditionFailed`.
    """

    @property
    def page_bytes(self) -> int:
        """What one page takes."""
        ...

    def table(self, pages: Sequence[int]) -> Any:
        """What `Part.table` takes for a sequence that has these pages, in this order."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Write all of page `source` over page `target`."""
        ...

    def clear(self, page: int) -> None:
        """Make a page zero."""
        ...

    def read(self, page: int) -> bytes:
        """A page's content; another storage of the same model and layout can `write` it."""
        ...

    def write(self, page: int, content: bytes) -> None:
        """Put back what `read` gave."""
        ...

    @property
    def elastic(self) -> bool:
        """Whether single pages can be given back."""
        ...

    def give_back(self, pages: Sequence[int]) -> None:
        """Give the memory of these pages back to the system, as far as it takes parts; they are zero if it did."""
        ...

    def release(self) -> None:
        """Give all memory back to the system; pages are zero when they are used again."""
        ...


class Decoder(Protocol):
    """A model on its device; used on the device's thread only."""

    @property
    def config(self) -> DecoderConfig:
        """The model's shape."""
        ...

    @property
    def device(self) -> torch.device:
        """Where logits are."""
        ...

    @property
    def invariant(self) -> bool:
        """Whether a token gets the same bits whatever else is in its step, and however its prompt was cut."""
        ...

    @property
    def paged(self) -> bool:
        """Whether a sequence's state is in its pages. If not, they cannot be shared, copied or saved."""
        ...

    @property
    def layout(self) -> str:
        """Names how a page is laid out and computed: equal names, equal bytes for equal tokens."""
        ...

    @property
    def weight_bytes(self) -> int:
        """What the weights take in memory."""
        ...

    def storage(self, pages: int) -> Storage:
        """Room for so many pages, all zero. Memory is taken as they are used, where the device allows that."""
        ...

    def adapter_bytes(self, adapter: Adapter) -> int:
        """What an adapter would take in memory; safe to call from any thread."""
        ...

    def add_adapter(self, adapter: Adapter) -> int:
        """Take an adapter of this model's shape; returns what parts call it. Raises `Overloaded` without memory."""
        ...

    def remove_adapter(self, adapter: int) -> None:
        """Forget an adapter; no part may ask for it any more."""
        ...

    def forward(self, storage: Any, parts: Sequence[Part]) -> torch.Tensor:
        """Compute the parts: float32 logits [sum of wanted, vocabulary], in the order of the parts.

        `storage` is one that this decoder has made.
        """
        ...
