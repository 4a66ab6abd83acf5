"""aiohttp's websocket as it is: a server that sends back what comes, and a client; no protocol of messages at all."""

from __future__ import annotations

import gc

import aiohttp
import numpy as np
import psutil
from aiohttp import web

from benchmarks.messages.stopwatch import percentiles, rate, times

__all__ = ["EchoClient", "EchoServer"]

MESSAGE = "x" * 100
TENSOR = 2**20
UPGRADE = "/echo"


class EchoServer:
    """Listens on a free port."""

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.add_routes([web.get(UPGRADE, self._echo), web.get("/tensors", self._tensors)])
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()

    async def stop(self) -> None:
        """Close."""
        await self._runner.cleanup()

    async def address(self) -> str:
        """Where it listens."""
        host, port, *_ = self._runner.addresses[0]
        return f"http://{host}:{port}"

    async def memory(self) -> int:
        """Resident bytes, after a collection."""
        gc.collect()
        return psutil.Process().memory_info().rss

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    async def _tensors(self, request: web.Request) -> web.WebSocketResponse:
        """As many tensors as each text asks for."""
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        tensor = np.arange(TENSOR // 4, dtype=np.float32).tobytes()
        async for message in socket:
            for _ in range(int(message.data)):
                await socket.send_bytes(tensor)
        return socket


class EchoClient:
    """Holds one websocket."""

    def __init__(self, address: str) -> None:
        self._url = address

    async def start(self) -> None:
        """Connect."""
        self._http = aiohttp.ClientSession()
        self._socket = await self._http.ws_connect(self._url + UPGRADE, compress=0)
        self._tensors = await self._http.ws_connect(self._url + "/tensors", compress=0, max_msg_size=0)

    async def stop(self) -> None:
        """Close it."""
        await self._tensors.close()
        await self._socket.close()
        await self._http.close()

    async def round_trips(self, seconds: float) -> dict[str, float]:
        """Seconds of one message of 100 bytes at a time, which comes back."""
        send, receive = self._socket.send_str, self._socket.receive_str

        async def step() -> None:
            await send(MESSAGE)
            await receive()

        found = await times(step, seconds)
        return {**percentiles(found), "count": len(found)}

    async def calls(self, seconds: float, depth: int) -> float:
        """Round trips a second with `depth` of them in flight: what comes back lets the next one go."""
        send, receive = self._socket.send_str, self._socket.receive_str

        async def step(count: int) -> None:
            for _ in range(depth):
                await send(MESSAGE)
            for _ in range(count - depth):
                await receive()
                await send(MESSAGE)
            for _ in range(depth):
                await receive()

        return await rate(step, seconds, batch=10 * depth)

    async def tensors(self, seconds: float, count: int) -> float:
        """Bytes a second of tensors of 1 MiB that the server sends, `count` for each request; looked at as ours are."""
        socket = self._tensors

        async def step(batch: int) -> None:
            await socket.send_str(str(batch))
            for _ in range(batch):
                values = np.frombuffer(await socket.receive_bytes(), np.float32)
                assert values.nbytes == TENSOR
                assert values[-1] == TENSOR // 4 - 1

        return await rate(step, seconds, batch=count) * TENSOR
