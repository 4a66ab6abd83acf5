"""Work on threads: waited for in any case, since what it uses may only then be closed; and who waits is let go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["ended", "to_its_end", "wake"]

T = TypeVar("T")


async def to_its_end(work: Callable[..., T], *args: Any) -> T:
    """`asyncio.to_thread`, which returns after the thread has, also where the waiting task is cancelled."""
    future = asyncio.get_running_loop().run_in_executor(None, work, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


async def ended(future: Future[Any]) -> None:
    """Wait until a thread is through, whatever comes of it; cancelled, it stays as it is."""
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # somebody has looked at it
    await asyncio.wait([waiting])


def wake(waiting: asyncio.Future[None]) -> None:
    """Let go on who waits for it, if they still do."""
    if not waiting.done():
        waiting.set_result(None)
