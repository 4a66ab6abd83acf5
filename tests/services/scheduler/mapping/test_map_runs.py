"""A map over workers that do what a test says, when it says so."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing

import pytest

from microkernel.errors import CallCancelled, Overloaded, TooBig
from microkernel.policy import Claim
from services.scheduler.mapping.crews import WorkerLost
from services.scheduler.mapping.job import MOST_TOGETHER
from services.scheduler.mapping.maps import AGAIN, Batch, MapRun
from services.scheduler.mapping.work import Outcome
from services.scheduler.messages import Map, Range

QUICK = 1e-5  # seconds of a task


class Workers:
    """Give each task its first item as its value; `fate` may raise instead, hold a batch up, or do fewer."""

    def __init__(self, size: int, fate=None) -> None:
        self.size = size
        self.batches: list[list[int]] = []
        self._fate = fate

    async def run(self, batch, claim: Claim) -> list[Outcome]:
        first = [task.start for task in batch.tasks]
        self.batches.append(first)
        await asyncio.sleep(0)
        done = len(first) if self._fate is None or (fewer := await self._fate(first)) is None else fewer
        return [Outcome(values=[item], seconds=QUICK) for item in first[:done]]


def run_of(workers: Workers, items: int) -> MapRun:
    pids = itertools.count(1)

    def begin(attempts) -> Batch:
        return Batch(attempts, [next(pids) for _ in attempts], Claim())

    ask = Map(function="mapped:square", items=Range(0, items), tasks=items)
    return MapRun(ask, workers, asyncio.get_running_loop().time, begin=begin)


async def starts(run: MapRun) -> list[int]:
    return [piece.start async for piece in run.results()]


async def test_tasks_that_take_no_time_go_to_workers_many_at_once():
    workers = Workers(2)
    assert await starts(run_of(workers, 1000)) == list(range(1000))
    assert max(map(len, workers.batches)) == MOST_TOGETHER
    assert sorted(itertools.chain(*workers.batches)) == list(range(1000))


async def test_what_a_worker_gives_back_is_done_once_and_in_its_place():
    async def one_at_a_time(first: list[int]) -> int:
        return 1

    workers = Workers(2, one_at_a_time)
    assert await starts(run_of(workers, 200)) == list(range(200))
    assert sorted(first for first, *_ in workers.batches) == list(range(200))


async def test_a_worker_that_is_lost_with_many_tasks_costs_no_result():
    async def dies_once(first: list[int]) -> None:
        if len(first) > 1 and not lost:
            lost.extend(first)
            raise WorkerLost("killed")

    lost: list[int] = []
    workers = Workers(2, dies_once)
    run = run_of(workers, 200)
    assert await starts(run) == list(range(200))
    assert "1 workers lost" in run.told()
    assert all([item] in workers.batches for item in lost), "each is done apart"


async def test_an_error_of_many_tasks_is_that_of_the_one_at_fault():
    async def too_much(first: list[int]) -> None:
        if len(first) > 1:
            raise TooBig("too much for one message")
        if first == [150]:
            raise TooBig("too much by itself")

    with pytest.raises(TooBig, match="by itself"):
        await starts(run_of(Workers(2, too_much), 200))
    assert await starts(run_of(Workers(2, too_much), 100)) == list(range(100))


async def test_tasks_behind_one_that_takes_long_are_done_by_others():
    go = asyncio.Event()

    async def held(first: list[int]) -> None:
        if len(first) > 1 and 50 in first:
            await go.wait()

    run = run_of(Workers(3, held), 100)
    assert await asyncio.wait_for(starts(run), 10) == list(range(100))
    assert "tasks copied" in run.told()


async def test_a_frozen_worker_that_has_all_that_is_left_does_not_hold_the_map_up():
    frozen: list[int] = []

    async def freezes(first: list[int]) -> None:
        if len(first) > 1:
            raise TooBig("too much for one message")
        if first[0] >= 98 and first[0] not in frozen:  # the last two are both with it
            frozen.append(first[0])
            await asyncio.Event().wait()

    assert await asyncio.wait_for(starts(run_of(Workers(2, freezes), 100)), 10) == list(range(100))
    assert frozen == [98, 99]


async def test_a_frozen_worker_that_has_the_next_result_does_not_hold_the_others_up():
    frozen: list[int] = []

    async def freezes(first: list[int]) -> None:
        if 50 in first and not frozen:
            frozen.extend(first)
            await asyncio.Event().wait()

    items = 3 * 4096  # more than may be done ahead of it
    assert await asyncio.wait_for(starts(run_of(Workers(2, freezes), items)), 30) == list(range(items))
    assert frozen


async def test_what_nobody_takes_is_offered_again_after_a_rest():
    async def none(first: list[int]) -> None:
        offered.append(asyncio.get_running_loop().time())
        if len(offered) < 20:
            raise Overloaded("enough to do")

    offered: list[float] = []
    run = run_of(Workers(1, none), 5)
    assert await asyncio.wait_for(starts(run), 30) == list(range(5))
    assert offered[18] - offered[0] > 5 * AGAIN, "not as fast as it can"


async def test_a_map_that_is_killed_while_its_reader_is_busy_ends_at_once():
    async def held(first: list[int]) -> None:
        if first != [0]:
            cancelled = asyncio.Event()
            try:
                await cancelled.wait()
            finally:
                freed.append(first)

    freed: list[list[int]] = []
    run = run_of(Workers(1, held), 10)
    async with aclosing(run.results()) as pieces:
        await anext(pieces)
        await asyncio.sleep(0.01)
        run.kill(CallCancelled("enough"))
        await asyncio.sleep(0.01)
        assert freed, "its workers are free before its reader comes back"
        with pytest.raises(CallCancelled, match="enough"):
            await asyncio.wait_for(anext(pieces), 5)


async def test_a_map_is_over_when_its_reader_has_left():
    async def held(first: list[int]) -> None:
        if first != [0]:
            await asyncio.Event().wait()

    run = run_of(Workers(2, held), 10)
    async with aclosing(run.results()) as pieces:
        await anext(pieces)
        assert run.batches
    assert run.batches == []


async def test_a_map_that_is_killed_ends_at_once_though_its_workers_go_on():
    async def held(first: list[int]) -> None:
        await asyncio.Event().wait()

    run = run_of(Workers(1, held), 10)
    reading = asyncio.create_task(starts(run))
    await asyncio.sleep(0.01)
    run.kill(CallCancelled("too long"))
    with pytest.raises(CallCancelled, match="too long"):
        await asyncio.wait_for(reading, 5)
    assert run.batches == []
