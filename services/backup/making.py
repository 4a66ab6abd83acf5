"""One archive in the making: its parts are asked for one after another, a few MiB ahead of who reads it.

Whoever gives them holds on to that for as long as it takes, so a reader that takes nothing for a while is cut. The
work is a task of the service's: the reader gets what it has made, and leaving ends it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from microkernel.errors import Aborted, MicrokernelError, Unavailable, copy_of, from_exception
from microkernel.message import convert
from microkernel.portable import EXPORT, MOST_TOGETHER, STEP, EntryPiece, Export
from microkernel.service import Service
from microkernel.threads import to_its_end
from services.backup.manifest import Manifest
from services.backup.messages import ArchivePiece, BackupSummary, PartSummary
from services.backup.writer import ArchiveWriter

__all__ = ["Give", "Making", "batches", "exports"]

AHEAD = 4  # pieces of about a MiB that wait for the reader

Give = Callable[[str], AsyncGenerator[EntryPiece, None]]
"""The pieces of the entries of a part, from whoever has them."""


class Making:
    """Makes the archive of which `manifest` tells."""

    def __init__(self, service: Service, manifest: Manifest, give: Give, *, patience: float) -> None:
        """`give` has the pieces of a part; `patience` is how many seconds the reader may take nothing."""
        self._service = service
        self._give = give
        self._manifest = manifest
        self._patience = patience
        self._writer = ArchiveWriter(manifest)
        self._parts: list[PartSummary] = []
        self._written = 0
        self._waiting: deque[ArchivePiece] = deque()
        self._news, self._room = asyncio.Event(), asyncio.Event()
        self._is_over = False
        self._error: MicrokernelError | None = None

    async def run(self) -> None:
        """Make it. What goes wrong is raised to the reader."""
        try:
            await self._make()
        except asyncio.CancelledError:
            self._error = Unavailable("the backup was ended", service=self._service.name)
            raise
        except Exception as error:  # noqa: BLE001 - the reader hears of it, the service goes on
            self._error = from_exception(error, service=self._service.name)
        finally:
            self._is_over = True
            self._news.set()

    async def pieces(self) -> AsyncGenerator[ArchivePiece, None]:
        """What has been made, in order; the last one has the summary."""
        while True:
            while self._waiting:
                piece = self._waiting.popleft()
                self._room.set()
                yield piece
            if self._is_over:
                break
            self._news.clear()
            await self._news.wait()
        if self._error is not None:
            raise self._error

    async def _make(self) -> None:
        writer = self._writer
        await self._put("", writer.begin())
        for part in self._manifest.parts:
            writer.begin_part(part)
            try:
                await self._part(part)
                writer.end_part()
            except MicrokernelError as error:
                why = f"what '{part}' keeps cannot be backed up: {error.message}"
                raise copy_of(error, type(error), message=why) from error
            self._parts.append(PartSummary(name=part, entries=writer.entries, bytes=writer.size))
        await self._put("", await to_its_end(writer.end))
        await self._put("", b"", self._summary())

    async def _part(self, part: str) -> None:
        async with aclosing(batches(self._give(part))) as pieces:
            async for batch in pieces:
                await self._put(part, await to_its_end(self._writer.add, batch))

    async def _put(self, part: str, content: bytes, summary: BackupSummary | None = None) -> None:
        """Lay a piece down for the reader. Raises `Aborted` where that takes nothing any more."""
        if not content and summary is None:
            return
        while len(self._waiting) >= AHEAD:
            self._room.clear()
            try:
                async with asyncio.timeout(self._patience):
                    await self._room.wait()
            except TimeoutError as error:
                raise Aborted(
                    f"nobody has taken anything of the backup for {self._patience:g} s", remedy="make it once more"
                ) from error
        self._written += len(content)
        self._waiting.append(ArchivePiece(part=part, content=content, summary=summary))
        self._news.set()

    def _summary(self) -> BackupSummary:
        manifest, digests = self._manifest, self._writer.digests
        return BackupSummary(
            at=manifest.at,
            node=manifest.node,
            made_by=manifest.made_by,
            parts=tuple(self._parts),
            entries=digests.entries,
            bytes=digests.bytes,
            archive_bytes=self._written,
            models=manifest.models,
            secrets=manifest.secrets,
            left_out=manifest.left_out,
            notes=self._writer.notes,
        )


def exports(service: Service, asked: Export) -> Give:
    """What the services of this node give, which `service` asks."""

    async def give(part: str) -> AsyncGenerator[EntryPiece, None]:
        async with service.stream(f"{part}.{EXPORT}", asked) as pieces:
            async for item in pieces:
                yield convert(item, EntryPiece, what=f"an item of {part}.{EXPORT}")

    return give


async def batches(pieces: AsyncGenerator[EntryPiece, None]) -> AsyncGenerator[Sequence[EntryPiece], None]:
    """About a MiB of pieces at a time."""
    batch: list[EntryPiece] = []
    size = 0
    async with aclosing(pieces):
        async for piece in pieces:
            batch.append(piece)
            size += len(piece.content)
            if size >= STEP or len(batch) >= MOST_TOGETHER:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
