"""Threads of one mount: what its store does not answer holds up nobody else's files."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from microkernel.errors import Overloaded, Unavailable

__all__ = ["Workers"]

T = TypeVar("T")

MOST_WAITING = 1000


class Workers:
    """A few threads for what blocks, with a limit on how long is waited for them."""

    def __init__(self, count: int, name: str, seconds: float) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._busy = 0
        self._waiting = 0
        self._closed = False

    async def run(self, work: Callable[[], T], *, times: float = 1.0) -> T:
        """What `work` returns; it has `times` the limit. Raises `TimeoutError`, and `Overloaded` where many wait."""
        if self._closed:
            raise Unavailable("the mount was removed", remedy="mk fs mounts shows what there is")
        if self._waiting >= MOST_WAITING:
            raise Overloaded(f"{MOST_WAITING} calls wait for the store already", retry_after=1.0)
        self._waiting += 1
        try:
            async with asyncio.timeout(None if math.isinf(times) else self._seconds * times):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._counted, work)
        finally:
            self._waiting -= 1

    async def to_its_end(self, work: Callable[[], T]) -> T:
        """As `run`, for what is not to be let go of while it runs: a cancelled caller waits for it, up to the limit."""
        threads = None if self._closed else self._threads  # what is open is closed after the mount is, too
        future = asyncio.get_running_loop().run_in_executor(threads, self._counted, work)
        try:
            await asyncio.wait([future], timeout=self._seconds)
        except asyncio.CancelledError:
            await asyncio.wait([future], timeout=self._seconds)
            raise
        if not future.done():
            raise TimeoutError
        return future.result()

    async def close(self) -> None:
        """End the threads; one that its store holds is not waited for."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        if not self._busy:
            await asyncio.to_thread(self._threads.shutdown)

    def _counted(self, work: Callable[[], T]) -> T:
        with self._lock:
            self._busy += 1
        try:
            return work()
        finally:
            with self._lock:
                self._busy -= 1
