"""What threads do for the loop: waited for, whatever comes of it; and who waits is let go on."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

__all__ = ["ended", "wake"]


async def ended(future: Future[Any]) -> None:
    """Wait until a thread is through, whatever comes of it; cancelled, it stays as it is."""
    waiting = asyncio.wrap_future(future)
    waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # somebody has looked at it
    await asyncio.wait([waiting])


def wake(waiting: asyncio.Future[None]) -> None:
    """Let go on who waits for it, if they still do."""
    if not waiting.done():
        waiting.set_result(None)
