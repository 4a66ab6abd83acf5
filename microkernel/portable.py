"""What a service keeps, as entries that leave a node and come into another one: the messages, and what checks them.

A service takes part in backups with two streams. `<service>.export` gives entries: names with bytes, in the order of
the names, so that whoever takes them needs no memory of those before. `<service>.import` is sent the same entries and
makes them the service's own; it is asked on a node that is being restored, before `start`, when the folder of the
service is empty. Nobody reads another service's folder. A large entry comes in several pieces.

    class KeyValue(Service):
        @streams
        async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
            yield EntryPiece(name="pairs.json", content=await asyncio.to_thread(self._file.read_bytes))

        @streams(name="import", credit=AHEAD)
        async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:
            check_restoring(self)
            content = await read_entry(inputs, self.name, "pairs.json", most=1 << 20)
            if content is not None:
                await asyncio.to_thread(put_file, self.state_dir / "pairs.json", content)
            yield Imported()
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol, cast

import msgspec

from microkernel import durable
from microkernel.buffers import Array
from microkernel.errors import DataLoss, Denied, Invalid, PreconditionFailed, TooBig
from microkernel.message import Message, is_root
from microkernel.service import Isolation, Service
from microkernel.threads import to_its_end

__all__ = [
    "AHEAD",
    "EXPORT",
    "IMPORT",
    "MOST_TOGETHER",
    "PIECE",
    "STEP",
    "Entries",
    "EntryPiece",
    "Export",
    "FileTaker",
    "Import",
    "Imported",
    "Known",
    "Taker",
    "as_before_start",
    "check_name",
    "check_restoring",
    "from_thread",
    "only_root",
    "pieces_of",
    "put_file",
    "read_entries",
    "read_entry",
    "take_in",
    "take_in_files",
]

EXPORT, IMPORT = "export", "import"

PIECE = 256 << 10  # bytes of an entry that come at once, at most
AHEAD = 32  # pieces that are on their way to who takes them in: 8 MiB
STEP = 1 << 20  # bytes that a thread makes or takes at once
MOST_TOGETHER = 256  # pieces; small ones would else keep the loop for long
LONGEST_NAME = 120  # characters; a header of tar has room for a part and that
LARGEST = 1 << 50  # bytes of one entry
KNOWN = 16  # bytes of a digest in `Export.known`

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,7}")


class Export(Message, kw_only=True):
    """Ask a service for all that it keeps and that cannot be made again.

    With `secrets`, keys and tokens come along; with `models`, weights, which can be fetched again. `known` are the
    first 16 bytes of digests of entries that whoever asks has from before: those come without their content, where the
    service knows the digest without reading. A content of more than `largest` bytes, as that of a file, stays out, and
    a `note` says so.
    """

    secrets: bool = False
    models: bool = False
    known: Array | None = None
    largest: Annotated[int, msgspec.Meta(ge=0)] | None = None


class EntryPiece(Message, kw_only=True):
    """The next bytes of an entry; the first piece of each names it.

    `size` is the bytes of all its pieces, None for those of this one. `digest`, in hex, tells its content from others,
    where that is known beforehand. With `known` no content follows: it is one that was asked for with. `note` is for
    whoever has the backup made: what could not come along.
    """

    name: str = ""
    size: int | None = None
    content: bytes = b""
    digest: str = ""
    known: bool = False
    note: str = ""


class Import(Message):
    """Take in what was exported, sent as pieces of entries; it answers with an `Imported` once all is on the disk."""


class Imported(Message):
    """All is taken in. `notes` are for whoever has the node restored: what is not as it was."""

    notes: tuple[str, ...] = ()


class Known:
    """The digests that whoever asks for an export has already."""

    def __init__(self, asked: Export) -> None:
        """Raises `Invalid` for what are no digests."""
        raw = b"" if asked.known is None else bytes(asked.known)
        if len(raw) % KNOWN:
            raise Invalid(f"known has {len(raw)} bytes, and each digest {KNOWN}", field="known")
        self._digests = frozenset(raw[place : place + KNOWN] for place in range(0, len(raw), KNOWN))

    def has(self, digest: bytes) -> bool:
        """Whether a content with that digest need not come."""
        return digest[:KNOWN] in self._digests


class Entries:
    """Pieces in a row: that each has its place, each entry its bytes, and names go upwards. Sans-IO."""

    def __init__(self, what: str, *, knows: bool = False) -> None:
        """`what` gives them, for the errors. With `knows`, those that are `known` may come without content."""
        self.what = what
        self._knows = knows
        self.name = ""  # of the entry that a piece is of
        self.size = 0
        self.left = 0  # bytes that are still to come
        self.count = 0
        self.bytes = 0

    def add(self, piece: EntryPiece) -> bool:
        """Take the next one; whether it begins an entry. Raises `Invalid` that names the entry."""
        begins = bool(piece.name)
        if begins:
            self._begin(piece)
        elif not self.name:
            raise Invalid(f"{self.what}: the first piece of an entry names it")
        elif not piece.content:
            raise Invalid(f"{self.what}: a piece of '{self.name}' is empty")
        if len(piece.content) > self.left:
            raise Invalid(f"{self.what}: '{self.name}' has more bytes than the {self.size} that it was to have")
        self.left -= len(piece.content)
        self.bytes += len(piece.content)
        return begins

    def finish(self) -> None:
        """No more come. Raises `DataLoss` where the last entry is not whole."""
        if self.left:
            raise DataLoss(f"{self.what}: '{self.name}' ends {self.left} bytes too early")

    def _begin(self, piece: EntryPiece) -> None:
        self.finish()
        check_name(piece.name, self.what)
        if piece.name <= self.name:
            raise Invalid(
                f"{self.what}: '{piece.name}' comes after '{self.name}': entries come in the order of their names"
            )
        if piece.known and not self._knows:
            raise Invalid(f"{self.what}: '{piece.name}' comes without its content")
        size = len(piece.content) if piece.size is None else piece.size
        if not 0 <= size <= LARGEST:
            raise Invalid(f"{self.what}: '{piece.name}' cannot have {size} bytes")
        self.name, self.size = piece.name, size
        self.left = 0 if piece.known else size
        self.count += 1


class Taker(Protocol):
    """What takes entries in, on threads, one call after another."""

    def begin(self, name: str, size: int) -> None:
        """The next entry, of so many bytes."""
        ...

    def add(self, content: bytes) -> None:
        """More of its bytes."""
        ...

    def end(self) -> None:
        """It has all its bytes."""
        ...


class FileTaker(Taker, Protocol):
    """A `Taker` that holds something."""

    def finish(self) -> None:
        """It was all: have it count. Raises where something is missing."""
        ...

    def close(self) -> None:
        """Let go of what is held, however far it came."""
        ...


def check_name(name: str, what: str) -> None:
    """Raises `Invalid` for a name that could lead somewhere else, or that no archive has room for."""
    if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
        raise Invalid(
            f"{what}: {name[:80]!r} is no name of an entry",
            remedy="letters, digits, '.', '_' and '-', and '/' between up to 8 names that begin with one of the first",
        )


def only_root(what: str) -> None:
    """Raises `Denied` where the running call is not root's, nor the node's own."""
    if not is_root():
        raise Denied(f"only root {what}")


def check_restoring(service: Service) -> None:
    """Raises `PreconditionFailed` on a node that is not being restored: what it keeps is not to be replaced."""
    only_root("restores a node")
    if not service.restoring:
        raise PreconditionFailed(
            f"{service.name} takes in what was exported only while a node is restored", remedy="mk restore FILE"
        )


def as_before_start(kind: type[Service]) -> type[Service]:
    """The class of a service on a node that is being restored: its handlers answer, and nothing else of it runs."""
    marks = ("__microkernel_timer__", "__microkernel_subject__")
    quiet: dict[str, Any] = {
        name: None
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if any(hasattr(member, mark) for mark in marks)
    }
    quiet |= {"start": Service.start, "ready": Service.ready, "stop": Service.stop, "needs": (), "essential": False}
    quiet |= {"isolation": Isolation.INLINE, "instances": 1, "restoring": True}
    quiet |= {"__doc__": kind.__doc__, "__module__": kind.__module__}
    return cast("type[Service]", type(kind.__name__, (kind,), quiet))


def pieces_of(name: str, content: bytes, *, note: str = "") -> Iterator[EntryPiece]:
    """An entry whose bytes are at hand."""
    yield EntryPiece(name=name, size=len(content), content=content[:PIECE], note=note)
    for place in range(PIECE, len(content), PIECE):
        yield EntryPiece(content=content[place : place + PIECE])


async def from_thread(pieces: Iterator[EntryPiece]) -> AsyncGenerator[EntryPiece, None]:
    """What a generator that blocks gives; it runs on threads, as far as a MiB ahead."""
    turn = threading.Lock()  # of two that are cancelled, the one that closes waits for the one that runs

    def some() -> list[EntryPiece]:
        batch: list[EntryPiece] = []
        size = 0
        with turn:
            for piece in pieces:
                batch.append(piece)
                size += len(piece.content)
                if size >= STEP or len(batch) >= MOST_TOGETHER:
                    break
        return batch

    def close() -> None:
        with turn:
            if isinstance(pieces, Generator):
                pieces.close()

    try:
        while batch := await to_its_end(some):
            for piece in batch:
                yield piece
    finally:
        await to_its_end(close)


async def take_in(inputs: AsyncIterator[EntryPiece], taker: Taker, what: str) -> Entries:
    """Give `taker` all that comes, on threads. Raises what it raises, and `Invalid` and `DataLoss` as `Entries`."""
    entries = Entries(what)
    batch: list[EntryPiece] = []
    size = 0

    def give(pieces: list[EntryPiece]) -> None:
        for piece in pieces:
            if entries.add(piece):
                taker.begin(entries.name, entries.size)
            if piece.content:
                taker.add(piece.content)
            if not entries.left:
                taker.end()

    async for piece in inputs:
        batch.append(piece)
        size += len(piece.content)
        if size >= STEP or len(batch) >= MOST_TOGETHER:
            await to_its_end(give, batch)
            batch, size = [], 0
    await to_its_end(give, batch)
    entries.finish()
    return entries


def put_file(path: Path, content: bytes) -> None:
    """Put a small file into the folder of a service, which is made if it is not there. It blocks."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    durable.replace(path, content)


