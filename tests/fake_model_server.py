"""A server that answers with the bytes of a script, however wild: HTTP by hand, so that nothing mends it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

EVENTS = {"Content-Type": "text/event-stream"}
MODELS = {"object": "list", "data": [{"id": "m", "owned_by": "somebody", "created": 3, "max_model_len": 512}]}


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def said(text: str | None = None, *, finish: str | None = None, **delta: Any) -> bytes:
    """A chunk of a chat."""
    body = delta if text is None else {"content": text, **delta}
    return event(choices=[{"index": 0, "delta": body, "finish_reason": finish}])


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    told = {"prompt_tokens": prompt, "completion_tokens": completion}
    return event(choices=[], usage={**told, "prompt_tokens_details": {"cached_tokens": cached}})


DONE = b"data: [DONE]\n\n"
HELLO = said("", role="assistant") + said("Hel") + said("lo") + said(finish="stop") + usage(5, 2, 1) + DONE


class Exchange:
    """One request, and what is written back."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes, writer: Any) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self._writer = writer

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def start(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """A head; the end of the body is where the connection closes."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or EVENTS).items())
        await self.write(f"HTTP/1.1 {status} So\r\n{lines}Connection: close\r\n\r\n".encode())

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def whole(self, body: bytes, status: int = 200, **headers: str) -> None:
        """An answer with its length, after which the connection stays."""
        head = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        await self.write(f"HTTP/1.1 {status} So\r\n{lines}\r\n".encode() + body)

    def reset(self) -> None:
        """Cut the connection without a goodbye."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Answerer = Callable[[Exchange], Awaitable[None]]


class FakeServer:
    """`answer` writes what a POST gets, `list_models` what a GET gets."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.open = 0
        self.closed = asyncio.Event()  # a connection was closed by the other end
        self.answer: Answerer = hello
        self.list_models: Answerer = models
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def posts(self) -> list[Exchange]:
        return [each for each in self.exchanges if each.method == "POST"]

    async def __aenter__(self) -> FakeServer:
        self._tasks: set[asyncio.Task[None]] = set()
        await self.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the door and cut all connections."""
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            if (exchange := await self._read(reader, writer)) is not None:
                self.exchanges.append(exchange)
                work = asyncio.ensure_future((self.answer if exchange.method == "POST" else self.list_models)(exchange))
                gone = asyncio.ensure_future(reader.read(1)) if exchange.method == "POST" else None
                waits = {work} if gone is None else {work, gone}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    self.closed.set()
                    work.cancel()
                    return
                if gone is not None:
                    gone.cancel()
                work.result()
                return  # each connection has one exchange, whatever was said of keeping it
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed.set()
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
        head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
        if not head:
            return None
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = first.split(" ")
        return Exchange(method, path, headers, body, writer)


async def hello(exchange: Exchange) -> None:
    await exchange.start()
    await exchange.write(HELLO)


async def models(exchange: Exchange) -> None:
    await exchange.whole(json.dumps(MODELS).encode(), Content_Type="application/json")


def listing(*names: str, owned_by: str = "somebody") -> Answerer:
    async def answer(exchange: Exchange) -> None:
        body = {"object": "list", "data": [{"id": name, "owned_by": owned_by} for name in names]}
        await exchange.whole(json.dumps(body).encode())

    return answer


def says(*parts: bytes, **headers: str) -> Answerer:
    """Writes each part, with the loop's turn between two."""

    async def answer(exchange: Exchange) -> None:
        await exchange.start(headers=headers or None)
        for part in parts:
            await exchange.write(part)
            await asyncio.sleep(0.001)

    return answer


def refuses(status: int, body: bytes = b"", **headers: str) -> Answerer:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(body, status, **headers)

    return answer
