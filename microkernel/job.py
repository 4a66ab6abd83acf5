"""A job of a compute thread: work that waits, runs, has run or was withdrawn (hot: once a quantum).

A function is one quantum. A generator function is as many as it yields: between two of them others may have the turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from types import GeneratorType
from typing import Any

from microkernel.errors import Internal
from microkernel.policy import Claim, Entry, Policy

__all__ = ["Job", "Shares", "raisable", "settle"]

Shares = dict[Claim, float]


class Job:
    """`shares`, where there are some, say after each quantum who had which part of it; else `claim` had all."""

    __slots__ = (
        "arguments", "chosen_by", "claim", "entry", "error", "function", "future", "one_core", "quanta", "result",
        "shares", "submitted",
    )  # fmt: skip

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        future: asyncio.Future[Any],
        claim: Claim,
        *,
        one_core: bool,
        shares: Shares | None,
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.future = future
        self.claim = claim
        self.one_core = one_core
        self.shares = shares
        self.submitted = time.perf_counter()
        self.entry: Entry | None = None  # in a policy, while it waits for a thread
        self.chosen_by: Policy | None = None  # while it runs
        self.quanta: Generator[Any, None, Any] | None = None  # of work that has begun and has several
        self.result: Any = None
        self.error: Exception | None = None

    def run(self) -> bool:
        """The next quantum, on a compute thread; whether it was the last: there is a result then, or an error."""
        try:
            if self.quanta is None:
                result = self.function(*self.arguments)
                if type(result) is not GeneratorType:
                    self.result = result
                    return True
                self.quanta = result
            if self.future.done():
                self.quanta.close()  # nobody waits for it any more
                return True
            next(self.quanta)
        except StopIteration as last:
            if self.quanta is None:
                self.error = raisable(last, self.function)
            else:
                self.result = last.value
            return True
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for the job
            self.error = raisable(error, self.function)
            return True
        return False

    def empty(self) -> None:
        """Let go of what a withdrawn job holds: it may lie in the queue for a while."""
        self.function, self.arguments = _nothing, ()


def settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Give `future` its outcome, unless whoever waited has gone."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def raisable(error: BaseException, function: Any) -> Exception:
    """`error` as it may be raised where it is waited for."""
    name = getattr(function, "__qualname__", function)
    wrapped: Exception
    if isinstance(error, StopIteration):
        # A future refuses it: it would end the generator that waits.
        wrapped = RuntimeError(f"{name} raised StopIteration")
    elif isinstance(error, Exception):
        return error
    else:
        # SystemExit and KeyboardInterrupt would end the loop, CancelledError would pass for a cancellation.
        wrapped = Internal(f"{name} raised {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _nothing() -> None:
    """What a withdrawn job would do."""
