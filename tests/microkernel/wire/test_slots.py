"""How many calls may be in flight on a link."""

from __future__ import annotations

import asyncio
import random

import pytest

from microkernel.wire.slots import Slots


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_waits_gets_a_slot_in_order_of_arrival_and_nobody_overtakes():
    slots, order = Slots(1), []
    assert slots.take()

    async def client(name):
        await slots.wait()
        order.append(name)

    tasks = [asyncio.create_task(client(name)) for name in "abc"]
    await turns()
    slots.free()
    assert not slots.take(), "the slot is for the first who waits"
    await turns()
    for _ in range(2):
        slots.free()
        await turns()
    assert order == ["a", "b", "c"]
    await asyncio.gather(*tasks)


async def test_a_slot_given_to_somebody_who_was_cancelled_meanwhile_goes_to_the_next():
    slots = Slots(1)
    slots.take()
    first, second = asyncio.create_task(slots.wait()), asyncio.create_task(slots.wait())
    await turns()
    slots.free()
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_more_slots_wake_those_who_wait():
    slots = Slots(1)
    slots.take()
    waiting = asyncio.create_task(slots.wait())
    await turns()
    slots.resize(2)
    await waiting


@pytest.mark.parametrize("seed", range(20))
async def test_never_more_than_the_limit_and_none_is_lost_whatever_is_cancelled(seed):
    chance, slots = random.Random(seed), Slots(3)
    inside = worst = 0

    async def client():
        nonlocal inside, worst
        if not slots.take():
            await slots.wait()
        inside += 1
        worst = max(worst, inside)
        try:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
        finally:
            inside -= 1
            slots.free()

    tasks = [asyncio.create_task(client()) for _ in range(50)]
    for task in chance.sample(tasks, 25):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert worst <= 3
    assert all(slots.take() for _ in range(3))
