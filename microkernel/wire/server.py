"""Serves `mk.v1` on a websocket: one session a client, one task a call. Hot: once a message.

Everything a client has started belongs to its link: when the link ends, all of it is cancelled at once and
awaited. The thinking is in `server_session`; here is what needs a loop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import Callable, Collection, Coroutine
from contextlib import aclosing
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from microkernel.capability import Identity
from microkernel.errors import CallCancelled, Denied, MicrokernelError, Overloaded, from_exception
from microkernel.events import Event, Subscription
from microkernel.port import Port
from microkernel.trace import Trace, parse_traceparent
from microkernel.wire import codec
from microkernel.wire.codec import CloseCode
from microkernel.wire.limits import BUSY, FULL, Limits
from microkernel.wire.pump import Pump
from microkernel.wire.server_session import ServerSession
from microkernel.wire.session import Action, Welcome

__all__ = ["WireServer"]

RESERVED = frozenset({"dead", "kernel", "process", "service"})  # first names of what the node itself publishes
ENVELOPE = 1024  # bytes of a frame that are not its body
CLOSE_TIMEOUT = 1.0  # seconds to wait for the other end's close frame

_COMPLAINTS = frozenset(CloseCode) - {CloseCode.GOING_AWAY}

log = logging.getLogger("microkernel.wire")


class WireServer:
    """Clients of a node at the gateway's `/mk`."""

    def __init__(
        self,
        port: Port,
        authenticate: Callable[[str], Identity | None],
        *,
        node: str,
        epoch: str,
        limits: Limits | None = None,
        allowed_origins: Collection[str] = (),
    ) -> None:
        """Sessions call through `port`, narrowed by the rights of whom `authenticate` knows a token for.

        A browser's page may connect when it comes from this host or its origin (`https://host:port`) is in
        `allowed_origins`.
        """
        self._port = port
        self._authenticate = authenticate
        self._node = node
        self._epoch = epoch
        self._limits = limits or Limits()
        self._allowed_origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)
        self._links: set[_Link] = set()
        self._leaving = False

    @property
    def sessions(self) -> int:
        """Clients that are connected."""
        return len(self._links)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request for a websocket; returns when the link has ended."""
        refusal = self._why_not(request)
        if refusal is not None:
            return refusal
        socket = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT,
            protocols=(codec.SUBPROTOCOL,),
            compress=False,  # deflate costs more time than the small messages here save
            max_msg_size=2 * self._limits.text,  # up to here the session names the sizes, beyond it is 1009
        )
        session = ServerSession(
            node=self._node,
            epoch=self._epoch,
            session="s" + secrets.token_hex(8),
            authenticate=self._authenticate,
            limits=self._limits,
            clock=asyncio.get_running_loop().time,
        )
        link = _Link(request, socket, session, self._port)
        self._links.add(link)
        try:
            await socket.prepare(request)
            await link.run()
        finally:
            self._links.discard(link)
            link.over.set()
        return socket

    async def close(self, reason: str = "this node shuts down", after: float = 1.0, drain: float = 5.0) -> None:
        """Say bye to all clients, let what is running end for `drain` seconds at most, and close every link.

        `after` is how many seconds later the clients are to come back.
        """
        self._leaving = True
        links = list(self._links)
        for link in links:
            link.leave(reason, after)
        if links:
            waiting = [asyncio.create_task(link.drained(), name="wire drain") for link in links]
            _, late = await asyncio.wait(waiting, timeout=drain)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for link in links:
            link.close(CloseCode.GOING_AWAY, reason)
        for link in links:
            await link.over.wait()

    def _why_not(self, request: web.Request) -> web.Response | None:
        origin = request.headers.get("Origin")
        if origin is not None and not self._is_allowed(origin, request.host):
            return web.Response(status=403, text=f"the origin {origin} may not connect here\n")
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        if codec.SUBPROTOCOL not in (name.strip() for name in offered.split(",")):
            return web.Response(status=400, text=f"ask for the websocket sub-protocol {codec.SUBPROTOCOL}\n")
        if self._leaving or len(self._links) >= self._limits.sessions:
            why = "this node is about to leave" if self._leaving else f"{len(self._links)} sessions are open"
            return web.Response(status=503, text=why + "\n", headers={"Retry-After": "1"})
        return None

    def _is_allowed(self, origin: str, host: str) -> bool:
        origin = origin.lower().rstrip("/")
        if "*" in self._allowed_origins or origin in self._allowed_origins:
            return True
        try:
            return urlsplit(origin).netloc == host.lower()
        except ValueError:  # no browser sends what is no URL
            return False


class _Link:
    """One client: its session, its rights, and what it has started."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, session: ServerSession, port: Port) -> None:
        self.over = asyncio.Event()
        self._session = session
        self._port = port
        self._longest = max(1, session.limits.text - ENVELOPE)
        self._tasks: dict[int, asyncio.Task[None]] = {}  # calls, streams and subscriptions, by id
        self._running: set[asyncio.Task[None]] = set()  # all of them, until they have really ended
        self._sends = 0
        self._credit: dict[int, asyncio.Event] = {}
        self._idle = asyncio.Event()
        self._idle.set()

        def abort() -> None:
            if request.transport is not None:
                request.transport.abort()

        self._pump = Pump(socket, session, self._carry_out, abort, reads_below=FULL)

    async def run(self) -> None:
        try:
            await self._pump.run()
        finally:
            self._log_end()
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    def _log_end(self) -> None:
        closed = self._session.closed
        if closed is not None:
            level = logging.INFO if closed.code in _COMPLAINTS else logging.DEBUG
            log.log(level, "session %s ended: %s (code %d)", self._session.session, closed.reason, closed.code)

    def leave(self, reason: str, after: float) -> None:
        self._session.leave(reason, after)
        self._pump.touch()

    def close(self, code: int, reason: str) -> None:
        self._pump.close(code, reason)

    async def drained(self) -> None:
        """Return when no call and no stream is open."""
        await self._idle.wait()

    def _carry_out(self, action: Action) -> None:
        self._ACTIONS[type(action)](self, action)

    def _welcome(self, action: Welcome) -> None:
        who, caller = action.identity, f"session {self._session.session}"
        self._port = self._port.narrow(caller=caller, rights=who.rights, user=who.user)

    def _call(self, message: codec.Call) -> None:
        self._start(message.id, message.to, self._answer(message))

    def _open(self, message: codec.Open) -> None:
        self._credit[message.id] = asyncio.Event()
        self._start(message.id, message.to, self._stream(message))

    def _more_credit(self, message: codec.Credit) -> None:
        if (wake := self._credit.get(message.id)) is not None:
            wake.set()

    def _cancel(self, message: codec.Cancel | codec.Unsubscribe) -> None:
        if (task := self._tasks.get(message.id)) is not None:
            task.cancel()

    def _send(self, message: codec.Send) -> None:
        if self._sends >= self._session.limits.inflight:
            self._session.complain(Overloaded(f"{self._sends} one-way messages wait", retry_after=0.1))
            return
        self._sends += 1
        self._run_task(message.to, self._deliver(message)).add_done_callback(self._delivered)

    def _publish(self, message: codec.Publish) -> None:
        try:
            self._require(message.subject)
            self._refuse_subject_of_node(message.subject)
            body: Any = codec.decode_body(message.body, what=message.subject)
            self._event_body(message.subject, body)  # what cannot be sent to subscribers is its publisher's to know
            self._port.publish(message.subject, body)
        except MicrokernelError as error:
            self._session.complain(error)

    def _subscribe(self, message: codec.Subscribe) -> None:
        try:
            self._require(message.subject)
            subscription = self._port.subscribe(message.subject, group=message.group)
        except MicrokernelError as error:
            self._session.fail(message.id, error)
            return
        self._start(message.id, message.subject, self._forward(message.id, subscription))
        # A task that is cancelled before its first step would not close it.
        self._tasks[message.id].add_done_callback(lambda _: subscription.close())

    def _require(self, subject: str) -> None:
        if not self._port.permits(subject):
            raise Denied(f"{self._port.caller} has no right to {subject}")

    def _refuse_subject_of_node(self, subject: str) -> None:
        """Services act on events; whoever could publish theirs would have their say over all of them."""
        first = subject.partition(".")[0]
        if first in RESERVED or self._port.reaches(first):
            raise Denied(
                f"{subject} is for the node itself to publish",
                remedy="publish on a subject whose first name is no service's, or call the service",
            )

    def _start(self, number: int, to: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[number] = task = self._run_task(to, work)
        if self._session.in_flight:
            self._idle.clear()
        task.add_done_callback(functools.partial(self._ended, number, to))

    def _run_task(self, to: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"wire {to}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _delivered(self, _: asyncio.Task[None]) -> None:
        self._sends -= 1

    def _ended(self, number: int, to: str, task: asyncio.Task[None]) -> None:
        # The id is free again once the client knows, so it may have been taken by a new task already.
        if self._tasks.get(number) is task:
            del self._tasks[number]
            self._credit.pop(number, None)
            if task.cancelled():
                self._session.fail(number, CallCancelled(f"the call to {to} was cancelled"))
        if self._session.in_flight == 0:
            self._idle.set()
        self._pump.touch()

    async def _answer(self, message: codec.Call) -> None:
        number, to = message.id, message.to
        try:
            result = await self._port.call(
                to,
                message.body,
                deadline=_seconds(message.deadline),
                priority=message.priority,
                trace=_trace(message.trace),
            )
            await self._pump.room(FULL)
            self._session.result(number, self._body(result, f"the result of {to}"))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its caller's to know
            await self._pump.room(FULL)
            self._session.fail(number, from_exception(error, service=to.partition(".")[0]))
        self._pump.touch()

    async def _stream(self, message: codec.Open) -> None:
        number, to = message.id, message.to
        try:
            stream = self._port.stream(
                to,
                message.body,
                deadline=_seconds(message.deadline),
                priority=message.priority,
                trace=_trace(message.trace),
            )
            async with aclosing(stream):
                while await self._has_credit(number):
                    try:
                        item = await anext(stream)
                    except StopAsyncIteration:
                        break
                    await self._pump.room(BUSY)
                    self._session.item(number, self._body(item, f"an item of {to}"))
                    self._pump.touch()
            await self._pump.room(FULL)
            self._session.end(number)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its caller's to know
            await self._pump.room(FULL)
            self._session.fail(number, from_exception(error, service=to.partition(".")[0]))
        self._pump.touch()

    async def _has_credit(self, number: int) -> bool:
        """Wait for credit; False when the stream has ended meanwhile."""
        wake = self._credit[number]
        while self._session.is_current(number):
            if self._session.credit(number):
                return True
            wake.clear()
            await wake.wait()
        return False

    async def _deliver(self, message: codec.Send) -> None:
        try:
            await self._port.send(message.to, message.body, priority=message.priority)
        except Exception as error:  # noqa: BLE001 - told to the client, who is the one that can do something
            await self._pump.room(FULL)
            self._session.complain(from_exception(error, service=message.to.partition(".")[0]))
            self._pump.touch()

    async def _forward(self, number: int, subscription: Subscription) -> None:
        try:
            async for event in subscription:
                if subscription.dropped:
                    lost = f"{subscription.dropped} events were lost"
                    raise Overloaded(f"the subscription to {subscription.pattern} fell behind: {lost}")
                if self._port.permits(event.subject):  # a pattern may reach further than the rights
                    await self._pump.room(BUSY)
                    self._send_event(number, event)
                    self._pump.touch()
            await self._pump.room(FULL)
            self._session.end(number)
        except MicrokernelError as error:
            await self._pump.room(FULL)
            self._session.fail(number, error)
        self._pump.touch()

    def _send_event(self, number: int, event: Event) -> None:
        try:
            body = self._event_body(event.subject, event.body)
        except MicrokernelError as error:  # the others can be sent: the subscription goes on
            self._session.complain(error)
            return
        self._session.event(number, event.subject, event.offset, body)

    def _event_body(self, subject: str, body: Any) -> msgspec.Raw:
        return self._body(body, f"the event {subject}")

    def _body(self, value: Any, what: str) -> msgspec.Raw:
        return codec.body_of(value, what=what, limit=self._longest)

    _ACTIONS: ClassVar[dict[type, Callable[[_Link, Any], None]]] = {
        Welcome: _welcome,
        codec.Call: _call,
        codec.Cancel: _cancel,
        codec.Credit: _more_credit,
        codec.Open: _open,
        codec.Publish: _publish,
        codec.Send: _send,
        codec.Subscribe: _subscribe,
        codec.Unsubscribe: _cancel,
    }


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _trace(header: str | None) -> Trace | None:
    return None if header is None else parse_traceparent(header)
