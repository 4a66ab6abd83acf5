"""What has come and waits to be read, as an async iterator (hot: once an event and once an item of a link's stream).

An item that is there is handed over at once. `_arrivals.c` does it without making a coroutine, where a compiler was at
hand; the class here is the reference, and what `MICROKERNEL_PURE=1` chooses.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

__all__ = ["Arrivals"]


class Arrivals:
    """Items of a deque, in order, each through `shape` where there is one.

    `plain` of them may be taken without asking, any number if it is negative; whatever is not plain, and an empty
    deque, is for `first` of the subclass, which awaits and returns the next item.
    """

    __slots__ = ("items", "plain", "shape")

    def __init__(self) -> None:
        self.items: deque[Any] | None = None
        self.shape: Callable[[Any], Any] | None = None
        self.plain = 0

    def __aiter__(self: Any) -> Any:
        return self

    async def __anext__(self: Any) -> Any:
        if not self.plain or not self.items:
            first: Awaitable[Any] = self.first()
            return await first
        if self.plain > 0:
            self.plain -= 1
        item = self.items.popleft()
        return item if self.shape is None else self.shape(item)


if not TYPE_CHECKING and os.environ.get("MICROKERNEL_PURE", "0") in {"", "0"}:
    with contextlib.suppress(ImportError):
        from microkernel._arrivals import Arrivals
