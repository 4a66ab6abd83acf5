"""A service that a node is booted with, and that tells how late its loop is."""

from __future__ import annotations

from benchmarks.messages.lag import Lag
from microkernel.message import Message
from microkernel.service import Service, handles

__all__ = ["Late", "LoopLag"]


class Late(Message):
    """Seconds by which a beat came too late."""

    p99: float
    max: float


class LoopLag(Service):
    """Beats on the node's loop between `begin` and `end`."""

    name = "lag"

    async def start(self) -> None:
        """No beat yet."""
        self._lag = Lag()

    @handles
    async def begin(self) -> None:
        """Start anew."""
        self._lag.begin()

    @handles
    async def end(self) -> Late:
        """How late the beats were."""
        return Late(**await self._lag.end())
