"""What a service away from the kernel's loop calls through: its port and its bus, the other ends of the real ones.

The kernel's end of the link holds the service's real port, so rights, priorities and deadlines are looked at there.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, cast

import msgspec

from microkernel.arguments import either
from microkernel.audit import Act
from microkernel.backlog import Overflow, overflow_of
from microkernel.capability import Rights
from microkernel.errors import MicrokernelError, Overloaded, PreconditionFailed
from microkernel.events import Bus, Event, Subscription
from microkernel.isolation.frames import Context, Item, Options, Publish, Send
from microkernel.isolation.items import Items
from microkernel.isolation.link import Link
from microkernel.message import PRIORITY, current_call
from microkernel.monitors import Change, Monitor
from microkernel.port import Port, Stream
from microkernel.router import Router
from microkernel.service import CREDIT
from microkernel.subjects import check_pattern, check_subject
from microkernel.trace import Trace

__all__ = [
    "DELIVER",
    "DENIED",
    "MONITOR",
    "SUBSCRIBE",
    "GuestBus",
    "GuestMonitor",
    "GuestPort",
    "GuestSubscription",
    "Refusal",
]

# Addresses at the kernel's end of a link.
SUBSCRIBE, DELIVER, MONITOR, DENIED = "@subscribe", "@deliver", "@monitor", "@denied"
EVENTS = 64  # credit of a subscription; what waits beyond it waits in the bus, under its rule for slow readers


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    """A denial to be audited; `caller` and `user` are those of a port that was narrowed, see `Port.denied`."""

    act: Act
    target: str
    why: str
    peer: str | None = None
    caller: str | None = None
    user: str | None = None


class GuestPort(Port):
    """A port whose calls cross the link; see `Port` for what its methods do and raise."""

    def __init__(
        self,
        router: Router,
        link: Link,
        names: frozenset[str],
        *,
        caller: str,
        rights: Rights,
        user: str | None = None,
    ) -> None:
        """`names` are the services of the node when this one was started."""
        super().__init__(router, caller=caller, rights=rights, user=user)
        self._link = link
        self._names = names
        self._is_narrow = False

    def narrow(self, *, caller: str, rights: Rights, user: str | None = None, top_priority: int = 0) -> GuestPort:
        plain = super().narrow(caller=caller, rights=rights, user=user, top_priority=top_priority)
        port = GuestPort(self._router, self._link, self._names, caller=caller, rights=rights, user=plain.user)
        port._rights, port._granted = plain._rights, plain._granted  # noqa: SLF001 - one class in two halves
        port._top_priority = plain._top_priority  # noqa: SLF001
        port._is_narrow = True
        return port

    def reaches(self, name: str) -> bool:
        return name in self._names

    def method(self, to: str) -> Any:
        return functools.partial(self.call, to)

    async def call(
        self,
        to: str,
        message: Any = None,
        /,
        *,
        deadline: float | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
        trace: Trace | None = None,
        **fields: Any,
    ) -> Any:
        options = self._options(deadline=deadline, priority=priority, key=idempotency_key, trace=trace)
        return await self._ask(to, message, fields, options)

    async def send(self, to: str, message: Any = None, /, *, priority: int | None = None, **fields: Any) -> None:
        await self._ask(to, message, fields, self._options(priority=priority, one_way=True))

    def stream(
        self,
        to: str,
        message: Any = None,
        /,
        *,
        deadline: float | None = None,
        priority: int | None = None,
        trace: Trace | None = None,
        **fields: Any,
    ) -> Stream:
        options = self._options(deadline=deadline, priority=priority, trace=trace)
        context = self._context()  # of whoever opens it, not of whoever reads it

        def opening() -> Items:
            self._check_call(to)
            body = self._link.packing.pack(_given(to, message, fields), f"the message to {to}")
            return self._link.open(to, body, CREDIT, context, options)

        return cast("Stream", _GuestStream(self._link, opening, to))

    def monitor(self, name: str) -> Monitor:
        self._check_hear(f"service.{name}.*")
        body = self._link.packing.pack(name, f"the monitor of {name}")
        return cast("Monitor", GuestMonitor(self._link, name, body))

    def denied(self, act: Act, target: str, why: str, *, peer: str | None = None) -> None:
        holder, user = (self.caller, self.user) if self._is_narrow else (None, None)
        refusal = Refusal(act, target, why, peer, holder, user)
        self._link.post(Send(DENIED, self._link.packing.pack(refusal, "a denial")))

    async def _ask(self, to: str, message: Any, fields: dict[str, Any], options: Options) -> Any:
        self._check_call(to)
        link = self._link
        body = link.packing.pack(_given(to, message, fields), f"the message to {to}")
        if link.transport.is_full:
            await link.transport.room()
        result = await link.call(to, body, self._context(), options)
        return link.packing.unpack_named(result.body, result.kind, f"the result of {to}")

    def _options(self, *, priority: int | None = None, **options: Any) -> Options:
        if self._top_priority:
            call = current_call()
            usual = PRIORITY if call is None else call.priority
            priority = max(usual if priority is None else priority, self._top_priority)
        if self._is_narrow:
            options |= {"caller": self.caller, "user": self.user}
        return Options(priority=priority, **options)

    def _context(self) -> Context | None:
        call = current_call()
        return None if call is None else Context.of(call, self._router.clock.now())


class _GuestStream:
    """The items of a stream: as `Port`'s."""

    def __init__(self, link: Link, opening: Callable[[], Items], to: str) -> None:
        self._link = link
        self._opening: Callable[[], Items] | None = opening
        self._to = to
        self._items: Items | None = None

    def __aiter__(self) -> _GuestStream:
        return self

    async def __anext__(self) -> Any:
        items = self._opened()
        if items is None:
            raise StopAsyncIteration
        try:
            item = await anext(items)
        except asyncio.CancelledError:
            await items.aclose()
            raise
        return self._link.packing.unpack_named(item.body, item.kind, f"an item of {self._to}")

    async def __aenter__(self) -> _GuestStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._items is not None:
            self._link.drop(self._items)

    async def send(self, item: Any) -> None:
        """Give the handler an item."""
        items = self._opened()
        if items is None:
            raise PreconditionFailed(f"the stream of {self._to} takes no more items", may_have_run=False)
        await items.send(self._link.packing.pack(item, f"an item for {self._to}"))

    async def finish(self) -> None:
        """Give the handler no more items."""
        if (items := self._opened()) is not None:
            items.finish()

    async def aclose(self) -> None:
        """End the stream early."""
        self._opening = None
        if self._items is not None:
            await self._items.aclose()

    def _opened(self) -> Items | None:
        if self._items is None and self._opening is not None:
            opening, self._opening = self._opening, None
            self._items = opening()
        return self._items


