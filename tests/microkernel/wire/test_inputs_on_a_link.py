"""Streams both ways over a link: items go in as far as the handler gives credit, over any number of links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from wire_node import ALL, break_link, node

import microkernel as mk
from microkernel import Service, streams
from microkernel.errors import CallCancelled, Invalid, PreconditionFailed
from microkernel.inputs import Inputs


class Echo(Service):
    """Gives bytes back."""

    name = "echo"

    @streams
    async def back(self, inputs: Inputs[bytes]) -> AsyncIterator[bytes]:
        """Each item as it came."""
        async for item in inputs:
            yield item


async def test_what_is_sent_into_a_stream_is_answered_in_order() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        stream = system.stream("maths.add_up", to=0)

        async def send() -> None:
            for _ in range(200):
                await stream.send(1)
            await stream.finish()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            assert [item async for item in stream] == list(range(1, 201))


async def test_a_handler_that_does_not_read_holds_its_sender() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        stream = system.stream("maths.add_up", to=1)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(30):
                await stream.send(1)
                sent += 1
            await stream.finish()

        sending = asyncio.create_task(send())
        while sent < 8:
            await asyncio.sleep(0)
        for _ in range(3):  # what could be sent would be sent by now
            await system.call("maths.add", a=1, b=1)
        assert sent == 8  # the handler's credit
        here.maths.go.set()
        assert [item async for item in stream][-1] == 30
        await sending


async def test_items_arrive_once_and_in_order_whenever_the_link_breaks() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        stream = system.stream("maths.add_up", to=0)

        async def send() -> None:
            for number in range(150):
                if number % 30 == 15 and system._session.is_open:
                    break_link(system)
                await stream.send(1)
            await stream.finish()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            assert [item async for item in stream] == list(range(1, 151))
        assert here.maths.made == 150


async def test_an_item_that_does_not_fit_ends_the_stream_with_its_reason() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        stream = system.stream("maths.add_up", to=0)
        await stream.send("one")
        with pytest.raises(Invalid, match=r"an item for maths\.add_up"):
            await anext(stream)
        with pytest.raises(PreconditionFailed, match="takes no more items"):
            await stream.send(1)
        await here.maths.until(lambda: here.maths.closed == 1)


async def test_who_waits_to_send_into_a_stream_without_inputs_is_told_at_its_end() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        stream = system.stream("maths.count", to=3)
        sending = asyncio.create_task(stream.send(1))
        assert len([item async for item in stream]) == 3
        with pytest.raises(PreconditionFailed, match="takes no more items"):
            await sending


async def test_closing_the_client_frees_its_senders() -> None:
    async with node() as here:
        async with mk.connect(here.url, ALL) as system:
            stream = system.stream("maths.add_up", to=1)
            for _ in range(8):
                await stream.send(1)
            sending = asyncio.create_task(stream.send(1))
            await asyncio.sleep(0)
        with pytest.raises(PreconditionFailed):
            await sending
        with pytest.raises(CallCancelled):
            await anext(stream)
        await here.maths.until(lambda: here.maths.closed == 1)


async def test_scripts_without_a_loop_send_into_streams_too() -> None:
    def script(url: str) -> list[int]:
        with mk.connect_sync(url, ALL) as system, system.stream("maths.add_up", to=0) as stream:
            totals = []
            for number in range(5):
                stream.send(number)
                totals.append(next(stream))
            stream.finish()
            return totals + list(stream)

    async with node() as here:
        assert await asyncio.to_thread(script, here.url) == [0, 1, 3, 6, 10]


async def test_a_stream_that_is_first_read_and_first_written_at_once_is_opened_once() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        stream = system.stream("maths.add_up", to=0)
        first, _ = await asyncio.gather(anext(stream), stream.send(5))
        assert first == 5
        await stream.aclose()
        await here.maths.until(lambda: here.maths.closed == 1)


@pytest.mark.parametrize("size", [0, 3, 16_383, 16_384, 3_000_000])
async def test_bytes_are_bytes_whether_they_go_as_text_or_beside_it(size: int) -> None:
    item = bytes(range(256)) * (size // 256 + 1)
    async with node(Echo) as here, mk.connect(here.url, ALL) as system:
        async with system.stream("echo.back", result_type=bytes) as stream:
            for _ in range(3):
                await stream.send(item[:size])
                assert await anext(stream) == item[:size]
        async with system.stream("echo.back", result_type=bytes) as stream:
            await stream.send("no base64 -")
            with pytest.raises(Invalid, match=r"an item for echo\.back"):
                await anext(stream)
