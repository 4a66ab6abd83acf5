"""Begins a coroutine where one stands: what never waits is done at once, without a task (hot: once a message).

Where a compiler was at hand, `begin` is in `_run.c`: an end costs it no exception. The function here is the reference.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

__all__ = ["Rest", "begin"]

T = TypeVar("T")


class Rest(Generic[T]):
    """What is left of a coroutine that waits for `pending`: to be awaited, once."""

    __slots__ = ("_coroutine", "_pending")

    def __init__(self, coroutine: Coroutine[Any, Any, T], pending: Any) -> None:
        self._coroutine = coroutine
        self._pending = pending

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine, pending = self._coroutine, self._pending
        try:
            while True:
                try:
                    value = yield pending
                except BaseException as error:  # noqa: BLE001 - the coroutine protocol: what is thrown goes in
                    pending = coroutine.throw(error)
                else:
                    pending = coroutine.send(value)
        except StopIteration as done:
            result: T = done.value
            return result


def begin(coroutine: Coroutine[Any, Any, T]) -> T | Rest[T]:
    """Run `coroutine` up to its first wait: its result if there is none, else the rest of it. Raises what it raises."""
    try:
        pending = coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    return Rest(coroutine, pending)


if not TYPE_CHECKING and os.environ.get("MICROKERNEL_PURE", "0") in {"", "0"}:
    with contextlib.suppress(ImportError):  # built where there was no compiler
        from microkernel._run import begin
