"""The node that is overloaded, in a process of its own, with the limits that every node has."""

from __future__ import annotations

import asyncio
import logging
import re

import psutil

from benchmarks.overload.service import Load, Pace
from microkernel.executor import Executor
from microkernel.testing import TestKernel
from services.gateway.service import Gateway

__all__ = ["OverloadedNode"]

MANY = 2000  # clients: more than by default, because we are one of them a thousand times
SAMPLE = 0.5  # seconds between two looks at the memory
ENDED = re.compile(r"session (?P<session>\w+).* ended: (?P<reason>.*) \(code (?P<code>\d+)\)")


class _Ends(logging.Handler):
    """Keeps what the log says about links that have ended."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it if it is that."""
        if match := ENDED.search(record.getMessage()):
            self.found.append((match["session"], int(match["code"]), match["reason"]))


class OverloadedNode:
    """Listens on a free port, and looks at itself."""

    async def start(self) -> None:
        """Boot. Of the limits only the number of clients is not the default."""
        self._log = _Ends()
        logger = logging.getLogger("microkernel.wire")
        logger.setLevel(logging.INFO)
        logger.addHandler(self._log)
        self._gateway = Gateway()
        self._system = TestKernel(
            self._gateway, Load, settings={"gateway": {"port": 0, "connections": MANY, "wire": {"sessions": MANY}}}
        )
        await self._system.__aenter__()
        await self._system.kernel.executors.add(Executor("cpu0"))
        self._sizes: list[int] = []
        self._sampling = asyncio.create_task(self._sample())

    async def stop(self) -> None:
        """Shut down."""
        self._sampling.cancel()
        await asyncio.gather(self._sampling, return_exceptions=True)
        await self._system.__aexit__(None, None, None)

    async def address(self) -> str:
        """Where it listens, and the token that opens it."""
        address = await self._system.call("gateway.address")
        return f"{address.urls[0]} {self._system.token}"

    async def pace(self, *, ticks: bool = False, bulks: bool = False) -> None:
        """Publish these events from now on."""
        await self._system.call("load.pace", Pace(ticks, bulks))

    async def ended(self) -> list[tuple[str, int, str]]:
        """Session, code and reason of each link that the log has named since this was last asked."""
        found, self._log.found = self._log.found, []
        return found

    async def cut(self) -> list[str]:
        """Sessions that are being ended now: their close frames are on the way, for a second or two."""
        sessions = (link._session for link in self._gateway._wire._links)
        return [each.session for each in sessions if each.closed is not None]

    async def sizes(self) -> dict[str, int]:
        """Resident bytes since this was last asked: the `least`, the `most`, and the `last`."""
        last = psutil.Process().memory_info().rss
        sizes, self._sizes = [*self._sizes, last], []
        return {"least": min(sizes), "most": max(sizes), "last": last}

    async def open(self) -> dict[str, int]:
        """Calls and streams that have not ended, and jobs that wait or run on the compute thread."""
        executor = self._system.kernel.executors.get("cpu0").status()
        calls = sum(self._system.calls_in_flight().values())
        return {"calls": calls, "jobs": executor.queued + executor.running}

    async def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self._sizes.append(process.memory_info().rss)
            await asyncio.sleep(SAMPLE)
