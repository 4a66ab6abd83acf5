"""Streams that are talked to: order, credit both ways, ends; the queue alone and through a kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel import Message, Service, handles, streams
from microkernel.errors import Invalid, NotFound, Overloaded, PreconditionFailed
from microkernel.inputs import Inputs, input_type
from microkernel.service import handlers_of
from microkernel.testing import TestKernel


class Start(Message):
    factor: int


class Number(Message):
    value: int


class Talk(Service):
    """Multiplies what it is sent."""

    name = "talk"

    async def start(self) -> None:
        self.taken: list[int] = []
        self.go = asyncio.Event()

    @streams(credit=4)
    async def multiply(self, message: Start, inputs: Inputs[Number]) -> AsyncIterator[int]:
        async for number in inputs:
            self.taken.append(number.value)
            yield number.value * message.factor

    @streams(credit=4)
    async def slow(self, inputs: Inputs[int]) -> AsyncIterator[int]:
        await self.go.wait()
        total = 0
        async for number in inputs:
            self.taken.append(number)
            total += number
        yield total

    @streams
    async def first_two(self, inputs: Inputs[int]) -> AsyncIterator[int]:
        yield await anext(inputs)
        yield await anext(inputs)

    @streams
    async def deaf(self) -> AsyncIterator[int]:
        yield 1
        yield 2

    @streams
    async def fail(self, inputs: Inputs[int]) -> AsyncIterator[int]:
        async for number in inputs:
            raise NotFound(f"no {number} here")
            yield number


async def test_a_stream_answers_what_it_is_sent() -> None:
    async with TestKernel(Talk()) as kernel:
        stream = kernel.stream("talk.multiply", factor=3)

        async def send() -> None:
            for value in range(100):
                await stream.send(Number(value))
            await stream.finish()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            assert [item async for item in stream] == [value * 3 for value in range(100)]


async def test_one_task_may_send_and_read_in_turn() -> None:
    async with TestKernel(Talk()) as kernel, kernel.stream("talk.multiply", factor=2) as stream:
        for value in range(5):
            await stream.send({"value": value})
            assert await anext(stream) == value * 2


async def test_a_slow_handler_holds_its_sender() -> None:
    talk = Talk()
    async with TestKernel(talk) as kernel:
        stream = kernel.stream("talk.slow")
        sent: list[int] = []

        async def send() -> None:
            for number in range(20):
                await stream.send(number)
                sent.append(number)
            await stream.finish()

        reading, sending = asyncio.ensure_future(anext(stream)), asyncio.create_task(send())
        while len(sent) < 4:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(sent) == 4  # the handler's credit
        talk.go.set()
        assert await reading == sum(range(20))
        await sending
        await stream.aclose()


async def test_an_item_of_another_type_is_its_senders_error_and_the_stream_goes_on() -> None:
    async with TestKernel(Talk()) as kernel, kernel.stream("talk.multiply", factor=2) as stream:
        await stream.send({"value": 1})
        assert await anext(stream) == 2
        with pytest.raises(Invalid, match=r"an item for talk\.multiply") as caught:
            await stream.send({"value": "one"})
        assert caught.value.field == "value"
        await stream.send({"value": 2})
        assert await anext(stream) == 4


async def test_a_handler_that_takes_nothing_says_so_to_the_reader_and_to_the_sender() -> None:
    async with TestKernel(Talk()) as kernel:
        early = kernel.stream("talk.deaf")
        await early.send(1)
        with pytest.raises(Invalid, match=r"talk\.deaf takes no items"):
            await anext(early)
        late = kernel.stream("talk.deaf")
        assert await anext(late) == 1
        with pytest.raises(Invalid, match=r"talk\.deaf takes no items"):
            await late.send(1)
        assert await anext(late) == 2
        await late.aclose()
        assert kernel.calls_in_flight() == {}


async def test_who_waits_to_send_is_told_when_the_stream_ends() -> None:
    async with TestKernel(Talk()) as kernel:
        stream = kernel.stream("talk.first_two")
        await stream.send(1)
        sending = asyncio.create_task(stream.send(2))
        assert [item async for item in stream] == [1, 2]
        await sending
        with pytest.raises(PreconditionFailed, match="takes no more items"):
            await stream.send(3)


async def test_an_error_of_the_handler_ends_the_sender_too() -> None:
    async with TestKernel(Talk()) as kernel:
        stream = kernel.stream("talk.fail")
        await stream.send(7)
        with pytest.raises(NotFound, match="no 7 here"):
            await anext(stream)
        with pytest.raises(PreconditionFailed):
            await stream.send(8)


async def test_after_finish_nothing_can_be_sent() -> None:
    async with TestKernel(Talk()) as kernel, kernel.stream("talk.multiply", factor=1) as stream:
        await stream.finish()
        with pytest.raises(PreconditionFailed):
            await stream.send(Number(1))
        assert [item async for item in stream] == []


async def test_a_sender_that_is_cancelled_gives_its_room_to_the_next() -> None:
    inputs: Inputs[int] = Inputs("a.b")
    inputs.expect(int)
    inputs.open(1)
    await inputs.put(1)
    first, second = asyncio.create_task(inputs.put(2)), asyncio.create_task(inputs.put(3))
    await asyncio.sleep(0)
    assert await anext(inputs) == 1  # the first is woken
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await second
    assert await anext(inputs) == 3


async def test_a_second_reader_is_refused() -> None:
    inputs: Inputs[int] = Inputs("a.b")
    reading = asyncio.ensure_future(anext(inputs))
    await asyncio.sleep(0)
    with pytest.raises(PreconditionFailed, match="somebody reads"):
        await anext(inputs)
    inputs.finish()
    with pytest.raises(StopAsyncIteration):
        await reading


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8), st.lists(st.booleans(), max_size=60))
def test_the_room_told_is_never_more_than_there_is_and_comes_back_in_time(limit: int, steps: list[bool]) -> None:
    """A sender on a link knows only what `on_room` has told it: it never sends too much and never waits for nothing."""
    credit = 0

    def room(count: int) -> None:
        nonlocal credit
        credit += count

    async def play() -> None:
        inputs: Inputs[int] = Inputs("a.b")
        inputs.on_room = room
        inputs.expect(int)
        inputs.open(limit)
        nonlocal credit
        waiting = 0
        for sends in steps:
            if sends and credit:
                credit -= 1
                inputs.put_now(1)
                waiting += 1
            elif not sends and waiting:
                await anext(inputs)
                waiting -= 1
            assert waiting + credit <= limit
            assert credit or waiting, "the handler waits for items, and the sender for room"
        if waiting == limit:
            with pytest.raises(Overloaded):
                inputs.put_now(1)

    asyncio.run(play())


def test_the_annotation_says_what_is_taken() -> None:
    assert input_type(Inputs[int]) is int
    assert input_type(Inputs) is Any
    assert input_type(int) is None
    handlers = {handler.name: handler for handler in handlers_of(Talk)}
    assert handlers["multiply"].inputs is Number
    assert handlers["multiply"].message is Start
    assert handlers["slow"].takes_message is False
    assert handlers["deaf"].inputs is None


def test_only_streams_take_inputs() -> None:
    class Wrong(Service):
        name = "wrong"

        @handles
        async def ask(self, inputs: Inputs[int]) -> None: ...

    with pytest.raises(Invalid, match=r"Wrong\.ask: only a stream takes Inputs"):
        handlers_of(Wrong)
