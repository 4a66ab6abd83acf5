"""A volume on its way out: its tables as they are at one moment, and the contents that they refer to. It blocks.

All is read in one transaction, which sees nothing of what is written meanwhile, and no content goes until it has ended.
A content that is damaged is told of and does not keep the others from leaving.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from microkernel.errors import DataLoss, NotFound
from microkernel.portable import PIECE, EntryPiece, Known, pieces_of
from services.filesystem.stored.contents import Content, ContentFiles, digest_of
from services.filesystem.stored.database import connect, faults_named
from services.filesystem.stored.rows import CONTENTS, DAMAGED, MOUNTS, ROWS, TABLES, VOLUME, Counters, DamagedContent

__all__ = ["exported"]

LINES = PIECE - (16 << 10)  # bytes of lines after which an entry of a table ends: a line has at most 12 kB


def exported(
    database: Path, store: ContentFiles, known: Known, mounts: bytes | None, largest: int | None = None
) -> Iterator[EntryPiece]:
    """The entries of a volume, in order; `mounts` is what is kept of those. Raises `DataLoss` for a damaged row.

    Contents of more than `largest` bytes are told of like those that are damaged: where they come in, they are missing.
    """
    with store.held(), faults_named(database), closing(connect(database, reads=True)) as db:
        db.execute("BEGIN")
        counters = _counters(db)  # what is read first is the moment
        missing: list[DamagedContent] = []
        too_large = 0
        for number, *row in db.execute("SELECT id, digest, size, inline, file, sums FROM content ORDER BY id"):
            content = Content(*row)
            if largest is not None and content.size > largest:
                too_large += 1
            elif (yield from _content(number, content, store, known)):
                continue
            missing.append(DamagedContent(id=number, digest=content.digest.hex(), size=content.size))
        if missing:
            yield from _lines(DAMAGED, missing, _missing(len(missing) - too_large, too_large, largest))
        if mounts is not None:
            yield from pieces_of(MOUNTS, mounts)
        for table in TABLES:
            yield from _lines(f"{ROWS}{table.name}/", map(table.row.of, db.execute(table.select)))
        yield from pieces_of(VOLUME, _line(counters))


def _missing(damaged: int, too_large: int, largest: int | None) -> str:
    """What is told of contents that stay out."""
    told = []
    if damaged:
        told.append(f"{damaged} contents are damaged, and not in the backup: mk fs scrub lists them")
    if too_large:
        told.append(f"{too_large} contents have more than {largest} bytes, and are not in the backup")
    return "; ".join(told)


def _counters(db: sqlite3.Connection) -> Counters:
    found = dict(db.execute("SELECT name, value FROM counter"))
    return Counters(version=found["version"], node=found["node"], horizon=found["horizon"])


def _content(number: int, content: Content, store: ContentFiles, known: Known) -> Generator[EntryPiece, None, bool]:
    """The pieces of a content; returns whether it is whole. One that is not there has none; zeros are for damage."""
    name, digest = f"{CONTENTS}{number:019}", content.digest.hex()
    if known.has(content.digest):
        yield EntryPiece(name=name, size=content.size, digest=digest, known=True)
        return True
    if content.inline is not None:
        if digest_of(content.inline) != content.digest:
            return False
        yield EntryPiece(name=name, content=content.inline, digest=digest)
        return True
    try:
        reader = store.open(content)
    except (NotFound, DataLoss):
        return False
    is_whole = True
    with closing(reader):
        for place in range(0, content.size, PIECE):
            stop = min(place + PIECE, content.size)
            try:
                piece = reader.read(place, stop)
            except DataLoss:
                is_whole, piece = False, bytes(stop - place)
            if place:
                yield EntryPiece(content=piece)
            else:
                yield EntryPiece(name=name, size=content.size, content=piece, digest=digest)
    return is_whole


def _lines(folder: str, rows: Iterable[msgspec.Struct], note: str = "") -> Iterator[EntryPiece]:
    """Rows as lines, some hundred to an entry."""
    lines = bytearray()
    number = 0
    for row in rows:
        lines += _line(row)
        if len(lines) >= LINES:
            yield EntryPiece(name=f"{folder}{number:09}.jsonl", content=bytes(lines), note=note)
            lines.clear()
            number += 1
            note = ""
    if lines:
        yield EntryPiece(name=f"{folder}{number:09}.jsonl", content=bytes(lines), note=note)


def _line(row: msgspec.Struct) -> bytes:
    return msgspec.json.encode(row) + b"\n"