class GuestBus:
    """Stands for the kernel's bus in a service's own router."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def subscribe(self, pattern: str, **options: Any) -> Subscription:
        """`Bus.subscribe`; it stands for all that is sent over the link from now on."""
        check_pattern(pattern)
        return cast("Subscription", GuestSubscription(self._link, pattern, options))

    def publish(self, subject: str, body: Any) -> None:
        """`Bus.publish`. Raises `Overloaded` while the kernel does not take what is sent."""
        check_subject(subject)
        link = self._link
        if link.transport.is_full:
            raise Overloaded(f"{subject} cannot be told now: the kernel does not take what is sent", retry_after=0.1)
        packed = link.packing.pack(body, f"the event {subject}")
        link.post(Publish(subject, packed, link.packing.name(body, Any)))

    async def deliver(self, subject: str, body: Any, *, patience: float) -> None:
        """`Bus.deliver`."""
        check_subject(subject)
        packing = self._link.packing
        given = packing.pack((subject, patience, body), f"the event {subject}")
        await self._link.call(DELIVER, given)

    def as_bus(self) -> Bus:
        """Itself, to those who know it as the bus."""
        return cast("Bus", self)


class _Followed:
    """What is read from the kernel's end until either end closes it."""

    def __init__(self, link: Link, to: str, body: Any) -> None:
        self._link = link
        self._closed = False
        self._items: Items = link.open(to, body, EVENTS)

    async def _next(self) -> Item:
        try:
            return await anext(self._items)
        except MicrokernelError:
            if self._closed:
                raise StopAsyncIteration from None
            raise

    async def aclose(self) -> None:
        """Get no more; a reader that waits sees the end."""
        self.close()

    def close(self) -> None:
        """`aclose` for owners that cannot wait."""
        if not self._closed:
            self._closed = True
            self._items.abandon()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class GuestSubscription(_Followed):
    """Events of the kernel's bus; see `Subscription`. `dropped` is of the moment when the last event was sent."""

    pending = 0  # what waits for its reader waits in the bus

    def __init__(self, link: Link, pattern: str, options: dict[str, Any]) -> None:
        self.pattern = pattern
        self.overflow = overflow_of(options.get("overflow", Overflow.DROP_OLDEST))
        self.dropped = 0
        body = link.packing.pack({"pattern": pattern, "options": options}, f"the subscription to {pattern}")
        super().__init__(link, SUBSCRIBE, body)

    def __aiter__(self) -> GuestSubscription:
        return self

    async def __anext__(self) -> Event:
        item = await self._next()
        fields = self._link.packing.unpack_named(item.body, item.kind, f"an event of {self.pattern}")
        subject, offset, self.dropped, body = fields
        return Event(subject, body, offset)

    async def __aenter__(self) -> GuestSubscription:
        return self

    async def take(self, most: int = EVENTS) -> list[Event]:  # noqa: ARG002 - one is at most as many
        """The next event as a list; an empty one at the end."""
        try:
            return [await anext(self)]
        except StopAsyncIteration:
            return []


class GuestMonitor(_Followed):
    """`Up` and `Down` of a service; see `Monitor`. What is against it is raised by the first read."""

    def __init__(self, link: Link, service: str, body: Any) -> None:
        self.service = service
        super().__init__(link, MONITOR, body)

    def __aiter__(self) -> GuestMonitor:
        return self

    async def __anext__(self) -> Change:
        item = await self._next()
        change: Change = self._link.packing.unpack_named(item.body, item.kind, f"a change of {self.service}")
        return change

    async def __aenter__(self) -> GuestMonitor:
        return self


def _given(to: str, message: Any, fields: dict[str, Any]) -> Any:
    given = either(to, message, fields)
    return {} if given is None else given
