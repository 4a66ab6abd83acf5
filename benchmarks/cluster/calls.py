"""A call from a service of one node to one of another node, over the link that a cluster makes; ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec

from benchmarks.cluster.crowd import crowd
from benchmarks.cluster.node import Member
from benchmarks.messages.node_client import BODY
from benchmarks.messages.service import Body
from benchmarks.messages.stopwatch import percentiles, times
from microkernel.message import Message
from microkernel.service import Placement, Service, handles

__all__ = ["AnsweringNode", "AskingNode"]

DEPTH = 32  # calls at a time


class Echo(Service):
    """Answers at once."""

    name = "echo"
    placement = Placement.NODE

    @handles(concurrency=4096, queue=4096)
    async def echo(self, message: Body) -> Body:
        """The same."""
        return message


class Span(Message):
    """How long is measured, in seconds."""

    seconds: Annotated[float, msgspec.Meta(gt=0)]


class Asker(Service):
    """Calls the other node from a handler of its own, as services do."""

    name = "asker"
    placement = Placement.NODE
    uses = ("echo",)

    @handles(deadline=None)
    async def ask(self, message: Span) -> dict[str, float]:
        """Seconds of one call at a time, and how many there were."""
        ask = self._asking(f"echo.echo@{AnsweringNode.name}")
        found = await times(ask, message.seconds)
        return {**percentiles(found), "count": float(len(found))}

    @handles(deadline=None)
    async def crowd(self, message: Span) -> dict[str, float]:
        """The same of 32 at a time."""
        return percentiles(await crowd(self._asking(f"echo.echo@{AnsweringNode.name}"), message.seconds, depth=DEPTH))

    def _asking(self, to: str) -> Callable[[], Awaitable[object]]:
        call, body = self.port.call, Body(BODY)

        async def ask() -> None:
            answer = await call(to, body)
            assert len(answer.text) == len(BODY)

        return ask


class AnsweringNode(Member):
    """The one that is called."""

    services = (Echo,)


class AskingNode(Member):
    """The one that calls."""

    services = (Asker,)
    name = "n2"

    async def round_trips(self, seconds: float) -> dict[str, float]:
        """Seconds of a call whose body of 100 bytes comes back."""
        await self.until(1, Echo.name)
        return dict(await self.system.call("asker.ask", seconds=seconds, deadline=None))

    async def among(self, seconds: float) -> dict[str, float]:
        """The same among 32."""
        return dict(await self.system.call("asker.crowd", seconds=seconds, deadline=None))
