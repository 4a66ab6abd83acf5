"""Work on threads that is waited for in any case, since what it uses may be closed only when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["to_its_end"]

T = TypeVar("T")


async def to_its_end(work: Callable[..., T], *args: Any) -> T:
    """`asyncio.to_thread`, which returns after the thread has, also where the waiting task is cancelled."""
    future = asyncio.get_running_loop().run_in_executor(None, work, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
