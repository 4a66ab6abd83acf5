"""Handlers in tasks of their own (`isolation = "task"`): what they do to their context and task is theirs alone.

The caller waits for the task. When it is cancelled it cancels the task and waits for its end, `CLOSE_TIMEOUT` seconds
at most. A task that does not end is named in the log and left.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from microkernel.message import _current, current_call
from microkernel.service import Handler, HandlerKind
from microkernel.suspended import CLOSE_TIMEOUT

__all__ = ["in_own_task"]

LAST_GRACE = 0.5  # seconds for a task whose time is over to heed its second cancellation

log = logging.getLogger("microkernel.isolation")

_left: set[asyncio.Task[Any]] = set()  # tasks that do not end: the loop itself would forget them


def in_own_task(handler: Handler, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run in a task of its own for each call or stream."""

    async def call(*message: Any) -> Any:
        task = _start(function(*message), handler.name)
        try:
            await asyncio.wait([task])
        finally:
            await _end(task, CLOSE_TIMEOUT)
        return _result(task)

    async def stream(*message: Any) -> AsyncGenerator[Any, None]:
        hand_over = _HandOver()
        producer = _start(_feed(function(*message), hand_over), handler.name)
        patience: float | None = CLOSE_TIMEOUT
        try:
            while (taken := await hand_over.take(producer)) is not None:
                yield taken[0]
            _result(producer)
        except GeneratorExit:
            patience = None  # the gate gives a stream that is closed its time
            raise
        finally:
            await _end(producer, patience)

    return stream if handler.kind is HandlerKind.STREAM else call


class _HandOver:
    """One item at a time, made when it is asked for."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self._given: asyncio.Future[tuple[Any]] | None = None

    async def take(self, producer: asyncio.Task[Any]) -> tuple[Any] | None:
        """The next item; None once the producer has ended."""
        self._given = asyncio.get_running_loop().create_future()
        self._asked.set()
        await asyncio.wait((self._given, producer), return_when=asyncio.FIRST_COMPLETED)
        return self._given.result() if self._given.done() else None

    async def asked(self) -> None:
        """Return when the reader wants an item."""
        await self._asked.wait()
        self._asked.clear()

    def give(self, item: Any) -> None:
        """Hand an item to the reader."""
        if self._given is not None and not self._given.done():
            self._given.set_result((item,))


async def _feed(items: AsyncGenerator[Any, None], hand_over: _HandOver) -> None:
    async with aclosing(items):
        await hand_over.asked()
        async for item in items:
            hand_over.give(item)
            await hand_over.asked()


def _start(work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[tuple[Any, SystemExit | None]]:
    """A task with nothing of the caller's context but the call that is answered."""
    context = contextvars.Context()
    context.run(_current.set, current_call())
    task = asyncio.create_task(_outcome(work), name=name, context=context)

    def ended(task: asyncio.Task[Any]) -> None:
        work.close()  # one that was cancelled before its first step was never awaited
        if not task.cancelled():
            task.exception()  # heard here: who waits for it may be cancelled at the moment of its end

    task.add_done_callback(ended)
    return task


async def _outcome(work: Coroutine[Any, Any, Any]) -> tuple[Any, SystemExit | None]:
    """What `work` returns; `sys.exit()` in a task would end the loop, so it is handed over."""
    try:
        return await work, None
    except SystemExit as error:
        return None, error


def _result(task: asyncio.Task[tuple[Any, SystemExit | None]]) -> Any:
    """What the handler has returned; raises what it has raised, a cancellation by nobody too: the gate names that."""
    result, left = task.result()
    if left is not None:
        raise left
    return result


async def _end(task: asyncio.Task[Any], timeout: float | None) -> None:
    """Cancel a task that runs and wait for its end, but not for ever."""
    if task.done():
        return
    task.cancel()
    try:
        await asyncio.wait([task], timeout=timeout)
    except asyncio.CancelledError:
        task.cancel()  # its `finally` blocks have had their time
        await asyncio.wait([task], timeout=LAST_GRACE)
        raise
    finally:
        if not task.done():
            log.error("task %s does not heed its cancellation and was left", task.get_name())
            _left.add(task)
            task.add_done_callback(_left.discard)
        elif not task.cancelled():
            task.exception()  # nobody is left to hear of it
