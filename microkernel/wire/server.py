"""Serves `mk.v1` on websockets: who may connect, who they are, and which session a link goes on with.

A link has a session object and a pump; what its client has started is the session's `Work`. When a link is lost whose
client has asked for it, the work goes on without one for `Limits.resume` seconds and is handed to the link that
resumes the session; otherwise it is cancelled with its link and awaited.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web

from microkernel.audit import Act
from microkernel.capability import Identity, Revoked
from microkernel.clock import Clock
from microkernel.errors import MicrokernelError, Unauthenticated, from_exception
from microkernel.nursery import Nursery
from microkernel.port import Port
from microkernel.rates import Rates
from microkernel.wire import codec
from microkernel.wire.binary import LONGEST_FRAME
from microkernel.wire.codec import CloseCode
from microkernel.wire.frames import write_parts
from microkernel.wire.limits import FULL, Limits
from microkernel.wire.pump import Pump, SendParts
from microkernel.wire.server_session import ServerSession
from microkernel.wire.session import Action, Authenticate
from microkernel.wire.turns import Turns
from microkernel.wire.work import Work

__all__ = ["Authenticator", "WireServer"]

WEBSOCKET = "13"  # the version of RFC 6455
CLOSE_TIMEOUT = 1.0  # seconds to wait for the other end's close frame

_COMPLAINTS = frozenset(CloseCode) - {CloseCode.GOING_AWAY, CloseCode.TAKEN_OVER}

Authenticator = Callable[[str], Awaitable[Identity | None]]
"""Says who a token stands for; None or `Unauthenticated` if nobody."""

log = logging.getLogger("microkernel.wire")


class WireServer:
    """Clients of a node at the gateway's `/mk`."""

    def __init__(
        self,
        port: Port,
        authenticate: Authenticator,
        *,
        node: str,
        epoch: str,
        limits: Limits | None = None,
        allowed_origins: Collection[str] = (),
        rates: Rates | None = None,
    ) -> None:
        """Sessions call through `port`, narrowed by the rights of whom `authenticate` knows a token for.

        `rates` are the accounts of tokens that have a bound, where others than this server keep them too.

        A browser's page may connect when it comes from this host or its origin (`https://host:port`) is in
        `allowed_origins`.
        """
        self._port = port
        self._authenticate = authenticate
        self._node = node
        self._epoch = epoch
        self._limits = limits or Limits()
        self._rates = Rates() if rates is None else rates
        self._allowed_origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)
        self._links: dict[_Link, None] = {}
        self._kept: dict[str, Work] = {}  # by session: what can be resumed, with a link and without
        self._ending: dict[Work, None] = {}
        self._waiting: dict[Work, asyncio.Task[None]] = {}  # what is without a link, and who ends it in time
        self._nursery = Nursery("wire", self._failed)
        self._turns = Turns()
        self._leaving = False

    @property
    def sessions(self) -> int:
        """Clients that are connected."""
        return len(self._links)

    @property
    def waiting(self) -> int:
        """Sessions without a link, which may be resumed."""
        return len(self._waiting)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request for a websocket; returns when the link has ended."""
        refusal = self._why_not(request)
        if refusal is not None:
            return refusal
        socket = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT,
            protocols=(codec.SUBPROTOCOL,),
            compress=False,  # deflate costs more time than the small messages here save
            # Up to here the session names the sizes, beyond it is 1009.
            max_msg_size=2 * max(self._limits.text, LONGEST_FRAME if self._limits.binary else 0),
        )

        def abort() -> None:
            if request.transport is not None:
                request.transport.abort()

        link = self._link(socket, abort)  # it counts from here on, also while the upgrade is on its way
        try:
            await socket.prepare(request)
            link.send_binary_by(functools.partial(write_parts, request))
            await link.run()
        finally:
            link.over()
        return socket

    async def serve(self, socket: web.WebSocketResponse, abort: Callable[[], None]) -> None:
        """Serve one client on an open websocket; returns when the link has ended. `abort` breaks it off."""
        link = self._link(socket, abort)
        try:
            await link.run()
        finally:
            link.over()

    async def revoked(self, revoked: Revoked) -> None:
        """End the sessions of tokens that are not valid any more, with a link and without one."""
        for link in list(self._links):
            if link.identity is not None and revoked.ends(link.identity.token_ids):
                link.close(CloseCode.UNAUTHENTICATED, "the token was revoked")
        for work in list(self._waiting):
            if revoked.ends(work.identity.token_ids) and (waiting := self._waiting.pop(work, None)) is not None:
                waiting.cancel()
                await self._end(work)

    def end_node(self, node: str, reason: str) -> None:
        """End the links of another node; what it has running here is cancelled."""
        for link in list(self._links):
            if link.identity is not None and link.identity.node == node:
                link.close(CloseCode.GOING_AWAY, reason)  # who called over it has done nothing wrong

    async def drained(self) -> None:
        """Return when each client had nothing running at a time."""
        for link in list(self._links):
            await link.drained()

    async def close(self, reason: str = "this node shuts down", after: float = 1.0, drain: float = 5.0) -> None:
        """Say bye to all clients, let what is running end for `drain` seconds at most, and close every link.

        Calls of idempotent handlers that have not ended by then are handed back: a client makes them on its next link.
        `after` is how many seconds later the clients are to come back. Sessions without a link end at once.
        """
        self._leaving = True
        for work in self._ending:
            work.hurry()
        await self._nursery.close()
        for work in list(self._waiting):
            await self._end(work)
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
            link.give_up()
            link.close(CloseCode.GOING_AWAY, reason)
        for link in links:
            await link.ended.wait()

    def _link(self, socket: web.WebSocketResponse, abort: Callable[[], None]) -> _Link:
        session = ServerSession(
            node=self._node,
            epoch=self._epoch,
            session="s" + secrets.token_hex(8),
            limits=self._limits,
            clock=asyncio.get_running_loop().time,
            rates=self._rates,
        )
        link = _Link(session, socket, abort, self)
        self._links[link] = None
        return link

    # What links ask

    async def identify(self, token: str) -> Identity | MicrokernelError | None:
        """Who `token` stands for, None for nobody, or why that cannot be said now."""
        try:
            return await self._authenticate(token)
        except UnicodeError as error:
            return Unauthenticated(f"the token is no text: {error}")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the answer, the client is told and let go
            return from_exception(error)

    def begin(
        self, session: ServerSession, pump: Pump, identity: Identity, wish: codec.Resume | None
    ) -> tuple[Work, list[Action]]:
        """Open `session` for `identity`, as the one of `wish` where that is kept; and what is to be done at once."""
        wall = Clock(asyncio.get_running_loop()).wall()
        left = None if identity.expires is None else identity.expires - wall
        work = None if wish is None else self._kept.get(wish.session)
        if work is None or wish is None or not _can_go_on(work, identity, wish):
            actions = session.authenticated(identity, expires_in=left)
            work = Work(session, pump, self._port, identity, self._turns)
            if session.state.replay is not None:
                self._kept[session.session] = work
            return work, actions
        if (waiting := self._waiting.pop(work, None)) is not None:
            waiting.cancel()
        state = work.session.state
        if work.session.closed is None:  # the client has found out before us that its link is dead
            work.session.hand_over()
            work.touch()
        actions = session.authenticated(identity, state, expires_in=left)
        work.attach(session, pump)
        return work, actions

    async def link_lost(self, work: Work) -> None:
        """The link of `work` has ended: keep it for the one that resumes its session, or end it."""
        if self._leaving or not work.session.can_resume:
            await self._end(work)
            return
        if len(self._waiting) >= self._limits.sessions:
            oldest = next(iter(self._waiting))
            self._waiting.pop(oldest).cancel()
            await self._end(oldest)
        self._waiting[work] = self._nursery.spawn(self._outlive(work), work.session.session)

    def forget(self, link: _Link) -> None:
        """A link is over."""
        self._links.pop(link, None)

    async def _outlive(self, work: Work) -> None:
        await asyncio.sleep(self._limits.resume)
        log.debug("session %s was not resumed within %g s", work.session.session, self._limits.resume)
        await self._end(work)

    async def _end(self, work: Work) -> None:
        self._ending[work] = None
        try:
            await work.end(at_once=self._leaving)
        finally:
            del self._ending[work]
        self._waiting.pop(work, None)
        self._kept.pop(work.session.session, None)

    def _failed(self, name: str, error: Exception) -> None:
        log.error("session %s could not be ended: %s", name, error, exc_info=error)

    def _why_not(self, request: web.Request) -> web.Response | None:
        origin = request.headers.get("Origin")
        if origin is not None and not self._is_allowed(origin, request.host):
            self._port.denied(Act.CONNECT, request.path, f"not for the origin '{origin}'", peer=request.remote)
            return web.Response(status=403, text=f"the origin {origin} may not connect here\n")
        if request.headers.get("Sec-WebSocket-Version", WEBSOCKET) != WEBSOCKET:  # RFC 6455, section 4.4
            why = f"only version {WEBSOCKET} of the websocket protocol is spoken here\n"
            return web.Response(status=426, text=why, headers={"Sec-WebSocket-Version": WEBSOCKET})
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


def _can_go_on(work: Work, identity: Identity, wish: codec.Resume) -> bool:
    """Whether `identity` may have the session: as whoever began it, with the same rights, and nothing is missing."""
    replay = work.session.state.replay
    return replay is not None and work.identity == identity and replay.can_resume(wish.seen)


class _Link:
    """One websocket: greets its client, then carries messages to and from the client's work."""

    def __init__(
        self, session: ServerSession, socket: web.WebSocketResponse, abort: Callable[[], None], server: WireServer
    ) -> None:
        self.ended = asyncio.Event()
        self._session = session
        self._server = server
        self._work: Work | None = None
        self._greeting: asyncio.Task[None] | None = None
        self._pump = Pump(socket, session, {Authenticate: self._authenticate}, abort, reads_below=FULL)

    async def run(self) -> None:
        """Return when the link has ended, and what it alone has started as well."""
        try:
            await self._pump.run()
        finally:
            self._log_end()
            await self._end_greeting()
            if self._work is not None and self._work.session is self._session:
                await self._server.link_lost(self._work)

    @property
    def identity(self) -> Identity | None:
        """Who the client is; None before that is known."""
        return None if self._work is None else self._work.identity

    def send_binary_by(self, send: SendParts) -> None:
        """Send binary frames, which come in parts, by `send`."""
        self._pump.send_binary = send

    def over(self) -> None:
        """Nothing is left of the link."""
        self._server.forget(self)
        self.ended.set()

    def leave(self, reason: str, after: float) -> None:
        """Say bye."""
        self._session.leave(reason, after)
        self._pump.touch()

    def give_up(self) -> None:
        """Hand back what may be made again."""
        if self._work is not None:
            self._work.give_up()

    def close(self, code: int, reason: str) -> None:
        """End the link."""
        self._pump.close(code, reason)

    async def drained(self) -> None:
        """Return when no call and no stream is open."""
        if self._work is not None:
            await self._work.drained()

    def _authenticate(self, action: Authenticate) -> None:
        self._greeting = asyncio.create_task(self._greet(action), name="wire greeting")

    async def _greet(self, action: Authenticate) -> None:
        found = await self._server.identify(action.token)
        if self._session.closed is not None:
            return
        try:
            if isinstance(found, Identity):
                self._work, actions = self._server.begin(self._session, self._pump, found, action.resume)
                self._pump.handlers, self._pump.serve = self._work.handlers, self._work.serve
            else:
                actions = self._session.refused(found)
            self._pump.perform(actions)
        except Exception:
            self._pump.close(codec.DEFECT, "a defect of the node")
            raise

    async def _end_greeting(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            await asyncio.wait([self._greeting])
            if not self._greeting.cancelled():
                self._greeting.result()  # a defect is not hidden

    def _log_end(self) -> None:
        closed = self._session.closed
        if closed is not None:
            level = logging.INFO if closed.code in _COMPLAINTS else logging.DEBUG
            who = "" if self.identity is None else f" of {self.identity.user}"
            log.log(level, "session %s%s ended: %s (code %d)", self._session.session, who, closed.reason, closed.code)
