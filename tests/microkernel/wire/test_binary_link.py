"""Arrays and long messages over a real socket, with a real kernel behind: whole journeys."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer
from wire_node import ALL, authenticate

import microkernel as mk
from microkernel import Array, Message, Service, handles, streams
from microkernel.errors import Invalid, TooBig
from microkernel.inputs import Inputs
from microkernel.testing import TestKernel
from microkernel.wire import binary
from microkernel.wire.codec import CloseCode
from microkernel.wire.frames import frame_head
from microkernel.wire.limits import Limits
from microkernel.wire.server import WireServer

MIB = 2**20


class Tensor(Message):
    tensor: Array


class Blob(Message):
    raw: bytes


class Blobs(Message):
    blobs: tuple[Blob, ...]


class Size(Message):
    bytes: int
    count: int = 1


class Tensors(Service):
    """Takes arrays and gives them."""

    name = "tensors"

    async def start(self) -> None:
        self.release = asyncio.Event()
        self.last: Array | None = None

    @handles
    async def twice(self, message: Tensor) -> Array:
        return Array.from_(np.asarray(message.tensor) * 2)

    @handles
    async def keep(self, message: Tensor) -> int:
        self.last = message.tensor
        return message.tensor.nbytes

    @handles
    async def echo(self, message: Blob) -> Blob:
        return message

    @handles
    async def echo_all(self, message: Blobs) -> Blobs:
        return message

    @streams
    async def echo_each(self, inputs: Inputs[Blobs]) -> AsyncIterator[Blobs]:
        async for item in inputs:
            yield item

    @handles
    async def zeros(self, message: Size) -> Array:
        return Array(bytes(message.bytes))

    @handles
    async def bfloat16(self) -> Array:
        return Array.from_(torch.arange(6, dtype=torch.bfloat16).reshape(2, 3))

    @streams
    async def rows(self, message: Size) -> AsyncIterator[Any]:
        for number in range(message.count):
            yield {"number": number, "row": Array(bytes([number]) * message.bytes)}

    @handles
    async def quick(self) -> int:
        return 1


class Here:
    """What a test holds of the node."""

    def __init__(self, tensors: Tensors, kernel: TestKernel, url: str) -> None:
        self.tensors = tensors
        self.kernel = kernel
        self.url = url


@asynccontextmanager
async def node(**limits: Any) -> AsyncIterator[Here]:
    tensors = Tensors()
    async with TestKernel(tensors) as kernel:
        wire = WireServer(kernel.kernel.port, authenticate, node="n1", epoch="e1", limits=Limits(**limits))
        app = web.Application()
        app.router.add_get("/mk", wire.handle)
        async with TestServer(app, host="127.0.0.1") as server:
            yield Here(tensors, kernel, str(server.make_url("/")))
            await wire.close(drain=0.0)


async def test_short_bytes_beside_long_ones_come_as_bytes_too() -> None:
    blobs = Blobs((Blob(b"short"), Blob(b"\xff" * 20_000), Blob(b"")))
    async with node() as here, mk.connect(here.url, ALL) as system:
        assert await system.call("tensors.echo_all", blobs, result_type=Blobs) == blobs
        async with system.stream("tensors.echo_each", result_type=Blobs) as stream:
            await stream.send(blobs)
            await stream.finish()
            assert [item async for item in stream] == [blobs]


async def test_an_array_goes_to_a_handler_and_another_comes_back() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        sent = np.arange(12, dtype=np.float32).reshape(3, 4)
        got = await system.call("tensors.twice", tensor=Array.from_(sent))
        assert isinstance(got, Array)
        assert np.array_equal(np.asarray(got), sent * 2)
        assert await system.call("tensors.twice", Tensor(Array.from_(sent)), result_type=Array) == got


@pytest.mark.parametrize("size", [0, 1, 100, binary.FRAME_BYTES, MIB, 5 * MIB + 3])
async def test_an_array_of_any_size_crosses_both_ways(size: int) -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        data = Array(np.random.default_rng(size).bytes(size))
        assert await system.call("tensors.keep", tensor=data) == size
        assert here.tensors.last == data
        assert (await system.call("tensors.zeros", bytes=size)).nbytes == size


async def test_inside_the_process_the_handler_gets_the_same_array() -> None:
    async with node() as here:
        sent = Array(bytes(100))
        await here.kernel.call("tensors.keep", tensor=sent)
        assert here.tensors.last is sent


async def test_bfloat16_comes_back_bit_by_bit() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        got = await system.call("tensors.bfloat16")
        tensor = torch.frombuffer(bytearray(got.view()), dtype=torch.bfloat16).reshape(got.shape)
        assert torch.equal(tensor, torch.arange(6, dtype=torch.bfloat16).reshape(2, 3))


async def test_long_bytes_cross_as_bytes_and_untyped_as_the_text_they_are_in_json() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        raw = bytes(range(256)) * 8192
        assert (await system.call("tensors.echo", raw=raw, result_type=Blob)).raw == raw
        assert isinstance((await system.call("tensors.echo", raw=raw)).raw, str)


async def test_a_stream_of_long_items_comes_whole_and_in_order() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        items = [item async for item in system.stream("tensors.rows", bytes=MIB, count=12, credit=3)]
        assert [(item.number, item.row.nbytes, item.row.view()[7]) for item in items] == [
            (number, MIB, number) for number in range(12)
        ]


async def test_many_long_calls_and_short_ones_at_once_all_come_back() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        long = [system.call("tensors.zeros", bytes=2 * MIB + number) for number in range(12)]
        short = [system.call("tensors.quick") for _ in range(50)]
        results = await asyncio.gather(*long, *short)
        assert [each.nbytes for each in results[:12]] == [2 * MIB + number for number in range(12)]
        assert results[12:] == [1] * 50


async def test_a_call_that_is_cancelled_on_its_way_leaves_a_link_that_works() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        for _ in range(5):
            calls = [asyncio.create_task(system.call("tensors.keep", tensor=Array(bytes(8 * MIB)))) for _ in range(3)]
            await system.call("tensors.quick")
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        assert (await system.call("tensors.zeros", bytes=3 * MIB)).nbytes == 3 * MIB


async def test_what_is_longer_than_the_limit_is_an_error_and_the_link_goes_on() -> None:
    async with node(binary=MIB) as here, mk.connect(here.url, ALL) as system:
        with pytest.raises(TooBig, match=r"the message to tensors\.keep takes 2\.0 MiB, .* a message holds 1\.0 MiB"):
            await system.call("tensors.keep", tensor=Array(bytes(2 * MIB)))
        with pytest.raises(TooBig, match=r"the result of tensors\.zeros takes 2\.0 MiB"):
            await system.call("tensors.zeros", bytes=2 * MIB)
        assert await system.call("tensors.quick") == 1


async def test_an_array_of_the_wrong_kind_names_its_field() -> None:
    async with node() as here, mk.connect(here.url, ALL) as system:
        with pytest.raises(Invalid, match="Expected an array") as caught:
            await system.call("tensors.keep", tensor=[1, 2, 3])
        assert caught.value.field == "tensor"


async def test_a_client_that_takes_no_buffers_gets_them_as_text() -> None:
    async with node() as here, raw(here.url) as client:
        await client.send_json({"t": "call", "id": 1, "to": "tensors.zeros", "body": {"bytes": 3}})
        result = (await client.receive()).json()
        assert result["body"] == {"dtype": "uint8", "shape": [3], "data": "AAAA"}
        await client.send_json({"t": "call", "id": 2, "to": "tensors.keep", "body": {"tensor": result["body"]}})
        assert (await client.receive()).json()["body"] == 3


async def test_a_script_may_send_a_frame_by_hand() -> None:
    async with node() as here, raw(here.url) as client:
        json = b'{"t":"call","id":1,"to":"tensors.keep","body":{"tensor":{"$buffer":0,"dtype":"int16","shape":[2]}}}'
        head = bytes([0xA7, 1, 0, 0]) + len(json).to_bytes(4, "little") + bytes([1, 0, 0, 0, 0, 0, 0, 0])
        lengths = (4).to_bytes(8, "little")
        padding = bytes(-(len(head) + len(lengths) + len(json)) % 16)
        await client.send_bytes(head + lengths + json + padding + b"\1\0\2\0" + bytes(12))
        assert (await client.receive()).json() == {"t": "result", "id": 1, "body": 4}
        assert np.asarray(here.tensors.last).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        (b"\xa7\x01", CloseCode.PROTOCOL, "fewer than the 16 of its header"),
        (bytes(100), CloseCode.PROTOCOL, "begins with 0x00, not with 0xA7"),
        (b"\xa7\x01\x04" + bytes(13), CloseCode.BINARY, "send without CRC32C"),
        (b"\xa7" * (binary.LONGEST_FRAME + 1), CloseCode.TOO_BIG, "send it in parts"),
        (b"\xa7" * (2 * binary.LONGEST_FRAME + 1), 1009, ""),
    ],
    ids=["cut", "foreign", "checksum", "long", "very long"],
)
async def test_what_is_no_binary_frame_ends_the_link_with_a_code_and_a_reason(
    frame: bytes, code: int, reason: str
) -> None:
    async with node() as here, raw(here.url) as client:
        await client.send_bytes(frame)
        message = await client.receive()
        assert client.close_code == code
        assert reason in (message.extra or "")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 2**20])
def test_the_head_of_a_frame_is_what_a_websocket_expects(size: int) -> None:
    head = frame_head(size)
    assert head[0] == 0x82
    length = head[1]
    assert size == (length if length < 126 else int.from_bytes(head[2:], "big"))
    assert len(head) == (2 if size < 126 else 4 if size < 65536 else 10)


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A client without our library, greeted."""
    async with aiohttp.ClientSession() as http, http.ws_connect(url + "mk", protocols=("mk.v1",)) as client:
        await client.receive()
        await client.send_json({"t": "auth", "v": 1, "token": ALL})
        await client.receive()
        yield client
