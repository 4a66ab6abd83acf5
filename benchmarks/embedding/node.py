"""Ours: a node with its default model, asked for vectors through the kernel."""

from __future__ import annotations

import statistics
import time

from benchmarks.default_model import encoding_node
from benchmarks.embedding.texts import texts_of
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.inference.messages import Embed
from services.inference.service import Inference
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler

__all__ = ["Node"]

SERVICES = (Devices, Memory, Models, Scheduler, Inference)


class Node:
    """Boots a node and asks it."""

    async def start(self) -> None:
        """Boot, and have the encoder loaded."""
        self._system = TestKernel(*SERVICES, settings=encoding_node())
        await self._system.__aenter__()
        await self._embed(["warm"])

    async def stop(self) -> None:
        """Shut down."""
        await self._system.__aexit__(None, None, None)

    async def index(self, kind: str, count: int) -> dict[str, float]:
        """Texts a second, all asked at once."""
        texts = texts_of(kind, count)
        began = time.perf_counter()
        await self._embed(texts)
        return {"texts": len(texts) / (time.perf_counter() - began)}

    async def search(self, count: int) -> dict[str, float]:
        """Seconds for one text, one after the other; the median."""
        seconds = []
        for text in texts_of("lines", count):
            began = time.perf_counter()
            await self._embed([text])
            seconds.append(time.perf_counter() - began)
        return {"one": statistics.median(seconds)}

    async def _embed(self, texts: list[str]) -> None:
        await self._system.call("inference.embed", Embed(texts=texts))
