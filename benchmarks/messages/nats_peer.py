"""NATS: its server in Go between two Python processes with nats-py, one that answers and one that asks."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from benchmarks.messages.node_client import deep
from benchmarks.messages.stopwatch import rate

__all__ = ["NatsClient", "NatsResponder"]

MESSAGE = b"x" * 100
WINDOW = 2000
CONNECT = 10.0  # seconds until the server listens


class NatsResponder:
    """Starts the server, and answers."""

    async def start(self) -> None:
        """Start the server, connect and subscribe."""
        import nats

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # Beside the interpreter: that of the package, and not one that happens to be installed.
        program = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or "nats-server"
        self._server = await asyncio.create_subprocess_exec(program, "-a", "127.0.0.1", "-p", str(port))
        self._url = f"nats://127.0.0.1:{port}"
        self._received = 0
        try:
            await _listening(port)
            self._connection: Any = await nats.connect(self._url)
            await self._connection.subscribe("bench.echo", cb=self._echo)
            await self._connection.subscribe("bench.add", cb=self._add)
            await self._connection.subscribe("bench.count", cb=self._count)
            await self._connection.flush()
        except BaseException:
            await self._end_server()
            raise

    async def stop(self) -> None:
        """Disconnect, and end the server."""
        await self._connection.close()
        await self._end_server()

    async def address(self) -> str:
        """Of the server."""
        return self._url

    async def _echo(self, message: Any) -> None:
        await message.respond(message.data)

    async def _add(self, _: Any) -> None:
        self._received += 1

    async def _count(self, message: Any) -> None:
        await message.respond(str(self._received).encode())

    async def _end_server(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._server.terminate()
        await self._server.wait()


class NatsClient:
    """Asks, over one connection."""

    def __init__(self, address: str) -> None:
        self._url = address

    async def start(self) -> None:
        """Connect."""
        import nats

        self._connection: Any = await nats.connect(self._url)

    async def stop(self) -> None:
        """Disconnect."""
        await self._connection.close()

    async def calls(self, seconds: float, depth: int) -> float:
        """Requests a second with `depth` of them in flight."""
        request = self._connection.request

        async def call() -> object:
            return await request("bench.echo", MESSAGE, timeout=30)

        return await rate(deep(call, depth), seconds, batch=10 * depth)

    async def sends(self, seconds: float) -> float:
        """Published messages a second that have been handled: after each window their number is asked for."""
        connection = self._connection
        publish, request = connection.publish, connection.request
        sent = int((await request("bench.count", b"")).data)

        async def step(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                await publish("bench.add", MESSAGE)
            sent += count
            while int((await request("bench.count", b"", timeout=30)).data) < sent:  # noqa: ASYNC110 - they are in another process
                await asyncio.sleep(0)

        async with asyncio.timeout(seconds + 30):
            return await rate(step, seconds, batch=WINDOW)


async def _listening(port: int) -> None:
    async with asyncio.timeout(CONNECT):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                await writer.wait_closed()
                return
