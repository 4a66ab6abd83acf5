"""A node that answers with a tiny model, and how tests talk with it."""

from __future__ import annotations

from contextlib import asynccontextmanager

from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.inference.service import Inference
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler

HELLO = [{"role": "user", "content": "Hello"}]
SERVICES = (Devices, Memory, Models, Scheduler, Inference)


@asynccontextmanager
async def node(tiny, **settings):
    async with TestKernel(*SERVICES, settings={"inference": {"model": str(tiny), **settings}}) as system:
        yield system


async def answer(system, **fields):
    """The text of a chat and its last piece."""
    pieces = [piece async for piece in system.stream("inference.chat", **{"messages": HELLO, **fields})]
    return "".join(piece.text for piece in pieces), pieces[-1]


async def reading(stream):
    """A stream whose answer has begun."""
    async for piece in stream:
        if piece.text:
            return piece
    raise AssertionError("no text came")
