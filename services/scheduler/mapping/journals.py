"""All journals of a node's named maps, on their way out and into another node. It blocks: for threads.

A journal grows while it is read: what leaves are the records that were whole at one moment. Who a map is of and what it
is called stand in an index, and not in names of entries, which have no room for all users.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import msgspec

from microkernel.errors import Aborted, DataLoss, PreconditionFailed
from microkernel.portable import PIECE, EntryPiece, pieces_of
from services.scheduler.mapping.journal import journal_path, whole_length

__all__ = ["ImportedJournals", "exported"]

INDEX = "maps/index.json"
LARGEST_INDEX = 8 << 20  # bytes; a hundred thousand maps

_ENTRY = re.compile(r"maps/(\d{6})\.journal")
_Owner = Annotated[str, msgspec.Meta(max_length=120)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")]


class _Indexed(msgspec.Struct, frozen=True, kw_only=True):
    """Whose journal an entry is, by its number."""

    number: int
    owner: _Owner
    name: _Name


def exported(folder: Path) -> Iterator[EntryPiece]:
    """The entries, in order; `folder` is the service's."""
    index: list[_Indexed] = []
    for path in sorted((folder / "maps").glob("*/*.journal")):
        try:
            owner = bytes.fromhex(path.parent.name).decode()
            file = path.open("rb")
        except (FileNotFoundError, ValueError):
            continue  # its map has ended since, or it is nothing of ours
        with file:
            number = len(index)
            yield from _journal(file, f"maps/{number:06}.journal")
            index.append(_Indexed(number=number, owner=owner, name=path.stem))
    if index:
        yield from pieces_of(INDEX, msgspec.json.encode(index) + b"\n")


def _journal(file: IO[bytes], entry: str) -> Iterator[EntryPiece]:
    size = left = whole_length(file, os.fstat(file.fileno()).st_size)
    file.seek(0)
    name = entry
    while left or name:
        piece = file.read(min(left, PIECE))
        if not piece and left:
            raise Aborted("a journal of a map was begun anew while it was read", remedy="do it once more")
        left -= len(piece)
        yield EntryPiece(name=name, size=size if name else None, content=piece)
        name = ""


class ImportedJournals:
    """Takes journals in, and then finishes: a `Taker`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "maps" / "incoming"
        self._file: IO[bytes] | None = None
        self._index: list[_Indexed] = []
        self._body = bytearray()
        self._name = ""

    def begin(self, name: str, size: int) -> None:
        self._name = name
        if name == INDEX and size <= LARGEST_INDEX:
            return
        if _ENTRY.fullmatch(name) is None:
            raise DataLoss(f"'{name}' is no journal of a map")
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._incoming / name.rpartition("/")[2]
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")

    def add(self, content: bytes) -> None:
        if self._file is None:
            self._body += content
        else:
            self._file.write(content)

    def end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            return
        try:
            self._index = msgspec.json.decode(self._body, type=list[_Indexed])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataLoss(f"'{self._name}' is damaged: {error}") from error

    def finish(self) -> None:
        """It was all: put each journal where its map looks for it. Raises `DataLoss` and `PreconditionFailed`."""
        for each in self._index:
            source = self._incoming / f"{each.number:06}.journal"
            target = journal_path(self._folder, each.owner, each.name)
            if target.exists():
                raise PreconditionFailed(f"there is a journal of the map '{each.name}' already")
            if not source.exists():
                raise DataLoss(f"the journal of the map '{each.name}' is missing")
            with source.open("rb") as file:
                size = source.stat().st_size
                if whole_length(file, size) != size:
                    raise DataLoss(f"the journal of the map '{each.name}' is damaged")
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            source.rename(target)
        if self._incoming.exists():
            left = sorted(path.name for path in self._incoming.iterdir())
            if left:
                raise DataLoss(f"nobody's journal is {left[0]}: '{INDEX}' does not name it")
            self._incoming.rmdir()

    def close(self) -> None:
        """Let go of it, however far it came."""
        if self._file is not None:
            self._file.close()
