"""Events on their way: a bounded queue for each subscription, and the bus that fills it (hot: once an event)."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from types import TracebackType
from typing import Any

import msgspec

from microkernel.errors import PreconditionFailed
from microkernel.subjects import Subjects

__all__ = ["Bus", "Event", "Subscription"]


class Event(msgspec.Struct, frozen=True, gc=False):
    """What subscribers get. `offset` counts all events of this node, from 1."""

    subject: str
    body: Any
    offset: int


class Subscription:
    """An async iterator of events, for one reader; a second one that waits too gets `PreconditionFailed`.

    When the reader falls behind by `limit`, the oldest event is dropped and counted.
    """

    __slots__ = ("_bus", "_closed", "_events", "_limit", "_number", "_wake", "dropped", "pattern")

    def __init__(self, bus: Bus, pattern: str, group: str | None, limit: int) -> None:
        self.pattern = pattern
        self.dropped = 0
        self._bus = bus
        self._limit = limit
        self._events: deque[Event] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._closed = False
        self._number = bus.subjects.add(pattern, self, group)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        if self._wake is not None:
            raise PreconditionFailed(
                f"somebody reads this subscription of {self.pattern} already", remedy="subscribe once for each reader"
            )
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self._events.popleft()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Get no more events; a reader that waits sees the end."""
        self.close()

    def close(self) -> None:
        """`aclose` for owners that cannot wait."""
        self._closed = True
        self._bus.subjects.remove(self._number)
        self._rouse()

    def deliver(self, event: Event) -> None:
        """Called by the bus."""
        if len(self._events) >= self._limit:
            self._events.popleft()
            self.dropped += 1
        self._events.append(event)
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Bus:
    """All subscriptions of a node."""

    def __init__(self) -> None:
        self.subjects: Subjects[Subscription] = Subjects()
        self._offsets = itertools.count(1)

    def subscribe(self, pattern: str, *, group: str | None = None, limit: int = 1024) -> Subscription:
        """Raises `Invalid` for what is no pattern."""
        return Subscription(self, pattern, group, limit)

    def publish(self, subject: str, body: Any) -> None:
        """Deliver to all whose pattern matches; never waits. Raises `Invalid` for what is no subject."""
        event = Event(subject, body, next(self._offsets))
        for subscription in self.subjects.match(subject):
            subscription.deliver(event)
