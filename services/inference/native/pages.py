"""Pages as plain memory, each in one piece for all layers.

How its numbers lie say `kernels/pages_bfloat16.h` and `kernels/pages_int8.h`.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from formats.checkpoint.architecture import DecoderConfig
from microkernel.errors import Invalid, Overloaded
from services.inference.cache.host_memory import ELASTIC, give_back
from services.inference.engine.forward import PageDtype

__all__ = ["HostPages", "page_bytes"]

TOKENS = 16
GROUP = 32  # dimensions of a key in 8 bits that share a scale
BFLOAT16, FLOAT = 2, 4  # bytes


class HostPages:
    """Room for `count` pages. The system gives memory to a page when it is first written, and then it is zero."""

    def __init__(self, config: DecoderConfig, count: int, dtype: PageDtype = "bfloat16") -> None:
        self.page_bytes = page_bytes(config, dtype)
        self._size = max(1, count) * self.page_bytes
        self._map()

    def table(self, pages: Sequence[int]) -> NDArray[np.uint64]:
        """The pages' addresses, uint64."""
        return np.asarray(pages, dtype=np.uint64) * np.uint64(self.page_bytes) + np.uint64(self._start)

    def copy(self, source: int, target: int) -> None:
        """Write all of page `source` over page `target`."""
        ctypes.memmove(self._address(target), self._address(source), self.page_bytes)

    def clear(self, page: int) -> None:
        """Make a page zero: a NaN left behind would reach later sequences, as a weight of 0 does not undo it."""
        ctypes.memset(self._address(page), 0, self.page_bytes)

    def read(self, page: int) -> bytes:
        """A page's content."""
        return ctypes.string_at(self._address(page), self.page_bytes)

    def write(self, page: int, content: bytes) -> None:
        """Put back what `read` gave."""
        if len(content) != self.page_bytes:
            raise Invalid(f"a page has {self.page_bytes} bytes, not {len(content)}")
        ctypes.memmove(self._address(page), content, self.page_bytes)

    @property
    def elastic(self) -> bool:
        """Whether the system takes single pages back."""
        return ELASTIC

    def give_back(self, pages: Sequence[int]) -> None:
        """Give the memory of these pages back; they are zero when they are used again."""
        give_back(int(self._start), self.page_bytes, pages)

    def release(self) -> None:
        """Give all memory back to the system; contents are lost."""
        self._map()

    def _map(self) -> None:
        try:
            # Private: of a shared mapping, the default, the system takes nothing back, and it gives no huge pages.
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            self._memory = mmap.mmap(-1, self._size, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise Overloaded(
                f"{self._size} bytes of address space for pages were refused: {error}",
                remedy="give the model a smaller cache",
            ) from error
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._start = np.frombuffer(self._memory, dtype=np.uint8).ctypes.data

    def _address(self, page: int) -> int:
        return int(self._start) + page * self.page_bytes


def page_bytes(config: DecoderConfig, dtype: PageDtype = "bfloat16") -> int:
    """What one page takes in all layers."""
    numbers, scales = 2 * config.head_dim, -(-config.head_dim // GROUP) + 1  # those of a key, and a value's one
    token = numbers + scales * FLOAT if dtype == "int8" else numbers * BFLOAT16
    return TOKENS * config.layers * config.kv_heads * token
