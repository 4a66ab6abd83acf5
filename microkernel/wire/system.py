"""A node as its clients see it: calls, streams and events over one link.

When the link is lost, all that is open on it ends: who waits gets `Unavailable`, which says that the call may
have run.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar, overload

import aiohttp
import msgspec

from microkernel.errors import (
    CallCancelled,
    DeadlineExceeded,
    Invalid,
    MicrokernelError,
    Overloaded,
    Unauthenticated,
    Unavailable,
    from_report,
)
from microkernel.wire import codec
from microkernel.wire.client_session import ClientSession
from microkernel.wire.codec import CloseCode
from microkernel.wire.dial import dial
from microkernel.wire.inbox import Inbox, Stream, Subscription
from microkernel.wire.limits import BUSY, Bucket, Limits
from microkernel.wire.pump import Pump
from microkernel.wire.record import as_record
from microkernel.wire.session import Action, Close

__all__ = ["System", "open_system"]

PATIENCE = 30.0  # seconds that a call without a deadline waits to be sent while the link is full of others

T = TypeVar("T")
log = logging.getLogger("microkernel.client")


@asynccontextmanager
async def open_system(url: str, token: str) -> AsyncIterator[System]:
    """Connect to the websocket at `url`; the link is closed at the end of the block.

    Raises `Unavailable` when nobody answers there, `Unauthenticated` when the token is not valid.
    """
    async with dial(url) as socket:
        system = System(url, token, socket)
        try:
            await system.start()
            yield system
        finally:
            await system.aclose()


class System:
    """A node, over one link."""

    def __init__(self, url: str, token: str, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Made by `connect`."""
        self.url = url
        self._loop = asyncio.get_running_loop()
        self._session = ClientSession(token=token, limits=Limits(), clock=self._loop.time)
        self._pump = Pump(socket, self._session, self._carry_out, lambda: None)
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[codec.Ready] = self._loop.create_future()
        self._calls: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._inboxes: dict[int, Inbox] = {}
        self._pongs: dict[float, asyncio.Future[None]] = {}
        self._ping_numbers = itertools.count(1)
        self._bucket = Bucket(1.0, 1, 0.0)
        self._slots = asyncio.Semaphore(1)
        self._closed: Close | None = None

    async def start(self) -> None:
        """Greet the server."""
        self._task = self._loop.create_task(self._run(), name="wire client")
        await self._ready

    async def aclose(self) -> None:
        """Close the link; what is still open ends with `CallCancelled`."""
        self._end_all(lambda: CallCancelled("the connection was closed"))
        self._pump.close(codec.NORMAL, "")
        if self._task is not None:
            await self._task

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
        result_type: type[T], **fields: Any,
    ) -> T: ...  # fmt: skip
    @overload
    async def call(
        self, to: str, message: Any = ..., /, *, deadline: float | None = ..., priority: int | None = ...,
        result_type: Any = ..., **fields: Any,
    ) -> Any: ...  # fmt: skip
    async def call(
        self,
        to: str,
        message: Any = None,
        /,
        *,
        deadline: float | None = None,
        priority: int | None = None,
        result_type: Any = None,
        **fields: Any,
    ) -> Any:
        """Call `service.method` with a message or with fields; the result as a `Record` or a `result_type`.

        `deadline` is in seconds, `priority` 0 (urgent) … 9; `result_type=Any` gives plain dicts and lists. Raises
        the error the handler raised, `DeadlineExceeded`, and `Unavailable` when the link is lost.
        """
        body = self._body(to, message, fields)
        patience = PATIENCE if deadline is None else deadline
        ends = self._loop.time() + patience
        try:
            async with asyncio.timeout_at(ends):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Overloaded(f"{self._session.calls} calls are in flight on this link", retry_after=0.1) from error
        try:
            await self._admit()
            left = None if deadline is None else max(0.0, ends - self._loop.time())
            result = await self._ask(to, body, left, priority)
        finally:
            self._slots.release()
        return _shape(result, result_type, f"the result of {to}")

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
        asked for.
        """
        if credit < 1:
            raise Invalid("a stream needs a credit of at least 1", field="credit")
        body = self._body(to, message, fields)

        async def opening() -> Inbox:
            await self._admit()
            number = self._session.open(to, body, credit=credit, deadline=deadline, priority=priority)
            return self._new_inbox(number, self._session.cancel)

        def more(inbox: Inbox, count: int) -> None:
            self._bucket.take(1, self._loop.time())
            self._session.credit(inbox.number, count)
            self._pump.touch()

        return Stream(opening, more, lambda item: _shape(item, result_type, f"an item of {to}"), credit)

    async def send(self, to: str, message: Any = None, /, *, priority: int | None = None, **fields: Any) -> None:
        """Send one way: nobody waits for a result; what goes wrong is logged."""
        body = self._body(to, message, fields)
        await self._admit()
        self._session.send(to, body, priority=priority)
        self._pump.touch()

    async def publish(self, subject: str, message: Any = None, /, **fields: Any) -> None:
        """Tell all subscribers of `subject`."""
        body = self._body(subject, message, fields)
        await self._admit()
        self._session.publish(subject, body)
        self._pump.touch()

    def subscribe(self, subject: str, group: str | None = None) -> Subscription:
        """Events of `subject` (`a.*`, `a.>`), to iterate over; `async with` returns when the subscription stands."""

        async def opening() -> Inbox:
            await self._admit()
            number = self._session.subscribe(subject, group)
            return self._new_inbox(number, lambda number, _: self._session.unsubscribe(number))

        return Subscription(opening, self._round_trip, subject)

    async def _ask(
        self, to: str, body: msgspec.Raw | None, deadline: float | None, priority: int | None
    ) -> msgspec.Raw:
        number = self._session.call(to, body, deadline=deadline, priority=priority)
        answer: asyncio.Future[msgspec.Raw] = self._loop.create_future()
        self._calls[number] = answer
        self._pump.touch()
        try:
            async with asyncio.timeout(deadline):
                return await answer
        except TimeoutError as error:
            service = to.partition(".")[0]
            raise DeadlineExceeded(
                f"{to} did not answer within {deadline:g} s", service=service, may_have_run=True
            ) from error
        finally:
            if self._calls.pop(number, None) is not None and not self._session.closed:
                self._session.cancel(number)
                self._pump.touch()

    async def _admit(self) -> None:
        """Wait until the link takes another message: for room, and for the server's rate."""
        self._raise_if_closed()
        self._bucket.take(1, self._loop.time())
        if self._bucket.overdrawn:
            await asyncio.sleep(self._bucket.wait())
        await self._pump.room(BUSY)
        self._raise_if_closed()

    async def _round_trip(self) -> None:
        """Return when the server has received all that was sent before."""
        await self._admit()
        number = float(next(self._ping_numbers))
        self._pongs[number] = pong = self._loop.create_future()
        self._session.send_ping(number)
        self._pump.touch()
        try:
            await pong
        finally:
            self._pongs.pop(number, None)

    def _new_inbox(self, number: int, leave: Callable[[int, str | None], None]) -> Inbox:
        def left(why: str | None) -> None:
            if self._inboxes.pop(number, None) is not None and not self._session.closed:
                leave(number, why)
                self._pump.touch()

        inbox = self._inboxes[number] = Inbox(number, self._loop, left)
        self._pump.touch()
        return inbox

    def _body(self, to: str, message: Any, fields: dict[str, Any]) -> msgspec.Raw | None:
        if message is not None and fields:
            raise Invalid(f"{to} was given a message and the fields {', '.join(fields)}: give one or the other")
        value = fields or None if message is None else message
        if value is None:
            return None
        hello = self._session.hello
        limit = self._session.limits.text if hello is None else hello.max.text
        return codec.body_of(value, what=f"the message to {to}", limit=limit)

    async def _run(self) -> None:
        closed = Close(codec.LOST, "the client has stopped")
        try:
            closed = await self._pump.run()
        finally:
            self._closed = closed
            self._end_all(self._why_lost)

    def _why_lost(self, *, may_have_run: bool = True) -> MicrokernelError:
        assert self._closed is not None
        code, reason = self._closed.code, self._closed.reason
        if code == CloseCode.UNAUTHENTICATED:
            return Unauthenticated(f"the node at {self.url} does not let this client in: {reason}")
        why = reason or "closed by the node"
        return Unavailable(f"the link to {self.url} is lost: {why} (code {code})", may_have_run=may_have_run)

    def _raise_if_closed(self) -> None:
        if self._closed is not None:
            raise self._why_lost(may_have_run=False)
        if self._session.closed is not None:
            raise Unavailable(f"the link to {self.url} is closed", may_have_run=False)

    def _end_all(self, why: Callable[[], MicrokernelError]) -> None:
        waiting: list[asyncio.Future[Any]] = [self._ready, *self._calls.values(), *self._pongs.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(why())
        for inbox in list(self._inboxes.values()):
            inbox.end(why())
        self._calls.clear()
        self._pongs.clear()
        self._inboxes.clear()

    def _carry_out(self, action: Action) -> None:
        self._ACTIONS[type(action)](self, action)

    def _on_hello(self, hello: codec.Hello) -> None:
        # Half the burst and nine tenths of the rate: what leaves here evenly may arrive there in a heap.
        self._bucket = Bucket(hello.max.rate * 0.9, max(1, hello.max.burst // 2), self._loop.time())
        self._slots = asyncio.Semaphore(hello.max.inflight)

    def _on_ready(self, ready: codec.Ready) -> None:
        if not self._ready.done():
            self._ready.set_result(ready)

    def _on_result(self, result: codec.Result) -> None:
        answer = self._calls.pop(result.id, None)
        if answer is not None and not answer.done():
            answer.set_result(result.body)

    def _on_error(self, frame: codec.Error) -> None:
        error = from_report(codec.report_of(frame))
        if frame.id is None:
            log.warning("a one-way message was not carried out, or an event not sent: %s", error)
        elif (answer := self._calls.pop(frame.id, None)) is not None:
            if not answer.done():
                answer.set_exception(error)
        elif (inbox := self._inboxes.pop(frame.id, None)) is not None:
            inbox.end(error)

    def _on_item(self, item: codec.Item) -> None:
        if (inbox := self._inboxes.get(item.id)) is not None:
            inbox.put(item)

    def _on_event(self, event: codec.Event) -> None:
        if (inbox := self._inboxes.get(event.id)) is not None:
            inbox.put(event)

    def _on_end(self, end: codec.End) -> None:
        if (inbox := self._inboxes.pop(end.id, None)) is not None:
            inbox.end(None)

    def _on_pong(self, pong: codec.Pong) -> None:
        if (waiter := self._pongs.pop(pong.ts, None)) is not None and not waiter.done():
            waiter.set_result(None)

    def _on_bye(self, bye: codec.Bye) -> None:
        log.info("the node at %s is about to leave: %s", self.url, bye.reason)

    _ACTIONS: ClassVar[dict[type, Callable[[System, Any], None]]] = {
        codec.Bye: _on_bye,
        codec.End: _on_end,
        codec.Error: _on_error,
        codec.Event: _on_event,
        codec.Hello: _on_hello,
        codec.Item: _on_item,
        codec.Pong: _on_pong,
        codec.Ready: _on_ready,
        codec.Result: _on_result,
    }


def _shape(body: msgspec.Raw, kind: Any, what: str) -> Any:
    if kind is None:
        return as_record(codec.decode_body(body, Any, what=what))
    return codec.decode_body(body, kind, what=what)
