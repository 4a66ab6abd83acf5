"""Publishers and slow readers of every kind: events in order, once, and no gap without a word."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from simulation.seeds import batches

from microkernel.backlog import Overflow
from microkernel.config import Config
from microkernel.errors import DeadlineExceeded, Gone, Overloaded
from microkernel.events import Subscription
from microkernel.rings import RingLimits
from microkernel.testing import TestKernel
from microkernel.testing.simulation import Simulation, explore

KEPT = 20  # events in the ring


class Readings:
    """What was published on one subject, and who has read what."""

    def __init__(self, simulation: Simulation, system: TestKernel) -> None:
        self.simulation = simulation
        self.system = system
        self.published = 0
        self.over = False
        self.grouped: Counter[int] = Counter()
        self.members = 0

    async def publisher(self, *, delivers: bool) -> None:
        """Publishes numbers, in bursts, all of one publisher's or only some of many."""
        chance = self.simulation.chance
        for _ in range(chance.randint(1, 60)):
            if chance.random() < 0.3:
                await asyncio.sleep(chance.uniform(0, 0.1))
            if not delivers:
                self.published += 1
                self.system.publish("told.now", number=self.published)
                continue
            self.published += 1  # one such publisher at a time: the number is given before the wait
            try:
                await self.system.kernel.port.deliver("told.now", number=self.published, deadline=5.0)
            except (DeadlineExceeded, Overloaded):
                self.published -= 1

    async def pause(self) -> None:
        await asyncio.sleep(self.simulation.chance.choice((0.0, 0.0, self.simulation.chance.uniform(0, 0.2))))

    def broken(self, how: str) -> None:
        self.simulation.promises.broken(how)

    async def read_all(self, overflow: Overflow, limit: int, *, group: str | None = None) -> None:
        """Read from now on to the end; what comes is in order, and what does not is counted or told."""
        before, came, last = self.published, 0, self.published
        who = f"the {overflow} reader"
        async with self.system.kernel.port.subscribe("told.*", overflow=overflow, limit=limit) as events:
            watch = self.watch(events, 1 if overflow is Overflow.LATEST else limit)
            try:
                async for event in events:
                    watch()
                    number = event.body["number"]
                    if number <= last:
                        self.broken(f"{who} got {number} after {last}")
                    if overflow in {Overflow.WAIT, Overflow.CUT} and number != last + 1:
                        self.broken(f"{who} got {number} after {last} and was told of no gap")
                    came, last = came + 1, number
                    if self.over and last == self.published:
                        break
                    await self.pause()
                    watch()
            except Overloaded:
                if overflow not in {Overflow.WAIT, Overflow.CUT}:
                    self.broken(f"{who} was cut")
                self.simulation.note("cut", who=overflow, came=came)
                return
            if came + events.dropped != self.published - before:
                self.broken(f"{who} got {came} and missed {events.dropped} of {self.published - before}")
        self.simulation.note("read", who=overflow, came=came)

    def watch(self, events: Subscription, limit: int):
        def look() -> None:
            if events.pending > limit:
                self.broken(f"{events.pending} events wait where {limit} may")

        return look

    async def replay(self) -> None:
        """Comes and goes, and asks each time for what it has missed: no gap, nothing twice, or `Gone`."""
        port, chance = self.system.kernel.port, self.simulation.chance
        offset = last = 0
        gone = False
        while not (self.over and last == self.published):
            try:
                events = port.subscribe(
                    "told.now", since=offset, overflow=Overflow.CUT, limit=chance.choice((1, 5, 50))
                )
            except Gone:
                self.simulation.note("gone", since=offset)
                if self.over:
                    return
                offset, gone = self.system.kernel.router.bus.offset, True
                await self.pause()
                continue
            async with events:
                try:
                    for _ in range(chance.randint(1, 30)):
                        if self.over and last == self.published:
                            return
                        event = await anext(events)
                        number = event.body["number"]
                        if number <= last or (number != last + 1 and not gone):
                            self.broken(f"a replay brought {number} after {last}")
                        offset, last, gone = event.offset, number, False
                        await self.pause()
                except Overloaded:
                    pass  # it fell behind, was told, and comes again
            await self.pause()

    async def member(self) -> None:
        """One of a group: each event is for a single member."""
        self.members += 1
        async with self.system.kernel.port.subscribe("told.now", group="g", limit=1000) as events:
            async for event in events:
                self.grouped[event.body["number"]] += 1
                if event.body["number"] < 0:
                    return
                await self.pause()


async def events(simulation: Simulation) -> None:
    chance = simulation.chance
    config = Config(rings=(RingLimits("told.>", events=KEPT),))
    async with simulation.boot(config=config) as system:
        readings = Readings(simulation, system)
        async with asyncio.TaskGroup() as readers:
            for _ in range(chance.randint(1, 5)):
                overflow = chance.choice(tuple(Overflow))
                readers.create_task(readings.read_all(overflow, chance.choice((1, 3, 10, 100))))
            for _ in range(chance.randint(0, 2)):
                readers.create_task(readings.replay())
            grouped = [readers.create_task(readings.member()) for _ in range(chance.randint(0, 3))]
            await asyncio.sleep(chance.choice((0.0, 0.01)))
            first = readings.published + 1
            async with asyncio.TaskGroup() as publishers:
                if simulation.happens(0.5):
                    publishers.create_task(readings.publisher(delivers=True))
                else:
                    for _ in range(chance.randint(1, 3)):
                        publishers.create_task(readings.publisher(delivers=False))
            readings.over = True
            readings.published += 1
            system.publish("told.now", number=readings.published)  # the last: whoever waits looks up
            await asyncio.sleep(60)
            for task in grouped:
                task.cancel()
        if grouped:
            twice = [number for number in range(first, readings.published + 1) if readings.grouped[number] != 1]
            if twice:
                readings.broken(f"of the group's events, {twice} were not read by exactly one")


@pytest.mark.parametrize("seeds", batches(100), ids=str)
def test_events_come_in_order_once_and_without_a_silent_gap(seeds):
    assert explore(events, seeds) == len(seeds)
