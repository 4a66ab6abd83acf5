"""Events that wait for one reader, and what becomes of them when it falls behind. Sans-IO (hot: once a delivery).

Two limits, in events and in bytes, and four answers to an event that does not fit: see `Overflow`. Bytes are counted
where a body is known by its length (`bytes`, `str` by characters, `msgspec.Raw`); another body counts as an event only.
One event fits an empty backlog whatever its size, so that each can be read.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from microkernel.errors import Invalid, Overloaded

if TYPE_CHECKING:
    import asyncio

    from microkernel.events import Event

__all__ = ["SIZED", "Backlog", "Overflow", "overflow_of", "size_of"]

SIZED = frozenset({bytes, str, msgspec.Raw})
"""Types of bodies whose length is their size and cannot change while they wait."""


class Overflow(StrEnum):
    """What happens to an event for which a subscription has no room.

    `drop_oldest`: the oldest that waits makes room, and is counted. `latest`: only the newest waits, whatever the
    limits are; those it replaces are counted. `cut`: the subscription ends with `Overloaded` after what waits has been
    read. `wait`: who publishes by `deliver` waits for room; who publishes without waiting cuts it, so that its reader
    knows that there is a gap.
    """

    WAIT = "wait"
    DROP_OLDEST = "drop_oldest"
    LATEST = "latest"
    CUT = "cut"


def overflow_of(text: Overflow | str) -> Overflow:
    """The policy that `text` names; raises `Invalid` that lists them."""
    try:
        return Overflow(text)
    except ValueError as error:
        names = ", ".join(Overflow)
        raise Invalid(f"no overflow policy is named '{text}'", remedy=f"one of {names}", field="overflow") from error


def size_of(body: Any) -> int:
    """Bytes of a body where they are known, else 0; of text its characters."""
    return len(body) if type(body) in SIZED else 0


class Backlog:
    """A bounded queue. Who delivers looks at `events`, `limit`, `bytes` and `max_bytes` itself: a call would cost half
    of the delivery. What does not fit goes through `put`.

    `number` is the subscription's on the bus, `wake` what its reader waits for, `publishers` those who wait for room.
    """

    __slots__ = (
        "_own_bytes",
        "_own_limit",
        "bytes",
        "cut",
        "dropped",
        "events",
        "limit",
        "max_bytes",
        "number",
        "overflow",
        "pattern",
        "publishers",
        "replays",
        "wake",
        "watched",
    )

    def __init__(self, pattern: str, limit: int, max_bytes: int, overflow: Overflow) -> None:
        if limit < 1 or max_bytes < 1:
            raise Invalid(f"a subscription holds at least 1 event and 1 byte, not {limit} and {max_bytes}")
        self.pattern = pattern
        self.overflow = overflow
        self.events: deque[Event] = deque()
        self.bytes = 0
        self.limit = self._own_limit = 1 if overflow is Overflow.LATEST else limit
        self.max_bytes = self._own_bytes = max_bytes
        self.dropped = 0
        self.cut: str | None = None  # why, naming the numbers
        self.number = 0
        self.wake: asyncio.Future[None] | None = None
        self.publishers: list[tuple[int, asyncio.Future[None]]] = []  # in order of their numbers
        self.replays = False
        self.watched = False  # whether there are bytes to count or publishers to wake when an event is taken

    def has_room(self, size: int = 0) -> bool:
        """Whether an event of `size` bytes would be taken as it is."""
        events = self.events
        return not events or (len(events) < self.limit and self.bytes + size <= self.max_bytes)

    def put(self, event: Event, size: int) -> None:
        """Take an event by the rules; sets `cut` when that ends the subscription."""
        if not self.has_room(size):
            if self.overflow in {Overflow.CUT, Overflow.WAIT}:
                self.cut = (
                    f"the subscription to {self.pattern} fell behind: {len(self.events)} events and {self.bytes} bytes "
                    f"wait, its limits are {self.limit} and {self.max_bytes}"
                )
                return
            while not self.has_room(size):
                self.bytes -= size_of(self.events.popleft().body)
                self.dropped += 1
        self.events.append(event)
        if size:
            self.bytes += size
            self.watched = True

    def pop(self) -> Event:
        """Take the oldest event out, and wake who waits for the room."""
        event = self.events.popleft()
        if self.bytes:
            self.bytes -= size_of(event.body)
        if self.publishers:
            self.rouse_publisher()
        elif not self.bytes:
            self.watched = False
        return event

    def take(self, most: int) -> list[Event]:
        """Take the `most` oldest events out, at most those there are."""
        if most < len(self.events) or self.watched:
            return [self.pop() for _ in range(min(most, len(self.events)))]
        events = list(self.events)
        self.events.clear()
        return events

    def replay(self, events: list[Event]) -> None:
        """Begin with events of the past. Beside them there is room as without them, until they have been read."""
        if self.overflow is Overflow.LATEST:
            self.dropped += max(0, len(events) - 1)
            events = events[-1:]
        else:
            self.limit += len(events)
        for event in events:
            self.bytes += size_of(event.body)
        self.max_bytes += self.bytes
        self.watched = self.bytes > 0
        self.events.extend(events)
        self.replays = True

    def emptied(self) -> None:
        """All has been read: what was replayed takes no room any more."""
        self.replays = False
        self.limit, self.max_bytes = self._own_limit, self._own_bytes

    def failure(self) -> Overloaded:
        """What the reader of a backlog that was cut is told."""
        return Overloaded(
            self.cut or f"the subscription to {self.pattern} was cut",
            retry_after=0.0,
            remedy="read faster, or subscribe with a larger limit",
        )

    def rouse_reader(self) -> None:
        """Wake the reader, if it waits."""
        wake, self.wake = self.wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    def rouse_publisher(self) -> None:
        """If there is room, wake the first who waits for it; who is woken stays in `publishers` until it runs."""
        if self.has_room():
            for _, publisher in self.publishers:
                if not publisher.done():
                    publisher.set_result(None)
                    break
        self.watched = self.bytes > 0 or bool(self.publishers)

    def release_publishers(self) -> None:
        """Wake all who wait for room: there will be nobody to read."""
        for _, publisher in self.publishers:
            if not publisher.done():
                publisher.set_result(None)
