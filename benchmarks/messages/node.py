"""Ours as a server: a node with its gateway and the service, in a process of its own, as `mk boot` would run it."""

from __future__ import annotations

import gc

import psutil

from benchmarks.messages.lag import Hog, Lag
from benchmarks.messages.service import Bench
from microkernel.executor import Executor
from microkernel.service import Service
from microkernel.testing import TestKernel
from services.gateway.service import Gateway

__all__ = ["Node"]

# The limits that would be measured instead of the speed; all others are the defaults.
WIRE = {"rate": 1e9, "burst": 10**9, "inflight": 4096, "sessions": 10_000}


class Node:
    """Listens on a free port."""

    services: tuple[type[Service], ...] = (Gateway, Bench)

    async def start(self) -> None:
        """Boot, with a compute thread as every node with a device has: threads then take turns at 1 ms."""
        self._system = TestKernel(
            *self.services, settings={"gateway": {"port": 0, "connections": 10_000, "wire": WIRE}}
        )
        await self._system.__aenter__()
        await self._system.kernel.executors.add(Executor("cpu0"))
        self._lag = Lag()
        self._hog: Hog | None = None

    async def stop(self) -> None:
        """Shut down."""
        await self.rest()
        await self._system.__aexit__(None, None, None)

    async def address(self) -> str:
        """Where it listens, and the token that opens it."""
        address = await self._system.call("gateway.address")
        return f"{address.urls[0]} {self._system.token}"

    async def memory(self) -> int:
        """Resident bytes, after a collection."""
        gc.collect()
        return psutil.Process().memory_info().rss

    async def watch(self) -> None:
        """Measure how late the loop is, until `seen`."""
        self._lag.begin()

    async def seen(self) -> dict[str, float]:
        """How late the loop was, in seconds."""
        return await self._lag.end()

    async def hog(self) -> None:
        """Start a thread that hogs the interpreter, until `rest`."""
        self._hog = self._hog or Hog()

    async def rest(self) -> None:
        """End it."""
        if self._hog is not None:
            self._hog.stop()
            self._hog = None
