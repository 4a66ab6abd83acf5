"""The simulated network: bytes in order and once, or a link that breaks; as TCP, for whoever is written for TCP."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

from microkernel.testing.loop import SimulatedLoop


def run(work, seed=0):
    loop = SimulatedLoop(seed)
    try:
        return loop.run_until_complete(work(loop))
    finally:
        loop.close()


class Recorder(asyncio.Protocol):
    """Writes down what happens to one end."""

    def __init__(self):
        self.received = bytearray()
        self.pieces = 0
        self.events = []
        self.lost = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data
        self.pieces += 1

    def eof_received(self):
        self.events.append("eof")

    def pause_writing(self):
        self.events.append("pause")

    def resume_writing(self):
        self.events.append("resume")

    def connection_lost(self, error):
        self.events.append("lost" if error is None else type(error).__name__)
        self.lost.set()


async def pair(loop):
    """Two ends of a link."""
    accepted = []

    def accept():
        accepted.append(Recorder())
        return accepted[0]

    await loop.create_server(accept, "10.0.0.2", 1)
    _, client = await loop.create_connection(Recorder, "10.0.0.2", 1)
    return client, accepted[0]


@pytest.mark.parametrize("seed", range(20))
def test_bytes_arrive_in_order_and_once_in_pieces_of_any_size(seed):
    async def work(loop):
        loop.network.segments = (1, 300)
        client, server = await pair(loop)
        sent = bytes(range(256)) * 400
        for start in range(0, len(sent), 1000):
            client.transport.write(sent[start : start + 1000])
        client.transport.close()
        await server.lost.wait()
        assert bytes(server.received) == sent
        assert server.pieces > 10
        assert server.events == ["eof", "lost"]
        assert client.events[-1] == "lost"

    run(work, seed)


def test_a_reader_that_does_not_read_pauses_the_writer_until_it_does():
    async def work(loop):
        client, server = await pair(loop)
        server.transport.pause_reading()
        sent = 0
        while "pause" not in client.events:
            client.transport.write(b"x" * 10_000)
            sent += 10_000
        await asyncio.sleep(10)
        assert client.events == ["pause"]
        assert server.received == b""
        server.transport.resume_reading()
        await asyncio.sleep(10)
        assert client.events == ["pause", "resume"]
        assert len(server.received) == sent

    run(work)


def test_a_cut_is_heard_at_both_ends_and_loses_what_was_on_its_way():
    async def work(loop):
        client, server = await pair(loop)
        client.transport.write(b"x" * 1000)
        loop.network.any_link().cut()
        await asyncio.gather(client.lost.wait(), server.lost.wait())
        assert client.events == server.events == ["ConnectionResetError"]
        assert server.received == b""
        assert not loop.network.links

    run(work)


def test_one_end_of_a_half_open_link_hears_of_it_when_it_writes():
    async def work(loop):
        client, server = await pair(loop)
        loop.network.any_link().cut_silently(for_server=True)
        await asyncio.sleep(600)
        assert server.events == ["ConnectionResetError"]
        assert client.events == []
        client.transport.write(b"is anybody there?")
        await client.lost.wait()
        assert client.events == ["ConnectionResetError"]

    run(work)


def test_a_partition_holds_back_what_is_sent_and_lets_it_through_at_its_end():
    async def work(loop):
        client, server = await pair(loop)
        link = loop.network.any_link()
        link.stall(back=False)
        client.transport.write(b"there")
        server.transport.write(b"back")
        await asyncio.sleep(10)
        assert bytes(server.received) == b""
        assert bytes(client.received) == b"back"
        link.flow()
        await asyncio.sleep(10)
        assert bytes(server.received) == b"there"

    run(work)


def test_an_aborted_end_resets_the_other_one():
    async def work(loop):
        client, server = await pair(loop)
        client.transport.abort()
        await server.lost.wait()
        assert server.events == ["ConnectionResetError"]
        assert client.events == ["lost"]

    run(work)


def test_nobody_is_let_in_where_nobody_listens():
    async def work(loop):
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Recorder, "10.0.0.9", 1)

    run(work)


def test_a_slow_link_takes_its_time():
    async def work(loop):
        loop.network.bandwidth = 1000.0
        client, server = await pair(loop)
        began = loop.time()
        client.transport.write(b"x" * 5000)
        client.transport.close()
        await server.lost.wait()
        return loop.time() - began

    assert run(work) == pytest.approx(5.0, abs=0.5)


def test_aiohttp_serves_and_asks_over_it_as_over_any_network():
    async def answer(request):
        return web.Response(text=f"you sent {len(await request.read())} bytes")

    async def work(loop):
        loop.network.segments = (1, 50)
        app = web.Application()
        app.router.add_post("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "10.0.0.2", 80).start()
        async with aiohttp.ClientSession() as http, http.post("http://a-name.test.:80/", data=b"x") as response:
            assert response.status == 200

    with pytest.raises(aiohttp.ClientConnectorError):  # a name stands for itself, and nobody listens there
        run(work)

    async def works(loop):
        loop.network.segments = (1, 50)
        app = web.Application()
        app.router.add_post("/", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "10.0.0.2", 80).start()
        async with aiohttp.ClientSession() as http, http.post("http://10.0.0.2/", data=b"x" * 100_000) as response:
            text = await response.text()
        await runner.cleanup()
        return text

    assert run(works) == "you sent 100000 bytes"
