"""A node as its clients see it: calls, streams and events.

When the link is lost, another one goes on with the session, and nobody notices but by the wait; what cannot go on is in
`pending`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

import msgspec

from microkernel.arguments import decoder_of, either
from microkernel.errors import (
    CallCancelled,
    DeadlineExceeded,
    Invalid,
    MicrokernelError,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)
from microkernel.trace import Trace
from microkernel.wire import codec
from microkernel.wire.body import Body
from microkernel.wire.client_session import ClientSession
from microkernel.wire.connection import Connection, Find
from microkernel.wire.inbox import Inbox, Monitor, Stream, Subscription
from microkernel.wire.limits import Bucket, Limits
from microkernel.wire.pending import AskAgain, Pending
from microkernel.wire.record import as_record
from microkernel.wire.slots import Slots
from microkernel.wire.trust import Expected, Trust

__all__ = ["System", "open_system", "shape"]

PATIENCE = 30.0  # seconds that a message without a deadline waits to be sent: for a link, or for room on it
PREPAID = 32  # messages that are taken from the bucket at a time: to ask it for each costs as much as the rest
KEPT = 110.0  # seconds that a key is good for, here: the node keeps an outcome for 120 s from its end

T = TypeVar("T")


@asynccontextmanager
async def open_system(
    url: str, token: str, *, trust: Trust | None = None, reconnect: bool = False, find: Find | None = None
) -> AsyncIterator[System]:
    """Connect to the websocket at `url`; the link is closed at the end of the block.

    With `reconnect`, a lost link is replaced, with the address and token that `find` gives then. Raises `Unavailable`
    when nobody answers there, `Unauthenticated` when the token is not valid, or the certificate not one that `trust`
    believes.
    """
    known = [(url, token, trust)]

    async def where() -> tuple[str, str, Trust | Expected | None]:
        return known[0] if find is None else known.pop() if known else await find()

    system = System(where, reconnect=reconnect)
    try:
        await system.start()
        yield system
    finally:
        await system.aclose()


class System:
    """A node, over one link at a time."""

    def __init__(self, find: Find, *, reconnect: bool = False, limits: Limits | None = None) -> None:
        """Made by `connect`. `limits` are those of what comes."""
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(find, reconnect=reconnect, lost=self._lost, over=self._over, limits=limits)
        self._pending = Pending(self._connection, self._keep_to)
        self._bucket = Bucket(1.0, 1, 0.0)
        self.at: str | None = None  # a node of the cluster, to which calls and streams go that name none
        self._prepaid = 0  # messages that the bucket has given already
        self._slots = Slots(1)
        self._longest = self._session.limits.text  # bytes of a text frame that the node takes

    async def start(self) -> None:
        """Greet the server."""
        await self._connection.start()

    async def aclose(self) -> None:
        """Close the link; what is still open ends with `CallCancelled`."""
        self._pending.end_all(lambda: CallCancelled("the connection was closed"))
        await self._connection.aclose()

    @property
    def url(self) -> str:
        """The address of the node's websocket."""
        return self._connection.url

    @property
    def is_over(self) -> bool:
        """Whether the link has ended for good: no other one is tried, and all calls fail."""
        return self._connection.is_over

    @property
    def _session(self) -> ClientSession:
        return self._connection.session

    @property
    def node(self) -> str:
        """The node's name."""
        return "" if self._session.hello is None else self._session.hello.node

    @property
    def user(self) -> str:
        """Who the token stands for."""
        return "" if self._session.ready is None else self._session.ready.user

    @property
    def rights(self) -> tuple[str, ...]:
        """Patterns of what may be called."""
        return () if self._session.ready is None else self._session.ready.rights

    @overload
    async def call(
        self, to: str, message: Any = ..., /, *, deadline: float | None = ..., priority: int | None = ...,
        idempotency_key: str | None = ..., trace: Trace | None = ..., result_type: type[T], **fields: Any,
    ) -> T: ...  # fmt: skip
    @overload
    async def call(
        self, to: str, message: Any = ..., /, *, deadline: float | None = ..., priority: int | None = ...,
        idempotency_key: str | None = ..., trace: Trace | None = ..., result_type: Any = ..., **fields: Any,
    ) -> Any: ...  # fmt: skip
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
        result_type: Any = None,
        **fields: Any,
    ) -> Any:
        """Call `service.method` with a message or with fields; the result as a `Record` or a `result_type`.

        `deadline` is in seconds, `priority` 0 (urgent) … 9; `result_type=Any` gives plain dicts and lists. Calls with
        the same `idempotency_key` run once within 120 s and have one result; `trace` is the caller's span. Raises the
        error the handler raised, `DeadlineExceeded`, and `Unavailable` when the link is lost and the node has not kept
        the session.
        """
        to = to if self.at is None else self._placed(to)
        body = self._body(to, message, fields)
        slots = self._slots
        # From here on: the wait for a slot is part of it.
        ends = None if deadline is None else self._loop.time() + deadline
        is_plain = deadline is None and priority is None and idempotency_key is None and trace is None
        if not slots.take():
            await self._wait_for_slot(deadline)
        try:
            if is_plain and self._is_admitted():
                session = self._connection.session
                number = session.call_plain(to, body)
                answer = self._pending.expect(number)
                if len(session.state.calls) == 1:
                    self._connection.flush()
                else:  # of several, the others go together at the end of the turn
                    self._connection.touch()
                try:
                    result = await answer
                except AskAgain:
                    result = await self._ask(to, body, None, self._loop.time() + PATIENCE, None, None, None)
                except BaseException:
                    self._pending.leave(number)
                    raise
            else:
                until = self._loop.time() + PATIENCE if ends is None else ends
                result = await self._ask(to, body, deadline, until, priority, idempotency_key, trace)
        finally:
            slots.free()
        return shape(result, result_type, "the result of", to)

    def stream(
        self,
        to: str,
        message: Any = None,
        /,
        *,
        credit: int = 64,
        deadline: float | None = None,
        priority: int | None = None,
        result_type: Any = None,
        **fields: Any,
    ) -> Stream:
        """Open a stream, to iterate over with `async for`; leaving an `async with` around it ends it early.

        The server runs at most `credit` items ahead of the reader. Nothing is sent before the first item is
        asked for, or the first one is sent into it (`Stream.send`).
        """
        if credit < 1:
            raise Invalid("a stream needs a credit of at least 1", field="credit")
        to = to if self.at is None else self._placed(to)
        body = self._body(to, message, fields)

        def ask() -> int:
            return self._session.open(to, body, credit=credit, deadline=deadline, priority=priority)

        return self._stream(to, ask, credit, result_type)

    def _stream(self, to: str, ask: Callable[[], int], credit: int, kind: Any) -> Stream:
        """The stream that `ask` opens once it is read, as items of type `kind`."""

        async def opening() -> Inbox:
            await self._admit(begins=True)
            number = ask()
            self._connection.touch()
            return self._pending.stream(number)

        def more(inbox: Inbox, count: int) -> None:
            self._bucket.take(1, self._loop.time())
            self._session.credit(inbox.number, count)
            self._connection.touch()

        async def put(inbox: Inbox, item: Any) -> None:
            encoded = self._body(to, item, {})
            while True:
                if inbox.is_over:
                    raise PreconditionFailed(f"the stream of {to} takes no more items", may_have_run=False)
                if self._session.room(inbox.number) < 1:
                    await inbox.room()
                    continue
                await self._admit()
                if self._session.room(inbox.number):
                    self._session.item(inbox.number, encoded)
                    self._connection.touch()
                    return

        def finish(inbox: Inbox) -> None:
            self._session.finish(inbox.number)
            self._connection.touch()

        return Stream(opening, more, put, finish, lambda item: shape(item.body, kind, "an item of", to), credit)

    async def send(self, to: str, message: Any = None, /, *, priority: int | None = None, **fields: Any) -> None:
        """Send one way: nobody waits for a result; what goes wrong is logged."""
        to = to if self.at is None else self._placed(to)
        body = self._body(to, message, fields)
        if not self._is_admitted():
            await self._admit()
        self._session.send(to, body, priority=priority)
        self._connection.touch()

    async def publish(self, subject: str, message: Any = None, /, **fields: Any) -> None:
        """Tell all subscribers of `subject`."""
        body = self._body(subject, message, fields)
        await self._admit()
        self._session.publish(subject, body)
        self._connection.touch()

    def subscribe(self, subject: str, group: str | None = None, *, since: int | None = None) -> Subscription:
        """Events of `subject` (`a.*`, `a.>`), to iterate over; `async with` returns when the subscription stands.

        Of a user's `group` one member gets each event. `since` is the offset of the last event that was seen, 0 for
        none: all later ones come first, or the reader gets `Gone` where the node has not kept them.
        """

        async def opening() -> Inbox:
            await self._admit()
            number = self._session.subscribe(subject, group, since=since)
            self._connection.touch()
            return self._pending.subscription(number, subject, group, since)

        return Subscription(opening, self._round_trip, subject)

    def monitor(self, service: str) -> Monitor:
        """`Up` and `Down` of a service as it comes and goes, beginning with how it is, to iterate over."""

        async def opening() -> Inbox:
            await self._admit()
            number = self._session.monitor(service)
            self._connection.touch()
            return self._pending.monitor(number, service)

        return Monitor(opening, self._round_trip, service)

    async def _ask(
        self,
        to: str,
        body: Body | bytes | None,
        deadline: float | None,
        ends: float,
        priority: int | None,
        key: str | None,
        trace: Trace | None,
    ) -> Body:
        """`ends` is when the call's time is over, or without a `deadline` the time that it waits to be sent."""
        began = self._loop.time()
        keeps_until = began + KEPT  # the node keeps the outcome under the key at least as long
        may_have_run = False  # an attempt before this one
        while True:
            try:
                await self._admit(ends, begins=True)
                if self._loop.time() > keeps_until and key is not None:
                    raise Unavailable(
                        f"{to} cannot be made again: the node may not know the key any more", may_have_run=True
                    )
                left = None if deadline is None else max(0.0, ends - self._loop.time())
                age = self._loop.time() - began if may_have_run else None
                number = self._session.call(
                    to, body, deadline=left, priority=priority, key=key, trace=_header(trace), age=age
                )
                self._connection.touch()
                return await self._pending.answer(number, key, left)
            except AskAgain as again:
                may_have_run = may_have_run or again.may_have_run
                ends = max(ends, self._loop.time() + PATIENCE) if deadline is None else ends
            except TimeoutError as error:
                service = to.partition(".")[0]
                raise DeadlineExceeded(
                    f"{to} did not answer within {deadline:g} s", service=service, may_have_run=True
                ) from error
            except MicrokernelError as error:
                if may_have_run and error.may_have_run is False:
                    error.may_have_run = True  # what is true of this attempt is not of all
                raise

    async def _wait_for_slot(self, deadline: float | None) -> None:
        try:
            async with asyncio.timeout(PATIENCE if deadline is None else deadline):
                await self._slots.wait()
        except TimeoutError as error:
            raise Overloaded(f"{self._session.calls} calls are in flight on this link", retry_after=0.1) from error

    def _is_admitted(self) -> bool:
        """Whether the link takes another message at once, which is counted then."""
        session = self._connection.session
        if not session.is_open or not (session.outbox.slack or session.has_room):
            return False
        if self._prepaid:
            self._prepaid -= 1
            return True
        now = self._loop.time()
        self._bucket.take(PREPAID, now)
        if self._bucket.overdrawn:
            self._bucket.take(-PREPAID, now)
            return False
        self._prepaid = PREPAID - 1
        return True

    async def _admit(self, ends: float | None = None, *, begins: bool = False) -> None:
        """Wait until the link takes another message: for the link, for room, and for the server's rate.

        One that `begins` something waits for the next link where the node is about to close this one.
        """
        stays = not (begins and self._connection.said_bye)
        if stays and self._is_admitted():
            return  # at once, as most do: a timeout for each would cost more than all the rest here
        try:
            async with asyncio.timeout_at(self._loop.time() + PATIENCE if ends is None else ends):
                if not stays:
                    await self._connection.stays()
                await self._connection.room()
                self._bucket.take(1, self._loop.time())
                if self._bucket.overdrawn:
                    await asyncio.sleep(self._bucket.wait())
                    await self._connection.room()
        except TimeoutError as error:
            if self._session.is_open:
                raise Overloaded("the link takes no more messages now", retry_after=1.0, may_have_run=False) from error
            raise self._connection.why_lost(may_have_run=False) from error

    async def _round_trip(self) -> None:
        """Return when the server has received all that was sent before."""
        while True:
            await self._admit()
            try:
                return await self._pending.pong()
            except AskAgain:
                continue

    def _placed(self, to: str) -> str:
        """The address of a handler on the node that is meant."""
        return to if "@" in to else f"{to}@{self.at}"

    def _body(self, to: str, message: Any, fields: dict[str, Any]) -> Body | bytes | None:
        """The body, for the most part as its text; None where there is none."""
        value = either(to, message, fields)
        if value is None:
            return None
        text = codec.text_of(value, self._longest)
        if text is not None:
            return text
        return codec.body_of(value, what=f"the message to {to}", limit=self._longest, binary=self._session.binary)

    def _keep_to(self, hello: codec.Hello) -> None:
        limits = hello.max
        # Half the burst and nine tenths of the rate: what leaves here evenly may arrive there in a heap.
        self._bucket = Bucket(limits.rate * 0.9, max(1, limits.burst // 2), self._loop.time())
        self._longest = limits.text
        self._prepaid = 0
        self._slots.resize(limits.inflight)

    def _lost(self, resume: float) -> None:
        self._pending.lost(resume)

    def _over(self) -> None:
        self._pending.end_all(self._connection.why_lost)


def shape(body: Body, kind: Any, what: str, of: str) -> Any:
    """A body as a `kind`, None for a record; `what` and `of` are said where it does not fit."""
    if kind is None:
        return as_record(codec.decode_body(body, Any, what=f"{what} {of}"))
    try:
        return decoder_of(kind).decode(body)  # type: ignore[arg-type] # a `Bulk` is a TypeError
    except (msgspec.MsgspecError, TypeError, Invalid, RecursionError, UnicodeError):
        return codec.decode_body(body, kind, what=f"{what} {of}")


def _header(trace: Trace | None) -> str | None:
    return None if trace is None else trace.traceparent
