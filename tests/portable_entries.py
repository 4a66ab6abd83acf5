"""Entries that tests send into services, and read out of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from tree_user import send

from microkernel.config import Config
from microkernel.kernel import Kernel
from microkernel.plugins import Plugin
from microkernel.portable import EntryPiece, Import, Imported
from microkernel.service import Service


async def take_in(port, service: str, pieces: Iterable[EntryPiece]) -> Imported:
    """What a service says once it has taken all in."""
    async with port.stream(f"{service}.import", Import()) as stream:
        sending = asyncio.create_task(send(stream, pieces))
        try:
            return await anext(stream)
        finally:
            sending.cancel()
            await asyncio.wait([sending])


async def exported(port, service: str, **asked) -> list[EntryPiece]:
    """All that a service gives."""
    return [piece async for piece in port.stream(f"{service}.export", **asked)]


def contents_of(pieces: Iterable[EntryPiece]) -> dict[str, bytes]:
    """Entries with their bytes."""
    found: dict[str, bytes] = {}
    name = ""
    for piece in pieces:
        name = piece.name or name
        found[name] = found.get(name, b"") + piece.content
    return found


@asynccontextmanager
async def restoring(root: Path, *kinds: type[Service]):
    """The port of a node that is being restored."""
    kernel = Kernel(Config(), root, [Plugin(kind.name, "test", kind=kind) for kind in kinds], restoring=True)
    try:
        await kernel.boot()
        yield kernel.port
    finally:
        await kernel.shutdown()
