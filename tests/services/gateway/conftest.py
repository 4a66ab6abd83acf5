"""A gateway on a real socket, before a small inference service that is told what to say, or before a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from microkernel.errors import MicrokernelError, NotFound
from microkernel.message import current_call
from microkernel.service import Service, handles, streams
from microkernel.testing import TestKernel
from services.gateway.service import Gateway
from services.inference.messages import Chat, LoadedModel, Piece, Usage

MODELS = [
    LoadedModel(name="beta", state="ready", created=2, context_length=64),
    LoadedModel(name="org/alpha", state="ready", default=True, created=1, context_length=2048, parameters=135),
    LoadedModel(name="gamma", state="loading", why="weights 12 of 90 MiB"),
    LoadedModel(name="aardvark", state="ready", created=3),
    LoadedModel(name="abacus", state="stored", created=4),
    LoadedModel(name="delta", state="failed", why="its file is truncated"),
]


class Script:
    """What the inference service of a test says; its incarnations share it."""

    def __init__(self) -> None:
        self.words: list[str] = ["Hello", ",", " world"]
        self.error: MicrokernelError | Exception | None = None
        self.error_after: int | None = None  # words; None raises before the first piece
        self.finish_reason: str | None = "stop"
        self.hold_after: int | None = None  # words, after which it waits for `go_on`
        self.endless = False
        self.go_on = asyncio.Event()
        self.ready = asyncio.Event()
        self.ready.set()
        self.holding = asyncio.Event()
        self.ended = asyncio.Event()
        self.asked: list[Chat] = []
        self.calls: list[Any] = []
        self.said = 0


class Inference(Service):
    """Streams the words of the script."""

    name = "inference"
    essential = True
    drain_timeout = 0.2

    def __init__(self, script: Script) -> None:
        self.script = script

    async def ready(self) -> None:
        await self.script.ready.wait()

    @streams
    async def chat(self, message: Chat) -> AsyncIterator[Piece]:
        script = self.script
        script.asked.append(message)
        script.calls.append(current_call())
        if message.model not in {None, *(model.name for model in MODELS)}:
            raise NotFound(f"no model is named '{message.model}'", field="model")
        if script.error is not None and script.error_after is None:
            raise script.error
        try:
            yield Piece(pid=7, model=message.model or "org/alpha")
            for number, word in enumerate(script.words):
                if script.error is not None and script.error_after == number:
                    raise script.error
                if script.hold_after == number:
                    script.holding.set()
                    await script.go_on.wait()
                script.said += 1
                yield Piece(text=word)
            while script.endless:
                await asyncio.sleep(0)
                script.said += 1
                yield Piece(text="x" * 4096)
            usage = Usage(prompt_tokens=5, completion_tokens=len(script.words))
            if script.finish_reason is not None:
                yield Piece(finish_reason=script.finish_reason, usage=usage)
        finally:
            script.ended.set()

    @handles(name="list")
    async def models(self) -> list[LoadedModel]:
        return MODELS


class Site:
    """A node with a gateway, as its clients see it."""

    def __init__(self, system: TestKernel, url: str, script: Script | None = None) -> None:
        self.system = system
        self.url = url
        self.script = script  # None where a model answers
        self.port = int(url.rpartition(":")[2])

    def openai(self, token: str | None = None) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=token or self.system.token, max_retries=0)

    def http(self, token: str | None = "") -> aiohttp.ClientSession:
        """A client with the node's token, another one, or (None) without."""
        given = self.system.token if token == "" else token
        headers = {} if given is None else {"Authorization": f"Bearer {given}"}
        return aiohttp.ClientSession(self.url, headers=headers)

    async def raw(
        self, *, body: bytes = b"", path: str = "/v1/chat/completions", **headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A socket on which a chat request was sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {self.system.token}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        writer.write(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        await writer.drain()
        return reader, writer


Opener = Callable[..., AbstractAsyncContextManager[Site]]


def scripted(script: Script) -> type[Inference]:
    """An inference service, each incarnation of which follows `script`."""

    class Scripted(Inference):
        def __init__(self) -> None:
            super().__init__(script)

    return Scripted


@pytest.fixture(scope="module")
def eloquent() -> type[Inference]:
    """An inference service that says hello to everybody, for a whole module."""
    return scripted(Script())


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def open_site(script: Script) -> Opener:
    """Opens a site with some settings of the gateway."""

    @asynccontextmanager
    async def open_it(
        *, wait_ready: bool = True, services: tuple[Any, ...] = (), **settings: Any
    ) -> AsyncIterator[Site]:
        section = {"port": 0, "drain_seconds": 0.0, **settings}
        node = TestKernel(scripted(script), *services, Gateway, settings={"gateway": section}, wait_ready=wait_ready)
        async with node as system:
            address = await system.call("gateway.address")
            yield Site(system, address.url, script)

    return open_it


@pytest.fixture
async def site(open_site: Opener) -> AsyncIterator[Site]:
    """A site with default settings."""
    async with open_site() as opened:
        yield opened


@asynccontextmanager
async def answering(model: Path) -> AsyncIterator[Site]:
    """A site where a real engine answers with `model`."""
    from inference_node import SERVICES  # with torch: seconds, which the other modules here do not wait for

    settings = {"gateway": {"port": 0, "drain_seconds": 0.0}, "inference": {"model": str(model)}}
    async with TestKernel(*SERVICES, Gateway, settings=settings) as system:
        address = await system.call("gateway.address")
        yield Site(system, address.url)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
async def client(tiny: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    """The stock client of a node that answers with a tiny model."""
    async with answering(tiny) as site, site.openai() as made:
        yield made


@pytest.fixture
async def default_site(default_model: Path) -> AsyncIterator[Site]:
    """A site that answers with the default model."""
    async with answering(default_model) as site:
        yield site
