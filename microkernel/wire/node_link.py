"""Another node as this one calls it: calls and streams that come from elsewhere and go on there. Hot: once a message.

A link to a node never resumes: when it is lost, what went over it ends with `Unavailable`, and whoever asked decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from microkernel.capability import Rights
from microkernel.errors import MicrokernelError, Unavailable
from microkernel.inputs import Inputs
from microkernel.message import PRIORITY, Call
from microkernel.service import Handler
from microkernel.wire.inbox import Stream
from microkernel.wire.limits import Limits
from microkernel.wire.system import System, shape
from microkernel.wire.trust import Expected

__all__ = ["BETWEEN_NODES", "NodeLink"]

# Nodes trust each other with more than a client: what they forward was admitted at the gates of the one that asks.
BETWEEN_NODES = Limits(
    text=16 * 2**20,
    binary=64 * 2**20,
    inflight=4096,
    subscriptions=4096,
    buffer=64 * 2**20,
    messages=65_536,
    rate=1e6,
    burst=1_000_000,
    resume=0.0,
)


class NodeLink(System):
    """A link to one node. `start` opens it, `aclose` ends it."""

    def __init__(
        self,
        url: str,
        token: str,
        expected: Expected | None = None,
        *,
        lost: Callable[[], None] = lambda: None,
        shut_out: str | None = None,
    ) -> None:
        """To the websocket at `url`; `token` says that we are a node, `expected` whose certificate it has to show.

        `lost` is called when it has ended that was open, unless by `aclose`. A node has all rights, unless the other
        one has fenced it off: then calls end with `Unavailable` that says `shut_out`. Where that is None, the other
        node says why not.
        """
        self._tell_lost = lost
        self._shut_out = shut_out
        self._left: Rights | None = None  # what a node may call that was fenced off
        self._is_closing = False

        async def find() -> tuple[str, str, Expected | None]:
            return url, token, expected

        super().__init__(find, limits=BETWEEN_NODES)

    @property
    def is_shut_out(self) -> bool:
        """Whether the node there lets this one do no more than find out that its life is over."""
        return self._left is not None

    async def start(self) -> None:
        """Open it. Raises why that cannot be."""
        await super().start()
        if self._shut_out is not None and "*" not in self.rights:
            self._left = Rights(allow=self.rights)

    async def aclose(self) -> None:
        """Close it; what is still open ends with `CallCancelled`."""
        self._is_closing = True
        await super().aclose()

    def _over(self) -> None:
        super()._over()
        if self._session.ready is not None and not self._is_closing:
            self._tell_lost()

    async def forward(self, to: str, message: Any, call: Call, result: Any) -> Any:
        """Make `call` of `to` there; its result as a `result`, None for a record. Raises what it raised there."""
        if self._left is not None:
            self._check_left(to)
        body = self._body(to, message, {})
        slots = self._slots
        if not slots.take():
            await slots.wait()
        try:
            if not self._is_admitted():
                await self._admit(call.deadline)
            session = self._connection.session
            if call.priority == PRIORITY and (call.deadline or call.user or call.key or call.trace) is None:
                number = session.call_plain(to, body)
            else:
                number = session.call(
                    to,
                    body,
                    deadline=self._seconds(call),
                    priority=call.priority,
                    key=call.key,
                    trace=None if call.trace is None else call.trace.traceparent,
                    user=call.user,
                )
            answer = self._pending.expect(number)
            if len(session.state.calls) == 1:
                self._connection.flush()
            else:  # of several, the others go together at the end of the turn
                self._connection.touch()
            try:
                body = await answer
            except BaseException:
                self._pending.leave(number)
                raise
        finally:
            slots.free()
        return shape(body, result, "the result of", to)

    async def forward_stream(
        self, to: str, message: Any, inputs: Inputs[Any] | None, call: Call, handler: Handler
    ) -> AsyncGenerator[Any, None]:
        """Open the stream `to` there, and give its items; what the reader sends into it is passed on."""
        if self._left is not None:
            self._check_left(to)
        body, credit = self._body(to, message, {}), max(1, handler.credit)

        def ask() -> int:
            return self._session.open(
                to,
                body,
                credit=credit,
                deadline=self._seconds(call),
                priority=call.priority,
                trace=None if call.trace is None else call.trace.traceparent,
                user=call.user,
            )

        stream = self._stream(to, ask, credit, handler.result if handler.result is not Any else None)
        async with aclosing(stream), _sending(inputs, stream, to):
            async for item in stream:
                yield item

    def _check_left(self, to: str) -> None:
        """It is the node that may not call any more, not the one in whose name it does."""
        if self._left is not None and not self._left.permits(to.partition("@")[0]):
            raise Unavailable(f"{to} is not to be had: {self._shut_out}", may_have_run=False)

    def _seconds(self, call: Call) -> float | None:
        """Seconds until `call` has to end."""
        return None if call.deadline is None else max(0.0, call.deadline - self._loop.time())


@asynccontextmanager
async def _sending(inputs: Inputs[Any] | None, stream: Stream, to: str) -> AsyncIterator[None]:
    """Meanwhile, pass on what the reader sends into the stream, if its handler takes any."""
    if inputs is None:
        yield
        return

    async def forward() -> None:
        try:
            async for item in inputs:
                await stream.send(item)
            await stream.finish()
        except MicrokernelError as error:
            stream.break_off(error)  # nothing happens to one that has ended: its reader hears why where it reads

    task = asyncio.create_task(forward(), name=f"inputs of {to}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
