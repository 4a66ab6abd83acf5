"""Local files that are sent to the tree, or made of what is in it, a piece at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, BinaryIO

from services.filesystem.client.upload import PIECE

__all__ = ["open_local", "read_in", "write_out"]


async def read_in(file: BinaryIO, callback: Any) -> AsyncGenerator[bytes, None]:
    """A local file in pieces; `callback` is told of each that has left."""
    while piece := await asyncio.to_thread(file.read, PIECE):
        yield piece
        callback.relative_update(len(piece))


async def write_out(pieces: AsyncGenerator[bytes, None], file: BinaryIO, callback: Any) -> None:
    """Pieces into a local file, some at once: a thread for each would cost more than it writes."""
    waiting: list[bytes] = []
    size = 0
    async for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= PIECE:
            await asyncio.to_thread(file.writelines, waiting)
            callback.relative_update(size)
            waiting, size = [], 0
    await asyncio.to_thread(file.writelines, waiting)
    callback.relative_update(size)


def open_local(path: str | os.PathLike[str]) -> BinaryIO:
    """A local file to be written, in folders that are made where they are missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path).open("wb")
