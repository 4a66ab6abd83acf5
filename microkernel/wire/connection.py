"""A client's link to a node, which comes back when it is lost.

Lost links and close codes that mean *come back* are answered by a new link: after a wait that grows, to the address
that the node has by then. The node is asked to go on with the session; what was open tells the rest in `system`.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Awaitable, Callable

import aiohttp

from microkernel.errors import MicrokernelError, Unauthenticated, Unavailable, copy_of
from microkernel.wire import codec
from microkernel.wire.backoff import Backoff
from microkernel.wire.client_session import ClientSession
from microkernel.wire.codec import CloseCode
from microkernel.wire.dial import dial
from microkernel.wire.limits import BUSY, Limits
from microkernel.wire.pump import Handlers, Pump
from microkernel.wire.session import Close, ends_session
from microkernel.wire.state import SessionState
from microkernel.wire.trust import Expected, Trust

__all__ = ["Connection", "Find", "comes_back"]

_PASSING = frozenset({1001, 1005, 1006, 1011, 1012, 1013})  # RFC 6455 §7.4.1: away, none, lost, failed, restart, busy

Find = Callable[[], Awaitable["tuple[str, str, Trust | Expected | None]"]]

log = logging.getLogger("microkernel.client")


def comes_back(code: int) -> bool:
    """Whether a link that was closed with `code` is worth another try."""
    return code in _PASSING or 4000 <= code < 4500


class Connection:
    """One link at a time, and the session that goes on from one to the next."""

    def __init__(
        self,
        find: Find,
        *,
        reconnect: bool,
        lost: Callable[[float], None],
        over: Callable[[], None],
        limits: Limits | None = None,
    ) -> None:
        """`find` gives the address, the token, and whose certificate to believe, anew for each link.

        `lost` is called when a link is lost and another is tried, with the seconds for
        which the node keeps the session; `over` at the end, when nothing will come any more.
        """
        self.url = ""
        self._find = find
        self._limits = limits or Limits()
        self._reconnect = reconnect
        self._on_lost = lost
        self._on_over = over
        self.handlers: Handlers = {}  # for what comes; set before `start`
        self._loop = asyncio.get_running_loop()
        self._state = SessionState() if reconnect else None
        self._ids = itertools.count(1)
        self._backoff = Backoff()
        self._changed = asyncio.Event()  # set while a link is open, and at the end
        self._task: asyncio.Task[None] | None = None
        self._pump: Pump | None = None
        self._after = 0.0  # seconds that the node has asked to be left alone
        self._kept = 0.0  # seconds that the node keeps the session
        self._leaving = False
        self._why: MicrokernelError | None = None  # the last link was lost, or not to be had
        self.said_bye = False  # the node will close this link, and there will be another one
        self.is_over = False
        self.session = self._new_session("")
        self.touch = self.flush = _nothing  # those of the pump, while there is one

    async def start(self) -> None:
        """Open the first link; raises why there is none."""
        self._task = self._loop.create_task(self._run(), name="wire client")
        await self._changed.wait()
        if self.is_over:
            raise self.why_lost()

    async def aclose(self) -> None:
        """Close the link; no other is opened."""
        self._leaving = True
        if self._task is None:
            return
        if self._pump is not None:
            self._pump.close(codec.NORMAL, "")
        else:
            self._task.cancel()  # it dials, or waits to
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:  # no time for a farewell
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        if not self._task.cancelled():
            self._task.result()  # a defect is not hidden

    async def stays(self) -> None:
        """Return when there is a link that the node is not about to close, or when there will be none."""
        while self.said_bye and not (self.is_over or self._leaving):
            await self._until_changed()

    async def room(self) -> None:
        """Return when a link is open and takes another message; raises when there will be none."""
        while True:
            if self.is_over or self._leaving:
                raise self.why_lost(may_have_run=False)
            if not self.session.is_open:
                await self._until_changed()
            elif self.session.fill > BUSY and self._pump is not None:
                await self._pump.room(BUSY)
            else:
                return

    def why_lost(self, *, may_have_run: bool | None = None) -> MicrokernelError:
        """What ends the calls that waited for this link."""
        why = self._why
        if why is None:
            return Unavailable(f"the link to {self.url} is closed", may_have_run=may_have_run)
        error = copy_of(why, type(why))
        error.__cause__ = why.__cause__
        if may_have_run is not None:
            error.may_have_run = may_have_run
        return error

    async def _until_changed(self) -> None:
        """Return when a link is open, or when there will be none."""
        self._changed.clear()
        await self._changed.wait()

    async def _run(self) -> None:
        try:
            while await self._one_link() and self._reconnect and not self._leaving:
                self._on_lost(self._kept)
                seconds, self._after = self._backoff.wait(self._after), 0.0
                log.info("%s; trying again in %.1f s", self._why, seconds)
                await asyncio.sleep(seconds)
        except MicrokernelError as error:
            self._why = error
        finally:
            self.is_over = True
            self._changed.set()
            self._on_over()

    async def _one_link(self) -> bool:
        """Dial, and carry messages until the link has ended; whether another one makes sense."""
        first = not self.url
        try:
            self.url, token, trust = await self._find()
            async with dial(self.url, trust) as socket:
                self.session = self._new_session(token)
                handlers: Handlers = {**self.handlers, codec.Ready: self._on_ready, codec.Bye: self._on_bye}
                self._pump = pump = Pump(socket, self.session, handlers, functools.partial(_break, socket))
                self.touch, self.flush = pump.touch, pump.flush
                if self._leaving:
                    self._pump.close(codec.NORMAL, "")
                closed = await self._pump.run()
        except Unavailable as error:
            self._why = error
            self._after = max(self._after, error.retry_after or 0.0)
            return not first
        finally:
            self._pump = None
            self.touch = self.flush = _nothing
        was_open, hello = self.session.ready is not None, self.session.hello
        self._kept = 0.0 if hello is None or ends_session(closed.code) else hello.resume
        self._judge(closed)
        return (was_open or not first) and comes_back(closed.code)

    def _judge(self, closed: Close) -> None:
        if closed.code == CloseCode.UNAUTHENTICATED:
            reason = f"the node at {self.url} does not let this client in: {closed.reason}"
            self._why = Unauthenticated(reason)
            return
        why = closed.reason or "closed by the node"
        self._why = Unavailable(f"the link to {self.url} is lost: {why} (code {closed.code})", may_have_run=True)

    def _new_session(self, token: str) -> ClientSession:
        return ClientSession(token=token, limits=self._limits, clock=self._loop.time, state=self._state, ids=self._ids)

    def _on_ready(self, ready: codec.Ready) -> None:
        self.handlers[codec.Ready](ready)
        self._backoff.reset()
        self._why = None
        self.said_bye = False
        self._changed.set()

    def _on_bye(self, bye: codec.Bye) -> None:
        self._after = 0.0 if bye.after is None else min(60.0, bye.after / 1000)
        self.said_bye = self._reconnect
        log.info("the node at %s is about to leave: %s", self.url, bye.reason)


def _nothing() -> None:
    """There is no link that would have to be told."""


def _break(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Close the connection without farewell: one that is only dropped is told of as unclosed by aiohttp."""
    socket._response.close()  # noqa: SLF001 - a websocket of aiohttp's has no public way
