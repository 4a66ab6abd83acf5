"""Links of many clients that break at random while everything goes on at once: each history is whole."""

from __future__ import annotations

import asyncio
import random

import pytest
from wire_node import ALL, Node, break_link, node

import microkernel as mk
from microkernel.wire import backoff
from microkernel.wire.system import System

SEEDS = [1, 2, 3]
MANY_SEEDS = list(range(100, 160))


async def breaks(system: System, chance: random.Random, over: asyncio.Event) -> int:
    """Break the link now and then, at whatever it is doing, until `over`; how often."""
    count = 0
    while not over.is_set():
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
        if system._session.is_open and break_link(system):
            count += 1
    return count


async def calls(system: System, chance: random.Random) -> None:
    for _ in range(30):
        a, b = chance.randrange(1000), chance.randrange(1000)
        assert (await system.call("maths.add", a=a, b=b)).total == a + b


async def notes(system: System, first: int) -> None:
    """Each of these calls has an effect, which is to be had once."""
    for number in range(first, first + 30):
        await system.call("maths.note", a=number, b=0)


async def items(system: System, chance: random.Random) -> None:
    stream = system.stream("maths.count", to=100, credit=chance.randrange(1, 40), size=chance.randrange(2000))
    assert [item.number async for item in stream] == list(range(100))


async def talk(system: System) -> None:
    stream = system.stream("maths.add_up", to=0)

    async def send() -> None:
        for _ in range(60):
            await stream.send(1)
        await stream.finish()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        assert [total async for total in stream] == list(range(1, 61))


async def events(system: System, here: Node) -> None:
    async with system.subscribe("a.b") as heard:
        for number in range(60):
            here.kernel.kernel.port.publish("a.b", number=number)
            await asyncio.sleep(0)
        assert [(await anext(heard)).body.number for _ in range(60)] == list(range(60))


async def storm(seed: int) -> int:
    chance = random.Random(seed)
    over = asyncio.Event()
    async with node(rate=1e6, burst=10**6) as here, mk.connect(here.url, ALL) as system:
        breaking = asyncio.create_task(breaks(system, chance, over))
        try:
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                group.create_task(calls(system, chance))
                group.create_task(notes(system, 0))
                group.create_task(notes(system, 1000))
                group.create_task(items(system, chance))
                group.create_task(items(system, chance))
                group.create_task(talk(system))
                group.create_task(events(system, here))
        finally:
            over.set()
            count = await breaking
        assert sorted(here.maths.sent) == [*range(30), *range(1000, 1030)]
    return count


@pytest.fixture(autouse=True)
def links_come_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST", 0.001)
    monkeypatch.setattr(backoff, "MOST", 0.01)


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_links_do_every_call_item_and_event_comes_once_and_in_order(seed: int) -> None:
    assert await storm(seed) > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY_SEEDS)
async def test_and_so_they_do_for_many_more_storms(seed: int) -> None:
    await storm(seed)
