"""Turns: one heavy piece of work in each turn of the loop, first come first served."""

from __future__ import annotations

import asyncio

from microkernel.wire.turns import Turns


async def test_one_has_a_turn_at_a_time_in_the_order_in_which_they_asked():
    turns, seen = Turns(), []

    async def work(name: str) -> None:
        for _ in range(3):
            await turns.next(name)
            seen.append(name)

    async def watch() -> None:
        while len(seen) < 9:
            seen_before = len(seen)
            await asyncio.sleep(0)
            assert len(seen) - seen_before <= 1

    async with asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(work(name))
        group.create_task(watch())
    assert seen == list("abcabcabc")


async def test_who_is_alone_has_every_turn_but_the_next_one():
    turns, loop_turns, done = Turns(), 0, asyncio.Event()

    async def count() -> None:
        nonlocal loop_turns
        while not done.is_set():
            loop_turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    before = loop_turns
    for _ in range(100):
        await turns.next("a")
    assert loop_turns - before <= 2 * 100
    done.set()
    await counting


async def test_who_was_cancelled_while_waiting_holds_nobody_up():
    turns, seen = Turns(), []

    async def work(name: str) -> None:
        await turns.next(name)
        seen.append(name)

    tasks = [asyncio.create_task(work(name)) for name in "abcd"]
    await asyncio.sleep(0)
    for task in tasks[:3]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert seen == ["d"]
    await turns.next("a")


async def test_who_asks_for_many_turns_has_one_place_in_the_round():
    turns, seen = Turns(), []

    async def work(name: str) -> None:
        await turns.next(name)
        seen.append(name)

    async with asyncio.TaskGroup() as group:
        for name in "aaaaabbc":
            group.create_task(work(name))
    assert "".join(seen) == "abcabaaa"
