"""Deadlines by sweep (hot: once a call that waits): one timer for all calls, in buckets of 10 ms.

A timer a call costs several microseconds and a heap entry; a call that ends in time costs here a dict's set and pop.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from typing import Protocol

__all__ = ["Deadlines", "Interruptible"]

BUCKET = 0.01  # seconds: a deadline is met by at most this much late
SPARE = 64  # buckets that may be kept although their calls have ended


class Interruptible(Protocol):
    """What can be told that its time ran out."""

    def expire(self) -> None: ...


class Deadlines:
    """Who must end when; owned by the kernel, used on its loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._buckets: dict[int, dict[Interruptible, None]] = {}  # in order of arrival: a run can be repeated
        self._order: list[int] = []
        self._limit = SPARE
        self._timer: asyncio.TimerHandle | None = None
        self._context = contextvars.Context()  # the timer must not keep the call in which it was armed

    def watch(self, deadline: float, call: Interruptible) -> int:
        """Have `call.expire()` called once `deadline` has passed; returns the bucket for `forget`."""
        bucket = int(deadline / BUCKET) + 1
        calls = self._buckets.get(bucket)
        if calls is None:
            if len(self._buckets) >= self._limit:
                self._clear()
            calls = self._buckets[bucket] = {}
            heapq.heappush(self._order, bucket)
            if self._order[0] == bucket:
                self._arm()
        calls[call] = None
        return bucket

    def forget(self, bucket: int, call: Interruptible) -> None:
        """`call` has ended by itself."""
        calls = self._buckets.get(bucket)
        if calls is not None:
            calls.pop(call, None)

    def close(self) -> None:
        """Stop the timer; nobody is expired any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._buckets.clear()
        self._order.clear()

    def _clear(self) -> None:
        """Drop the empty buckets; at most every second one is kept for nothing, which costs a call next to nothing."""
        self._buckets = {bucket: calls for bucket, calls in self._buckets.items() if calls}
        self._order = sorted(self._buckets)
        self._limit = 2 * len(self._buckets) + SPARE

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(self._order[0] * BUCKET, self._sweep, context=self._context)

    def _sweep(self) -> None:
        self._timer = None
        now = self.loop.time()
        while self._order and self._order[0] * BUCKET <= now:
            for call in self._buckets.pop(heapq.heappop(self._order)):
                call.expire()
        while self._order and not self._buckets[self._order[0]]:
            del self._buckets[heapq.heappop(self._order)]
        if self._order:
            self._arm()
