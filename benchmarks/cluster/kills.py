"""From `kill -9` of a node to its work running elsewhere: a service, a stream, the tasks of a map; ours alone.

The node that asks has two others beside it, each in a process of its own. The one that has the work is killed, again
and again; a new one takes its place before the next time. Moments are read on the clock that all processes share.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import tempfile
import time
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import ClassVar

from benchmarks.cluster.node import PATIENCE, Member
from benchmarks.cluster.work import begun_elsewhere, marks
from benchmarks.messages.process import Process, split_address
from benchmarks.messages.stopwatch import percentiles
from microkernel.executor import Executor
from microkernel.message import Message
from microkernel.service import Placement, Service, handles, streams
from services.scheduler.messages import Map, Range
from services.scheduler.service import Scheduler

__all__ = ["KilledMap", "KilledService", "KilledStream", "MapWorker", "ServiceHost", "StreamHost"]

OTHERS = 2  # nodes beside the one that asks
LEAST, MOST = 0.2, 0.7  # seconds of work before the kill: not in step with the probes, which come each half second
PACE = 0.002  # seconds between two items of a stream
RESTS = 0.02  # seconds that a task takes
TASKS = 2000
STEADY_FOR = 10  # looks, one each 50 ms


class Steady(Service):
    """One node of those that have it installed answers."""

    name = "steady"
    replicas = 1

    @handles(idempotent=True)
    async def where(self) -> str:
        """The node that answers."""
        return self.node


class From(Message):
    """The number to begin with."""

    start: int = 0


class Number(Message):
    """A number, and the node that counts."""

    number: int
    node: str


class _CountsOn:
    """How a stream of numbers goes on: with the next one."""

    def __init__(self, message: From) -> None:
        self._next = message.start

    def take(self, item: Number) -> Number:
        """Note an item."""
        self._next = item.number + 1
        return item

    def message(self) -> From:
        """What is asked now."""
        return From(self._next)


class Counter(Service):
    """Counts, on any node."""

    name = "counter"
    placement = Placement.NODE

    @streams(credit=64, anywhere=True, continues=_CountsOn)
    async def count(self, message: From) -> AsyncGenerator[Number, None]:
        """Numbers without end."""
        number = message.start
        while True:
            yield Number(number, self.node)
            number += 1
            await asyncio.sleep(PACE)


class _Named(Member):
    """One of the other nodes: its address has a name behind the token."""

    def __init__(self, address: str) -> None:
        url, rest = split_address(address)
        token, _, self.name = rest.partition(" ")
        super().__init__(f"{url} {token}")


class ServiceHost(_Named):
    """May have the service with one replica."""

    services = (Steady,)


class StreamHost(_Named):
    """Counts."""

    services = (Counter,)


class MapWorker(_Named):
    """Does tasks."""

    services = (Scheduler,)

    async def start(self) -> None:
        """Join, with threads for work that takes one core."""
        await super().start()
        await _equip(self)


class _Killing(Member):
    """The node that asks, and how it kills others. `host` is what runs in the processes beside it."""

    host: ClassVar[str]
    service: ClassVar[type[Service]]

    async def start(self) -> None:
        """Boot, and start the others."""
        await super().start()
        self._folder = tempfile.TemporaryDirectory(prefix="kills-")
        self._others: dict[str, Process] = {}
        self._chance = random.Random(1)
        self._names = (f"n{number}" for number in itertools.count(2))
        await asyncio.gather(*(self._raise() for _ in range(OTHERS)))

    async def stop(self) -> None:
        """End the others, and leave."""
        await asyncio.gather(*(asyncio.to_thread(each.close) for each in self._others.values()))
        self._folder.cleanup()
        await super().stop()

    async def kills(self, count: int) -> dict[str, float]:
        """Seconds from a kill to the work running elsewhere, of so many."""
        found = []
        for _ in range(count):
            await self._settled()
            node, seconds = await self._once()
            found.append(seconds)
            await asyncio.to_thread(self._others.pop(node).close)
            await self._raise()
        shares = percentiles(found)
        return {"p50": shares["p50"], "p99": shares["p99"]}

    async def _once(self) -> tuple[str, float]:
        """Have work on another node, kill that: its name, and how long it took."""
        raise NotImplementedError

    async def _settled(self) -> None:
        """Return when the others have what is needed."""
        await self.until(OTHERS + (self.service in self.services), self.service.name)

    def _kill(self, node: str) -> float:
        """Kill it, and say when."""
        now = time.monotonic()
        os.kill(self._others[node].pid, signal.SIGKILL)
        return now

    async def _raise(self) -> None:
        """Start one more. It has a name of its own: one that died again and again would be quarantined."""
        name, target = next(self._names), f"{__name__}:{self.host}"
        log = Path(self._folder.name) / f"{name}.log"
        self._others[name] = await asyncio.to_thread(Process, target, log, f"{await self.address()} {name}")

    async def _some_time(self) -> None:
        await asyncio.sleep(self._chance.uniform(LEAST, MOST))


class KilledService(_Killing):
    """A service with one replica: until it answers again."""

    host = "ServiceHost"
    service = Steady

    async def _settled(self) -> None:
        """One node has it, and no other is about to: it moves to one that has just come, if that is to have it."""
        looks: deque[str] = deque(maxlen=STEADY_FOR)
        while len(looks) < STEADY_FOR or len(set(looks)) > 1:
            (one,) = await self.until(1, Steady.name)
            looks.append(one.node)
            await asyncio.sleep(0.05)

    async def _once(self) -> tuple[str, float]:
        node = str(await self.system.call("steady.where"))
        await self._some_time()
        node = str(await self.system.call("steady.where"))
        killed = self._kill(node)
        while await self.system.call("steady.where") == node:
            pass
        return node, time.monotonic() - killed


class KilledStream(_Killing):
    """A stream: until its next item comes."""

    host = "StreamHost"
    service = Counter
    services = (Counter,)  # how a stream goes on, only its class knows

    async def _once(self) -> tuple[str, float]:
        while True:
            async with self.system.stream("counter.count") as numbers:
                expected, killed, node = 0, 0.0, self.name
                ends = time.monotonic() + self._chance.uniform(LEAST, MOST)
                async for item in numbers:
                    assert item.number == expected, "each comes once"
                    expected += 1
                    if killed and item.node != node:
                        return node, time.monotonic() - killed
                    if item.node == self.name:
                        break  # it runs here: the next one may not
                    if not killed and time.monotonic() > ends:
                        node, killed = item.node, self._kill(item.node)


class KilledMap(_Killing):
    """A map over three nodes: until the last task that the killed one had has been begun elsewhere."""

    host = "MapWorker"
    service = Scheduler
    services = (Scheduler,)

    async def start(self) -> None:
        """Boot, with threads for work that takes one core, and start the others."""
        await super().start()
        await _equip(self)

    async def _once(self) -> tuple[str, float]:
        marked = Path(self._folder.name) / "marks"
        marked.unlink(missing_ok=True)
        node = self._chance.choice(sorted(self._others))
        pid = self._others[node].pid
        ask = Map(
            function="benchmarks.cluster.work:mark",
            items=Range(0, TASKS),
            tasks=TASKS,
            arguments={"file": str(marked), "seconds": RESTS},
        )
        work = asyncio.create_task(self.system.call("scheduler.map", ask), name="map")
        try:
            await self._some_time()
            killed = self._kill(node)
            return node, await asyncio.to_thread(_begun_elsewhere, marked, pid, killed)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


def _begun_elsewhere(marked: Path, pid: int, killed: float) -> float:
    """Seconds until another process has begun the last of the tasks that `pid` had begun and not ended."""
    while time.monotonic() - killed < PATIENCE:
        when = begun_elsewhere(marks(marked), pid)
        if when is not None:
            return max(0.0, when - killed)  # a copy of a slow task may have begun before
        time.sleep(0.01)
    raise RuntimeError("a task was lost with its node")


async def _equip(node: Member) -> None:
    executors = node.system.kernel.executors
    await executors.remove("cpu0")
    await executors.add(Executor("cpu0", cores=2))
