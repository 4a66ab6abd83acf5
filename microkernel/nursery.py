"""Where tasks live: each has an owner that ends it and hears of its failure. The word is trio's."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from microkernel.errors import Unavailable

__all__ = ["Nursery"]


class Nursery:
    """The tasks of one owner. A task that raises is reported to `failed(name, error)`; it takes nobody with it."""

    def __init__(self, owner: str, failed: Callable[[str, Exception], None]) -> None:
        self._owner = owner
        self._failed = failed
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Start `work`. Raises `Unavailable` after `close`."""
        if self._closed:
            work.close()
            raise Unavailable(f"{self._owner} has stopped and starts no more work", service=self._owner)
        # A context of its own: a task that outlives the call in which it began must not count as part of it.
        task = asyncio.get_running_loop().create_task(work, name=f"{self._owner}:{name}", context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel all that runs and return when it has ended; a task may not close its own nursery."""
        self._closed = True
        current = asyncio.current_task()
        while tasks := [task for task in self._tasks if task is not current]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception):
            self._failed(task.get_name().partition(":")[2], error)
