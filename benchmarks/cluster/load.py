"""A client that asks over HTTP as fast as sockets allow: its bytes are made once, and answers are only counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import msgspec

from benchmarks.messages.stopwatch import percentile

__all__ = ["Load"]

CHAT = {"model": "", "messages": [{"role": "user", "content": "Say yes, and nothing else. " * 8}]}
HEAD_END = b"\r\n\r\n"
EVENT = b'"content":"Yes."'  # the first text of a streamed answer
LENGTH = b"content-length:"
LAST_CHUNK = b"0\r\n\r\n"


class Target(msgspec.Struct, frozen=True):
    """Where to ask for a chat."""

    host: str
    port: int
    token: str = ""

    def request(self, **fields: object) -> bytes:
        """All of it, as it goes out."""
        body = msgspec.json.encode({**CHAT, **fields})
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Authorization: Bearer {self.token}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body


class Broken(Exception):
    """An answer that is none."""


class _Whole(asyncio.Protocol):
    """One connection that asks for whole answers, the next as soon as one has come."""

    def __init__(self, request: bytes, came: Callable[[], bool]) -> None:
        self._request = request
        self._came = came
        self._had = b""
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._had += data
        end = self._had.find(HEAD_END)
        if end < 0:
            return
        if not self._had.startswith(b"HTTP/1.1 200"):
            self._end(Broken(self._had[:300].decode(errors="replace")))
            return
        _, said, length = self._had[:end].lower().partition(LENGTH)
        if said:
            if len(self._had) < end + len(HEAD_END) + int(length.split(b"\r\n", 1)[0]):
                return
        elif not self._had.endswith(LAST_CHUNK):
            return
        self._had = b""
        if self._came():
            self._transport.write(self._request)
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error or Broken("the connection was closed"))

    def _end(self, error: Exception | None) -> None:
        if not self.over.done():
            if error is None:
                self.over.set_result(None)
            else:
                self.over.set_exception(error)
        self._transport.close()


class Load:
    """Asks whom it is told to."""

    def __init__(self, _address: str = "") -> None:
        """Where to ask is told with each question."""

    async def start(self) -> None:
        """Nothing is open yet."""

    async def stop(self) -> None:
        """Nothing is open any more."""

    async def rate(self, door: dict[str, object], seconds: float, connections: int) -> dict[str, float]:
        """Answers a second over so many connections, of which each has one question at a time; the first ones warm up.

        `all` counts those too, `client` is the share of a core that this process had.
        """
        target = msgspec.convert(door, Target)
        first, _ = await self._run(target, 0.2 * seconds, connections)
        busy = time.process_time()
        count, took = await self._run(target, seconds, connections)
        return {"rate": count / took, "all": first + count, "client": (time.process_time() - busy) / took}

    async def first_token(
        self, near: dict[str, object], far: dict[str, object], count: int, warm_up: int = 20
    ) -> dict[str, float]:
        """p50 of seconds from asking to the first text of a streamed answer, of two gateways asked in turn."""
        doors = [msgspec.convert(each, Target) for each in (near, far)]
        links = [await asyncio.open_connection(each.host, each.port) for each in doors]
        found: list[list[float]] = [[], []]
        try:
            for number in range(warm_up + count):
                for place in (0, 1) if number % 2 else (1, 0):
                    took = await _first_token(*links[place], doors[place].request(stream=True))
                    if number >= warm_up:
                        found[place].append(took)
        finally:
            for _, writer in links:
                writer.close()
        near50, far50 = (percentile(sorted(each), 0.5) for each in found)
        return {"near": near50, "far": far50, "added": far50 - near50}

    async def _run(self, target: Target, seconds: float, connections: int) -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        request, began = target.request(), time.perf_counter()
        ends, count = began + seconds, 0

        def came() -> bool:
            nonlocal count
            count += 1
            return time.perf_counter() < ends

        made = [
            await loop.create_connection(lambda: _Whole(request, came), target.host, target.port)
            for _ in range(connections)
        ]
        await asyncio.gather(*(protocol.over for _, protocol in made))
        return count, time.perf_counter() - began


async def _first_token(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> float:
    began, took, had = time.perf_counter(), 0.0, b""
    writer.write(request)
    while not had.endswith(LAST_CHUNK):
        data = await reader.read(1 << 16)
        if not data:
            raise Broken(had[:300].decode(errors="replace"))
        had += data
        if not took and EVENT in had:
            took = time.perf_counter() - began
    if not took:
        raise Broken(had[:300].decode(errors="replace"))
    return took
