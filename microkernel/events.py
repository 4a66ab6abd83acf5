"""Events on their way: the bus that fills a backlog for each subscription, and who reads it (hot: once an event).

`publish` never waits. Whom a subject reaches is remembered until somebody comes or goes: a walk through the trie takes
microseconds, to look it up 30 ns. A delivery is an append and, once a burst, a wake-up; nothing is called for it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from bisect import insort
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import msgspec

from microkernel.backlog import SIZED, Backlog, Overflow, overflow_of, size_of
from microkernel.errors import DeadlineExceeded, Invalid, Overloaded, PreconditionFailed
from microkernel.rings import Ring, RingLimits, replay
from microkernel.subjects import Matches, Subjects, check_subject, covers, next_in_turn

__all__ = ["Bus", "Event", "Overflow", "Subscription"]

LIMIT = 1024  # events that wait for one reader
MAX_BYTES = 16 * 1024 * 1024  # of bodies that wait for one reader
MAX_SUBSCRIPTIONS = 65_536  # of a node; an empty one takes 1.7 KiB
MAX_PUBLISHERS = 1024  # that wait for room in `deliver`
PATIENCE = 30.0  # seconds that `deliver` waits for room
MAX_ROUTES = 4096  # subjects that are remembered; all are forgotten when there is one more


class Event(msgspec.Struct, frozen=True, gc=False):
    """What subscribers get. `offset` counts all events of this node, from 1."""

    subject: str
    body: Any
    offset: int


class Subscription:
    """An async iterator of events, for one reader; a second one that waits too gets `PreconditionFailed`.

    When the reader falls behind, `overflow` says what happens; an event that was lost is counted in `dropped`.
    """

    __slots__ = ("_backlog", "_bus", "_closed", "_events", "_waits")

    def __init__(self, bus: Bus, backlog: Backlog) -> None:
        self._bus = bus
        self._backlog = backlog
        self._events = backlog.events
        self._closed = False
        self._waits = False

    @property
    def pattern(self) -> str:
        """The subjects that are subscribed to."""
        return self._backlog.pattern

    @property
    def overflow(self) -> Overflow:
        """What happens to an event for which there is no room."""
        return self._backlog.overflow

    @property
    def dropped(self) -> int:
        """Events that this reader has missed because it fell behind."""
        return self._backlog.dropped

    @property
    def pending(self) -> int:
        """Events that wait to be read."""
        return len(self._events)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises `Overloaded` once all is read of a subscription that was cut."""
        while not self._events:
            if self._must_end():
                raise StopAsyncIteration
            await self._until_woken()
        backlog = self._backlog
        return backlog.pop() if backlog.watched else self._events.popleft()

    async def take(self, most: int = LIMIT) -> list[Event]:
        """All events that wait, at most `most`, at least one; none at the end. For many small ones: half the cost.

        Raises `Overloaded` as iterating does.
        """
        if most < 1:
            raise Invalid(f"take at least 1 event, not {most}", field="most")
        while not self._events and not self._must_end():
            await self._until_woken()
        return self._backlog.take(most)

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
        self._bus.remove(self._backlog)

    async def _until_woken(self) -> None:
        wake = self._backlog.wake = asyncio.get_running_loop().create_future()
        self._waits = True
        try:
            await wake
        finally:
            self._waits, self._backlog.wake = False, None

    def _must_end(self) -> bool:
        """Whether no more will come, now that all is read; raises what a reader is told then, or a second reader."""
        if self._waits:
            raise PreconditionFailed(
                f"somebody reads this subscription of {self.pattern} already", remedy="subscribe once for each reader"
            )
        backlog = self._backlog
        if backlog.replays:
            backlog.emptied()
        if backlog.cut is not None and not self._closed:
            raise backlog.failure()
        return self._closed


class _Route:
    """Whom a subject reaches."""

    __slots__ = ("everyone", "groups", "rings", "unheard", "waits")

    def __init__(self, matches: Matches[Backlog], rings: tuple[Ring, ...]) -> None:
        self.everyone = matches.everyone
        self.waits = tuple(backlog for backlog in matches.everyone if backlog.overflow is Overflow.WAIT)
        self.groups = matches.groups
        self.rings = rings
        self.unheard = not (self.everyone or self.groups or rings)