async def take_in_files(inputs: AsyncIterator[EntryPiece], taker: FileTaker, what: str) -> None:
    """`take_in`, and have a taker finish and let go of what it holds."""
    try:
        await take_in(inputs, taker, what)
        await to_its_end(taker.finish)
    finally:
        await to_its_end(taker.close)


async def read_entry(inputs: AsyncIterator[EntryPiece], what: str, name: str, *, most: int) -> bytes | None:
    """The one entry of a service that keeps one file; None where it had none. Raises `DataLoss` for another one."""
    entries = await read_entries(inputs, what, most=most)
    other = next((each for each in entries if each != name), None)
    if other is not None:
        raise DataLoss(f"{what}: '{other}' is nothing that it keeps")
    return entries.get(name)


async def read_entries(inputs: AsyncIterator[EntryPiece], what: str, *, most: int) -> dict[str, bytes]:
    """All entries with their contents, for services that keep little. Raises `TooBig` beyond `most` bytes."""
    entries = Entries(what)
    found: dict[str, bytearray] = {}
    async for piece in inputs:
        entries.add(piece)
        if entries.bytes > most:
            raise TooBig(f"{what}: there are more than {most} bytes")
        found.setdefault(entries.name, bytearray()).extend(piece.content)
    entries.finish()
    return {name: bytes(content) for name, content in found.items()}
