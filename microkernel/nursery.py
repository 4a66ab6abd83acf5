"""Where tasks live: each has an owner that ends it and hears of its failure. The word is trio's."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from microkernel.errors import Internal, MicrokernelError, Unavailable

__all__ = ["Nursery", "contained", "task_of_loop", "within"]

T = TypeVar("T")

ROUNDS = 3  # times that a task is told to end
ROUND = 1.0  # seconds from one time to the next

if sys.version_info >= (3, 12):
    task_of_loop: Callable[[asyncio.AbstractEventLoop], asyncio.Task[Any] | None] = asyncio.current_task
else:
    # `current_task` is Python code there and costs four times as much; this is all that it does with a loop given.
    task_of_loop = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined] # noqa: SLF001

log = logging.getLogger("microkernel.nursery")


class Nursery:
    """The tasks of one owner. A task that raises is reported to `failed(name, error)`; it takes nobody with it."""

    def __init__(self, owner: str, failed: Callable[[str, Exception], None]) -> None:
        self._owner = owner
        self._failed = failed
        self._tasks: dict[asyncio.Task[Any], Coroutine[Any, Any, Any]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start `work`. Raises `Unavailable` after `close`."""
        if self._closed:
            work.close()
            raise Unavailable(f"{self._owner} has stopped and starts no more work", service=self._owner)
        # A context of its own: a task that outlives the call in which it began must not count as part of it.
        task = asyncio.get_running_loop().create_task(
            contained(work), name=f"{self._owner}:{name}", context=contextvars.Context()
        )
        self._tasks[task] = work
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel all that runs and return when it has ended; a task may not close its own nursery.

        Tasks that have not heeded the third cancellation are named in the log and left: at most 3 s.
        """
        self._closed = True
        current = asyncio.current_task()
        for _ in range(ROUNDS):
            tasks = [task for task in self._tasks if task is not current]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=ROUND)
        left = sorted(task.get_name() for task in self._tasks if task is not current)
        if left:
            log.error("tasks of %s do not heed their cancellation and were left: %s", self._owner, ", ".join(left))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task).close()  # one that was cancelled before its first step has never been awaited
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Exception):
            self._failed(task.get_name().partition(":")[2], error)


async def contained(work: Awaitable[T]) -> T:
    """Await `work`; what would end more than this very work is raised as an `Internal` instead.

    That is `sys.exit()`, which would end the node, and a `CancelledError` that nobody has asked for: it comes from
    something cancelled that was waited for, and would end the waiting task without a word.
    """
    try:
        return await work
    except SystemExit as error:
        raise Internal(f"sys.exit({error.code!r}) was called") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Internal("what it waited for was cancelled") from error


async def within(seconds: float, work: Coroutine[Any, Any, T], name: str, late: MicrokernelError) -> T:
    """The result of `work`, run `contained` in a task named `name` and cancelled after `seconds`.

    Raises `late` then, whether or not the task heeds its cancellation: at most 1 s later.
    """

    def ended(task: asyncio.Task[T]) -> None:
        work.close()  # one that was cancelled before its first step has never been awaited
        if not task.cancelled():
            task.exception()  # what it raises after its time has nobody left to hear it

    task = asyncio.get_running_loop().create_task(contained(work), name=name)
    task.add_done_callback(ended)
    try:
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=ROUND)
    if not task.done():
        log.error("task %s does not heed its cancellation and was left", name)
    raise late
