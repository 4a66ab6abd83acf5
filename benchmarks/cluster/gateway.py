"""A gateway on one node in front of the engine of another one; the engine is played, so the way to it is measured."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import msgspec

from benchmarks.cluster.node import Member
from microkernel.balance import Balance
from microkernel.service import Placement, Service, streams
from services.gateway.service import Gateway
from services.inference.continued import continued
from services.inference.messages import Chat, Piece, Usage

__all__ = ["EngineNode", "FrontNode"]

PORTS = {"gateway": {"port": 0}}


class NoEngine(Service):
    """Stands where the service `inference` does, and answers any chat with one piece of text, at once."""

    name = "inference"
    placement = Placement.NODE
    balance = Balance.PREFIX
    balance_field = "messages"

    @streams(credit=16, concurrency=4096, queue=4096, anywhere=True, where="model", continues=continued)
    async def chat(self, message: Chat) -> AsyncIterator[Piece]:
        """The first piece says that it was admitted, as the engine's does; the last one what it has cost."""
        pid = 1 + secrets.randbelow(1 << 20)
        yield Piece(pid=pid, model="none")
        yield Piece(text="Yes.", pid=pid, model="none")
        words = sum(len(each.content or "") for each in message.messages) // 4
        usage = Usage(prompt_tokens=words, completion_tokens=2)
        yield Piece(pid=pid, model="none", finish_reason="stop", usage=usage)


class Door(msgspec.Struct, frozen=True):
    """Where a gateway listens, and the token that opens it."""

    host: str
    port: int
    token: str


class _WithGateway(Member):
    async def door(self) -> dict[str, object]:
        """Of this node's gateway."""
        address = await self.system.call("gateway.address")
        host, _, port = address.urls[0].removeprefix("http://").rpartition(":")
        return msgspec.to_builtins(Door(host, int(port), self.system.token))  # type: ignore[no-any-return]


class EngineNode(_WithGateway):
    """Has the engine, and a gateway of its own."""

    services = (Gateway, NoEngine)
    settings = PORTS


class FrontNode(_WithGateway):
    """Has a gateway alone: `mk boot --without inference --join …`."""

    services = (Gateway,)
    settings = PORTS
    name = "n2"

    async def start(self) -> None:
        """Join, and know the engine."""
        await super().start()
        await self.until(1, NoEngine.name)
