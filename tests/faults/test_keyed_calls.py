"""Calls under a key over real sockets that are killed: each runs once, and one order explains all results."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NoReturn

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from simulation.cells import Caller, Logbook, cells_of
from wire_node import ALL, authenticate, break_link

import microkernel as mk
from microkernel.errors import Unavailable
from microkernel.testing import TestKernel
from microkernel.wire import backoff
from microkernel.wire.limits import Limits
from microkernel.wire.server import WireServer
from microkernel.wire.system import System

SEEDS = [1, 2, 3, 4]
MANY_SEEDS = list(range(100, 160))
CALLERS, CALLS = 4, 20
MOST_CRASHES = 2  # with a third one in 30 s the service is quarantined


class Storm:
    """Callers of one node, whose links and whose service are killed now and then."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.broken: list[str] = []
        self.log = Logbook(self.complain)
        self.systems: dict[System, None] = {}
        self.killed = 0

    def complain(self, how: str) -> NoReturn:
        self.broken.append(how)  # a handler's error is its caller's: it is heard of at the end
        raise AssertionError(how)

    async def run(self) -> None:
        over = asyncio.Event()
        resume = self.chance.choice((0.001, 0.02, 5.0))  # seconds: new sessions mostly, sometimes, never
        async with TestKernel(cells_of(self.log)) as kernel, served(kernel, Limits(resume=resume)) as url:
            killing = asyncio.create_task(self.kill(kernel, over))
            try:
                async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                    for _ in range(CALLERS):
                        caller = Caller(self.log, self.chance, calls=CALLS, slowest=0.01)
                        group.create_task(caller.run(lambda: self.connected(url)))
            finally:
                over.set()
                await killing
            while kernel.calls_in_flight():  # under keys, for callers who have given up
                await asyncio.sleep(0.01)
        assert self.broken == []
        self.log.judge()

    @asynccontextmanager
    async def connected(self, url: str) -> AsyncIterator[System]:
        async with mk.connect(url, ALL, reconnect=self.chance.random() < 0.8) as system:
            self.systems[system] = None
            try:
                yield system
            finally:
                del self.systems[system]

    async def kill(self, kernel: TestKernel, over: asyncio.Event) -> None:
        """Kill links, at whatever they are doing, and rarely the service, until `over`."""
        chance, crashes = self.chance, 0
        while not over.is_set():
            for _ in range(chance.randrange(60)):
                await asyncio.sleep(0)
            if crashes < MOST_CRASHES and chance.random() < 0.02:
                instance = kernel.kernel.instance("cells")
                if instance is not None:
                    crashes += 1
                    instance.crash(Unavailable("service 'cells' was made to crash", service="cells", retry_after=0.01))
            for system in tuple(self.systems):
                if chance.random() < 0.5 and system._session.is_open:
                    self.killed += break_link(system)


@asynccontextmanager
async def served(kernel: TestKernel, limits: Limits) -> AsyncIterator[str]:
    wire = WireServer(kernel.kernel.port, authenticate, node="n1", epoch="e1", limits=limits)
    app = web.Application()
    app.router.add_get("/mk", wire.handle)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("/"))
        await wire.close(drain=0.0)


@pytest.fixture(autouse=True)
def links_come_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST", 0.001)
    monkeypatch.setattr(backoff, "MOST", 0.01)


@pytest.mark.parametrize("seed", SEEDS)
async def test_however_links_are_killed_a_call_under_a_key_runs_once_and_one_order_explains_all(seed: int) -> None:
    storm = Storm(seed)
    await storm.run()
    assert storm.killed > 3
    assert storm.log.again > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY_SEEDS)
async def test_and_so_it_is_in_many_more_storms(seed: int) -> None:
    await Storm(seed).run()
