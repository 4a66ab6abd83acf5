"""The files of another node, on their way into the folder of one that is being restored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from microkernel.portable import EntryPiece, take_in_files
from microkernel.threads import to_its_end
from services.filesystem.remote.mounts import put_mounts
from services.filesystem.stored.imported import ImportedVolume

__all__ = ["restored"]


async def restored(folder: Path, pieces: AsyncIterator[EntryPiece], name: str) -> tuple[str, ...]:
    """Take all in; what is to be told of it. Raises `DataLoss` for what is no volume, and `PreconditionFailed`."""
    volume = await to_its_end(ImportedVolume, folder)
    await take_in_files(pieces, volume, name)
    if volume.mounts is not None:
        await asyncio.to_thread(put_mounts, folder, volume.mounts)
    if volume.damaged:
        return (
            f"{volume.damaged} contents were damaged or too large when they were backed up: mk fs scrub lists them",
        )
    return ()
