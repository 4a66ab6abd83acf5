"""Reading ahead: bursts, bounds, and no end that is missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from microkernel.errors import Internal, Unavailable
from microkernel.message import Message
from microkernel.service import Service, streams
from microkernel.testing import TestKernel
from services.gateway.read_ahead import ReadAhead


class Count(Message):
    """How far to count."""

    to: int
    wait_at: int | None = None
    fail_at: int | None = None


class Counter(Service):
    name = "counter"

    def __init__(self) -> None:
        self.reached = 0
        self.closed = 0
        self.waiting = asyncio.Event()

    @streams
    async def count(self, message: Count) -> AsyncIterator[int]:
        try:
            for number in range(message.to):
                if number == message.fail_at:
                    raise ValueError("seven is enough")
                if number == message.wait_at:
                    self.waiting.set()
                    await asyncio.Event().wait()
                self.reached = number + 1
                yield number
        finally:
            self.closed += 1


async def test_what_is_ready_comes_in_one_burst():
    async with TestKernel(Counter()) as system, ReadAhead(system.stream("counter.count", to=5)) as ahead:
        assert await ahead.take() == [0, 1, 2, 3, 4]
        assert await ahead.take() is None
        assert await ahead.take() is None


async def test_no_more_than_the_limit_is_read_ahead():
    counter = Counter()
    async with TestKernel(counter) as system:
        async with ReadAhead(system.stream("counter.count", to=100), limit=8) as ahead:
            await asyncio.sleep(0.01)
            assert counter.reached == 8
            assert await ahead.take() == list(range(8))
            assert await ahead.take() == list(range(8, 16))
        assert counter.closed == 1
        assert counter.reached < 100


async def test_everything_arrives_in_order_through_a_narrow_gap():
    async with TestKernel(Counter()) as system:
        seen = []
        async with ReadAhead(system.stream("counter.count", to=1000), limit=3) as ahead:
            while (burst := await ahead.take()) is not None:
                assert len(burst) <= 3
                seen += burst
    assert seen == list(range(1000))


async def test_nothing_in_time_is_an_empty_burst_and_loses_nothing():
    counter = Counter()
    async with TestKernel(counter) as system, ReadAhead(system.stream("counter.count", to=5, wait_at=2)) as ahead:
        assert await ahead.take(1.0) == [0, 1]
        assert await ahead.take(0.01) == []
        assert await ahead.take(0.01) == []


async def test_an_error_comes_after_all_that_was_before_it():
    async with TestKernel(Counter()) as system, ReadAhead(system.stream("counter.count", to=5, fail_at=2)) as ahead:
        assert await ahead.take() == [0, 1]
        with pytest.raises(Internal, match="seven is enough"):
            await ahead.take()


async def test_leaving_closes_the_stream_before_it_returns():
    counter = Counter()
    async with TestKernel(counter) as system:
        async with ReadAhead(system.stream("counter.count", to=5, wait_at=1)) as ahead:
            assert await ahead.take() == [0]
            await counter.waiting.wait()
        assert counter.closed == 1
        assert system.calls_in_flight() == {}


async def test_an_interrupt_is_raised_where_the_items_are_taken():
    counter = Counter()
    async with TestKernel(counter) as system:
        async with ReadAhead(system.stream("counter.count", to=5, wait_at=1)) as ahead:
            assert await ahead.take() == [0]
            taking = asyncio.create_task(ahead.take())
            await counter.waiting.wait()
            ahead.interrupt(Unavailable("the node stops"))
            with pytest.raises(Unavailable, match="the node stops"):
                await taking
        assert counter.closed == 1


async def test_an_interrupt_before_the_first_step_is_not_lost():
    async with TestKernel(Counter()) as system, ReadAhead(system.stream("counter.count", to=5)) as ahead:
        ahead.interrupt(Unavailable("the node stops"))
        with pytest.raises(Unavailable, match="the node stops"):
            await ahead.take()


async def test_an_interrupt_after_the_end_changes_nothing():
    async with TestKernel(Counter()) as system, ReadAhead(system.stream("counter.count", to=1)) as ahead:
        assert await ahead.take() == [0]
        assert await ahead.take() is None
        ahead.interrupt(Unavailable("the node stops"))
        assert await ahead.take() is None


async def test_a_reader_that_is_cancelled_closes_the_stream():
    counter = Counter()

    async def read(system: TestKernel) -> None:
        async with ReadAhead(system.stream("counter.count", to=5, wait_at=1)) as ahead:
            while await ahead.take() is not None:
                pass

    async with TestKernel(counter) as system:
        reading = asyncio.create_task(read(system))
        await counter.waiting.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert counter.closed == 1