class Bus:
    """All subscriptions of a node, and the rings that keep its events. `now` is in seconds, for the age of those."""

    def __init__(self, rings: Iterable[RingLimits] = (), now: Callable[[], float] = time.monotonic) -> None:
        self.subjects: Subjects[Backlog] = Subjects()
        self.offset = 0  # of the newest event
        self._rings = tuple(Ring(limits) for limits in rings if limits.events)
        self._now = now
        self._routes: dict[str, _Route] = {}
        self._arrivals = itertools.count(1)
        self._publishers = 0

    def subscribe(
        self,
        pattern: str,
        *,
        group: str | None = None,
        owner: str | None = None,
        limit: int = LIMIT,
        max_bytes: int = MAX_BYTES,
        overflow: Overflow | str = Overflow.DROP_OLDEST,
        since: int | None = None,
    ) -> Subscription:
        """Get the events of `pattern`; of one `owner`'s `group` a single member gets each.

        `since` is the offset of the last event that was seen, 0 for none: all later ones come first, then those that
        are published from now on, without a gap. Raises `Invalid` for what is no pattern, `Gone` and
        `PreconditionFailed` for what is not kept, and `Overloaded` when the node has too many subscriptions.
        """
        if len(self.subjects) >= MAX_SUBSCRIPTIONS:
            raise Overloaded(f"this node has {len(self.subjects)} subscriptions, which is its limit", retry_after=1.0)
        backlog = Backlog(pattern, limit, max_bytes, overflow_of(overflow))
        if since is not None:
            if group is not None:
                raise Invalid("members of a group share events and cannot each replay them", field="since")
            backlog.replay(replay(self._rings, pattern, since, self.offset, self._now()))
        # Nothing is awaited between the replay and this line: no event can fall between them, or come twice.
        backlog.number = self.subjects.add(pattern, backlog, group, owner)
        self._routes.clear()
        return Subscription(self, backlog)

    def remove(self, backlog: Backlog) -> None:
        """End a subscription: its reader gets what waits, then the end."""
        self.subjects.remove(backlog.number)
        self._routes.clear()
        backlog.rouse_reader()
        backlog.release_publishers()

    def publish(self, subject: str, body: Any) -> None:
        """Deliver to all whose pattern matches; never waits. Raises `Invalid` for what is no subject."""
        route = self._routes.get(subject)
        if route is None:
            route = self._find_route(subject)
        self.offset = offset = self.offset + 1
        if route.unheard:
            return  # most events are told to nobody
        event = Event(subject, body, offset)
        size = len(body) if type(body) in SIZED else 0
        for ring in route.rings:
            ring.keep(event, size, self._now())
        for backlog in route.everyone:
            events = backlog.events
            if len(events) < backlog.limit and (not size or backlog.bytes + size <= backlog.max_bytes):
                events.append(event)
                if size:
                    backlog.bytes += size
                    backlog.watched = True
            else:
                self._put(backlog, event, size)
            wake = backlog.wake
            if wake is not None:  # once a burst: the reader is woken and has not run yet
                backlog.wake = None
                if not wake.done():
                    wake.set_result(None)
        for members in route.groups:
            backlog = self.subjects.choose(members, lambda member: member.has_room(size))
            self._put(backlog, event, size)
            backlog.rouse_reader()

    async def deliver(self, subject: str, body: Any, *, patience: float = PATIENCE) -> None:
        """`publish` once every subscription that lets publishers wait (`Overflow.WAIT`) has room; in order of arrival.

        Until then nobody gets it. Raises `DeadlineExceeded` after `patience` seconds and `Overloaded` when too many
        publishers wait: nobody has got it then.
        """
        size = size_of(body)
        woken: tuple[Backlog, ...] = ()
        if self._full(subject, size, math.inf):
            woken = await self._until_room(subject, size, patience)
        self.publish(subject, body)
        _rouse(woken)  # there may be room for more than one

    async def _until_room(self, subject: str, size: int, patience: float) -> tuple[Backlog, ...]:
        """Return when nothing is full; gives the backlogs whose room we were woken for."""
        woken: tuple[Backlog, ...] = ()
        full: tuple[Backlog, ...] = ()
        number = next(self._arrivals)
        try:
            async with asyncio.timeout(patience):
                while full := self._full(subject, size, number):
                    # If we have to wait elsewhere now, the room that we were woken for is for the next.
                    _rouse(tuple(backlog for backlog in woken if backlog not in full))
                    await self._wait_at(full, number)
                    woken = full
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the subscription to {full[0].pattern} had no room for {subject} within {patience:g} s",
                may_have_run=False,
            ) from error
        return woken

    async def _wait_at(self, full: tuple[Backlog, ...], number: int) -> None:
        """Return when one of `full` has room; who has a lower `number` goes first."""
        if self._publishers >= MAX_PUBLISHERS:
            raise Overloaded(
                f"{self._publishers} publishers wait for room in subscriptions such as {full[0].pattern}",
                retry_after=0.1,
                may_have_run=False,
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for backlog in full:
            insort(backlog.publishers, (number, waiter))
            backlog.watched = True
        self._publishers += 1
        try:
            await waiter
        except asyncio.CancelledError:
            _rouse(full)  # woken and cancelled at once: the room is for the next
            raise
        finally:
            self._publishers -= 1
            for backlog in full:
                backlog.publishers.remove((number, waiter))

    def _full(self, subject: str, size: int, number: float) -> tuple[Backlog, ...]:
        """Where a publisher has to wait, for room or for those with a lower `number`; nowhere if empty."""
        route = self._routes.get(subject) or self._find_route(subject)
        for backlog in route.waits:
            if not backlog.has_room(size) or (backlog.publishers and backlog.publishers[0][0] < number):
                return (backlog,)
        for members in route.groups:
            backlog = next_in_turn(members, lambda member: member.has_room(size)).subscriber
            if backlog.overflow is Overflow.WAIT and not backlog.has_room(size):
                return tuple(member.subscriber for member in members)
        return ()

    def _put(self, backlog: Backlog, event: Event, size: int) -> None:
        backlog.put(event, size)
        if backlog.cut is not None:
            self.remove(backlog)

    def hears(self, subject: str) -> bool:
        """Whether somebody has subscribed to `subject`; the rings that keep it do not count."""
        route = self._routes.get(subject) or self._find_route(subject)
        return bool(route.everyone or route.groups)

    def _find_route(self, subject: str) -> _Route:
        names = check_subject(subject)
        if len(self._routes) >= MAX_ROUTES:
            self._routes.clear()
        rings = tuple(ring for ring in self._rings if covers(ring.names, names))
        route = self._routes[subject] = _Route(self.subjects.matches(subject), rings)
        return route


def _rouse(backlogs: tuple[Backlog, ...]) -> None:
    for backlog in backlogs:
        backlog.rouse_publisher()
