"""Devices of a test that give whole answers as they are told to, and a driver that finds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from microkernel.driver import DeviceFacts, Driver
from microkernel.errors import MicrokernelError
from microkernel.model_server import Generate, Generated, ModelServer, ServedModel, Spent
from microkernel.plugins import Plugin

__all__ = ["Parrot", "parrots"]


class Parrot(ModelServer):
    """Says `words`, and then fails with `error` where there is one; `hold` keeps it before each word but the first."""

    def __init__(self, name: str, *models: str, places: int = 8, weight: float = 1.0, queue: int = 256) -> None:
        self.facts = DeviceFacts(name=name, kind="parrot", model="a bird", cores=0, threads=0, memory_bytes=0)
        self.weight = weight
        self.queue = queue
        self.words: list[str] = ["Hello", ",", " world"]
        self.error: MicrokernelError | Exception | None = None
        self.ill: str | None = None
        self.away: str | None = None
        self.hold: asyncio.Event | None = None
        self.asked: list[Generate] = []
        self.looks = 0
        self.running = 0
        self.most = 0
        self.is_open = False
        self._models = tuple(ServedModel(name=model, context_length=512, created=7) for model in models)
        self._places = places

    @property
    def places(self) -> int:
        return self._places

    @property
    def models(self) -> Sequence[ServedModel]:
        return self._models

    def fault(self) -> str | None:
        return self.ill

    def lost(self) -> str | None:
        return self.away

    async def open(self) -> None:
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def look(self) -> float:
        self.looks += 1
        return 3600.0

    async def generate(self, ask: Generate) -> AsyncGenerator[Generated, None]:
        self.asked.append(ask)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            yield Generated()
            for number, word in enumerate(self.words):
                if number and self.hold is not None:
                    await self.hold.wait()
                yield Generated(text=word, tokens=1)
            if self.error is not None:
                raise self.error
            spent = Spent(prompt_tokens=5, completion_tokens=len(self.words), cached_tokens=2)
            yield Generated(finish_reason="stop", spent=spent)
        finally:
            self.running -= 1


def parrots(module: Any, monkeypatch: Any, *birds: ModelServer) -> None:
    """Have the devices service find these too, whatever drivers are installed."""
    discover: Callable[..., Any] = module.discover_drivers

    class Parrots(Driver):
        name = "parrot"

        def find(self) -> Sequence[ModelServer]:
            return birds

    async def with_parrots(**options: Any) -> list[Plugin]:
        installed = [plugin for plugin in await discover(**options) if plugin.name != "parrot"]
        return [*installed, Plugin("parrot", "here", kind=Parrots)]

    monkeypatch.setattr(module, "discover_drivers", with_parrots)
