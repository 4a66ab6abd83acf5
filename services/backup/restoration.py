"""One archive on its way back: read from end to end first, and then once more, by the services that its parts are of.

Nothing is handed to a service before all of the archive was compared with its digests. The second time it is compared
again, as somebody may have changed it meanwhile; what was taken in by then counts only if all goes well, which is for
whoever restores to see to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import IO

import msgspec

from microkernel.errors import DataLoss, Internal, Invalid, MicrokernelError, NotFound, PreconditionFailed, copy_of
from microkernel.message import convert
from microkernel.portable import IMPORT, EntryPiece, Import, Imported
from microkernel.service import Service
from microkernel.stream import Stream
from microkernel.threads import to_its_end
from services.backup.manifest import part_of
from services.backup.messages import BackupSummary, PartSummary, RestoreProgress
from services.backup.reader import ArchiveReader

__all__ = ["Restoration", "archive_at"]

LOOK = 0.2  # seconds between two words on how it is coming along


def archive_at(path: Path) -> IO[bytes]:
    """The file at a path, open. It blocks. Raises `NotFound` and `Invalid` where there is none to be read."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"there is no {path}", field="path") from error
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}", field="path") from error


class Restoration:
    """Checks the archive in a file, and takes it apart."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path

    async def parts(self) -> tuple[str, ...]:
        """What its first entry says that it has. Raises `DataLoss`."""
        with self._named():
            return (await self._reader()).manifest.parts

    async def check(self) -> AsyncGenerator[RestoreProgress, None]:
        """Read all of it; the last item has the summary. Raises `DataLoss` that names what is damaged."""
        with self._named():
            reader = await self._reader()
            while await to_its_end(reader.take):
                yield RestoreProgress(stage="checking", done_bytes=reader.place, total_bytes=reader.size)
            yield RestoreProgress(
                stage="checked", done_bytes=reader.place, total_bytes=reader.size, summary=_summary(reader)
            )

    async def check_parts(self, services: Collection[str], without: Collection[str]) -> None:
        """Raises `PreconditionFailed` for a part that no service takes in, `NotFound` for one that is not there."""
        parts = await self.parts()
        for part in without:
            if part not in parts:
                raise NotFound(f"the backup has no part '{part}'", remedy=f"it has {', '.join(parts)}", field="without")
        lacking = [part for part in parts if part not in services and part not in without]
        if lacking:
            raise PreconditionFailed(
                f"no service here takes in what '{lacking[0]}' has kept",
                remedy=f"name the file of its service with --service, or leave it out: --without {lacking[0]}",
            )

    async def take_in(self, service: Service, without: Collection[str]) -> AsyncGenerator[RestoreProgress, None]:
        """Have each part taken in by its service, which `service` asks; the last item has summary and notes."""
        with self._named():
            reader = await self._reader()
            pieces = _Pieces(reader)
            notes: list[str] = []
            for part in reader.manifest.parts:
                if part in without:
                    await pieces.skip(part)
                    notes.append(f"{part}: was left out")
                    continue
                work = asyncio.ensure_future(_take_in(service, part, pieces))
                try:
                    while not work.done():
                        yield RestoreProgress(
                            stage="taking in", part=part, done_bytes=reader.place, total_bytes=reader.size
                        )
                        await asyncio.wait([work], timeout=LOOK)
                    notes += [f"{part}: {note}" for note in work.result().notes]
                finally:
                    work.cancel()
                    await asyncio.wait([work])
                await pieces.skip(part)
            if await pieces.peek() is not None:
                raise DataLoss("there is more in it than its parts")
            yield RestoreProgress(
                stage="done",
                done_bytes=reader.place,
                total_bytes=reader.size,
                summary=_summary(reader),
                notes=tuple(notes),
            )

    async def _reader(self) -> ArchiveReader:
        """From the begin on."""
        await asyncio.to_thread(self._file.seek, 0)
        return await to_its_end(ArchiveReader, self._file)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What is wrong with the archive, with its path."""
        try:
            yield
        except DataLoss as error:
            why = f"{self._path} is no whole backup: {error.message}"
            raise copy_of(error, DataLoss, message=why) from error


class _Pieces:
    """The pieces of an archive, with a look at the next one."""

    def __init__(self, reader: ArchiveReader) -> None:
        self._reader = reader
        self._ahead: deque[EntryPiece] = deque()

    async def peek(self) -> EntryPiece | None:
        """The next one; None at the end, when all has been checked."""
        if not self._ahead:
            self._ahead += await to_its_end(self._reader.take)
        return self._ahead[0] if self._ahead else None

    async def of(self, part: str) -> AsyncIterator[EntryPiece]:
        """Those of a part, with the names that its service has given."""
        while (piece := await self.peek()) is not None:
            name = ""
            if piece.name:
                other, name = part_of(piece.name)
                if other != part:
                    return
            self._ahead.popleft()
            yield msgspec.structs.replace(piece, name=name)

    async def skip(self, part: str) -> None:
        """Pass over what is left of a part."""
        async for _ in self.of(part):
            pass


async def _take_in(service: Service, part: str, pieces: _Pieces) -> Imported:
    """What a service says when it has taken its part in. Raises what it raises, and `DataLoss` of the archive."""
    async with service.stream(f"{part}.{IMPORT}", Import()) as stream:
        sending = asyncio.ensure_future(_send(stream, pieces, part))
        taking = asyncio.ensure_future(_first(stream, part))
        try:
            await asyncio.wait([sending, taking], return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                sending.result()  # raises where the archive is at fault: nobody is to wait for the rest then
            return await taking
        finally:
            for task in (sending, taking):
                task.cancel()
            await asyncio.wait([sending, taking])


async def _send(stream: Stream, pieces: _Pieces, part: str) -> None:
    async with aclosing(pieces.of(part)) as given:  # type: ignore[type-var] # it is a generator
        async for piece in given:
            await stream.send(piece)
    await stream.finish()


async def _first(stream: Stream, part: str) -> Imported:
    try:
        return convert(await anext(stream), Imported, what=f"the answer of {part}.{IMPORT}")
    except StopAsyncIteration as error:
        raise Internal(f"{part}.{IMPORT} has ended without a word", service=part) from error
    except MicrokernelError as error:
        why = f"'{part}' cannot take in what it has kept: {error.message}"
        raise copy_of(error, type(error), message=why) from error


def _summary(reader: ArchiveReader) -> BackupSummary:
    manifest = reader.manifest
    return BackupSummary(
        at=manifest.at,
        node=manifest.node,
        made_by=manifest.made_by,
        parts=tuple(reader.parts.get(part, PartSummary(name=part)) for part in manifest.parts),
        entries=reader.entries,
        bytes=reader.entry_bytes,
        archive_bytes=reader.size,
        models=manifest.models,
        secrets=manifest.secrets,
        left_out=manifest.left_out,
        notes=reader.notes,
    )
