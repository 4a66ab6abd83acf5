"""The index in a volume's tables: which folders are indexed, and the pieces of each content with their vectors.

A content that is collected takes its pieces along in the same transaction. What is found is a content; the names that
lead to it are looked up when somebody asks, so that a removed file is gone from the next answer on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import msgspec

from services.filesystem.paths import TreePath
from services.filesystem.search.pieces import Piece
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.database import FIELDS, TOP, Entry, entry_of
from services.filesystem.stored.names import Names, Way

__all__ = [
    "Kept",
    "count_of",
    "forget_all",
    "indexed",
    "is_indexed",
    "keep",
    "kept",
    "mark",
    "model_of",
    "names_of",
    "place_of",
    "wanting",
]

ROWS = 20_000  # vectors that are read at once


class Kept(msgspec.Struct, frozen=True):
    """Vectors of pieces, as they are in the table: float16, one behind the other."""

    contents: list[int]
    numbers: list[int]
    vectors: bytes


def mark(changes: Changes, *, path: TreePath, is_indexed: bool) -> None:
    """Have what is in a folder indexed from now on, or not any more. Raises `NotFound`."""
    way = changes.names.find(path)
    node = way[-1].node if way else TOP
    if is_indexed:
        changes.db.execute("INSERT OR IGNORE INTO indexed VALUES (?)", (node,))
    else:
        changes.db.execute("DELETE FROM indexed WHERE node = ?", (node,))


def indexed(names: Names) -> dict[int, TreePath]:
    """The folders that are indexed, by node; those that are removed are left out."""
    nodes = [row[0] for row in names.db.execute("SELECT node FROM indexed").fetchall()]
    paths = {node: names.path_of(node) for node in nodes}
    return {node: path for node, path in paths.items() if path is not None}


def is_indexed(way: Way, nodes: dict[int, TreePath]) -> bool:
    """Whether a way leads through a folder that is indexed."""
    return TOP in nodes or any(entry.node in nodes for entry in way)


def wanting(names: Names, path: TreePath) -> Iterator[Entry]:
    """Files at and below a path that are to be indexed and are not."""
    nodes = indexed(names)
    way = names.way(path)
    if len(way) < len(path.names) or not nodes:
        return
    if is_indexed(way, nodes):
        tops = [way[-1] if way else None]
    else:
        ways = [names.way_of(node) for node in nodes]
        tops = [below[-1] for below in ways if below and len(below) > len(way) and below[: len(way)] == way]
    for top in tops:
        files = names.below(TOP) if top is None else names.below(top.node) if top.folder else iter([top])
        for entry in files:
            if entry.content is not None and entry.is_whole and not _is_kept(names.db, entry.content):
                yield entry


def keep(changes: Changes, *, content: int, model: str, pieces: Sequence[Piece], vectors: Sequence[bytes]) -> bool:
    """Keep the pieces of a content with their vectors; False where it was collected meanwhile."""
    if changes.db.execute("SELECT 1 FROM content WHERE id = ?", (content,)).fetchone() is None:
        return False
    changes.db.execute("INSERT OR REPLACE INTO pieced VALUES (?, ?, ?)", (content, model, len(pieces)))
    changes.db.executemany(
        "INSERT OR REPLACE INTO piece VALUES (?, ?, ?, ?, ?)",
        [
            (content, number, piece.start, piece.stop, vector)
            for number, (piece, vector) in enumerate(zip(pieces, vectors, strict=True))
        ],
    )
    return True


def forget_all(changes: Changes) -> None:
    """No content is indexed any more: another model makes other vectors."""
    changes.db.execute("DELETE FROM pieced")
    changes.db.execute("DELETE FROM piece")


def kept(db: sqlite3.Connection, after: tuple[int, int]) -> Kept:
    """The next vectors behind a content's piece."""
    sql = "SELECT content, number, vector FROM piece WHERE (content, number) > (?, ?) ORDER BY content, number LIMIT ?"
    rows = db.execute(sql, (*after, ROWS)).fetchall()
    return Kept([row[0] for row in rows], [row[1] for row in rows], b"".join(row[2] for row in rows))


def model_of(db: sqlite3.Connection) -> str | None:
    """The model that made the vectors; None where there are none."""
    row = db.execute("SELECT model FROM pieced LIMIT 1").fetchone()
    return None if row is None else str(row[0])


def count_of(db: sqlite3.Connection) -> int:
    """How many pieces are kept."""
    return int(db.execute("SELECT coalesce(sum(count), 0) FROM pieced").fetchone()[0])


def names_of(names: Names, content: int) -> Iterator[Way]:
    """The ways to the files that have a content now."""
    sql = f"SELECT {FIELDS} FROM entry WHERE content = ?"  # noqa: S608 # a constant
    for row in names.db.execute(sql, (content,)).fetchall():
        way = names.way_of(entry_of(row).node)
        if way is not None:
            yield way


def place_of(db: sqlite3.Connection, content: int, number: int) -> tuple[int, int] | None:
    """The bytes of a piece; None where it is not kept any more."""
    row = db.execute("SELECT start, stop FROM piece WHERE content = ? AND number = ?", (content, number)).fetchone()
    return None if row is None else (int(row[0]), int(row[1]))


def _is_kept(db: sqlite3.Connection, content: int) -> bool:
    return db.execute("SELECT 1 FROM pieced WHERE content = ?", (content,)).fetchone() is not None
