"""The names of a volume in SQLite: its tables, and connections for one writer and for readers.

A name is a row of `entry` as long as it is there, and of `past` from then on: the tree as it was at a version are the
rows that were born by then and had not died. Children hold on to their folder's number and not to its name, so a folder
of a million files is renamed, removed and brought back by one row. Write-ahead logging, and every commit synced: what
is acknowledged is on the disk. Files: https://www.sqlite.org/wal.html.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from microkernel.errors import DataLoss, PreconditionFailed

__all__ = [
    "FIELDS",
    "PAGE",
    "PAST",
    "SHARED",
    "TOP",
    "Entry",
    "Past",
    "connect",
    "create",
    "entry_of",
    "faults_named",
    "past_of",
    "unchecked_entry_of",
]

FORMAT = 1
SHARED = 16 << 10  # bytes above which equal contents are kept once: to look for small ones costs more than it saves
TOP = 1  # the node of the volume's own root, which has no name
PAGE = 4096  # bytes
CACHE_KIB = 32 << 10

FIELDS = "parent, key, name, node, folder, owner, size, content, at, by, action, born, seal"
PAST = f"id, {FIELDS}, died, died_at, died_by, ending"
SCHEMA = """
CREATE TABLE IF NOT EXISTS entry(
    parent INTEGER NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, node INTEGER NOT NULL, folder INTEGER NOT NULL,
    owner TEXT NOT NULL, size INTEGER NOT NULL, content INTEGER, at REAL NOT NULL, by TEXT NOT NULL,
    action TEXT NOT NULL, born INTEGER NOT NULL, seal INTEGER NOT NULL, PRIMARY KEY(parent, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_node ON entry(node);
CREATE INDEX IF NOT EXISTS entry_content ON entry(content) WHERE content IS NOT NULL;
CREATE TABLE IF NOT EXISTS past(
    id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, key TEXT NOT NULL, name TEXT NOT NULL, node INTEGER NOT NULL,
    folder INTEGER NOT NULL, owner TEXT NOT NULL, size INTEGER NOT NULL, content INTEGER, at REAL NOT NULL,
    by TEXT NOT NULL, action TEXT NOT NULL, born INTEGER NOT NULL, seal INTEGER NOT NULL,
    died INTEGER NOT NULL, died_at REAL NOT NULL, died_by TEXT NOT NULL, ending TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS past_name ON past(parent, key, born);
CREATE INDEX IF NOT EXISTS past_node ON past(node);
CREATE INDEX IF NOT EXISTS past_content ON past(content) WHERE content IS NOT NULL;
CREATE INDEX IF NOT EXISTS past_died ON past(died_at);
CREATE TABLE IF NOT EXISTS content(
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL, size INTEGER NOT NULL, inline BLOB, file TEXT, sums BLOB);
CREATE UNIQUE INDEX IF NOT EXISTS content_digest ON content(digest) WHERE size > 16384;
CREATE TABLE IF NOT EXISTS access(
    node INTEGER NOT NULL, user TEXT NOT NULL, rights INTEGER NOT NULL, PRIMARY KEY(node, user)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS snapshot(
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, at REAL NOT NULL, by TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS usage(
    owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL, versions INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quota(owner TEXT PRIMARY KEY, bytes INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS indexed(node INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS pieced(
    content INTEGER PRIMARY KEY, model TEXT NOT NULL, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS piece(
    content INTEGER NOT NULL, number INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
    vector BLOB NOT NULL, PRIMARY KEY(content, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


_ENCODER = msgspec.msgpack.Encoder()


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A name in a folder, and what it leads to from version `born` on; the columns of a row, in their order.

    `node` stays what it is when the name changes; `content` is a row of that table, None for folders. `seal` is a
    checksum of the others: SQLite has none of its own.
    """

    parent: int
    key: str
    name: str
    node: int
    folder: bool
    owner: str
    size: int
    content: int | None
    at: float
    by: str
    action: str
    born: int
    seal: int = 0

    def sealed(self) -> Entry:
        """The same with its seal."""
        return msgspec.structs.replace(self, seal=self._seal())

    @property
    def is_whole(self) -> bool:
        """Whether all columns are what was written."""
        return self.seal == self._seal()

    def _seal(self) -> int:
        fields = msgspec.structs.replace(self, seal=0) if self.seal else self
        return xxhash.xxh3_64_intdigest(_ENCODER.encode(fields)) - (1 << 63)  # SQLite's integers have a sign


class Past(msgspec.Struct, frozen=True):
    """An entry that ended with version `died`; `ending` is what ended it."""

    id: int
    entry: Entry
    died: int
    died_at: float
    died_by: str
    ending: str


def entry_of(row: tuple[Any, ...]) -> Entry:
    """A row of `FIELDS`, checked. Raises `DataLoss`."""
    entry = unchecked_entry_of(row)
    if not entry.is_whole:
        raise DataLoss(
            f"the row of {entry.name!r} (node {entry.node}) is damaged", remedy="mk fs scrub lists what is damaged"
        )
    return entry


def unchecked_entry_of(row: tuple[Any, ...]) -> Entry:
    """A row of `FIELDS` as it is."""
    return Entry(row[0], row[1], row[2], row[3], bool(row[4]), *row[5:13])


def past_of(row: tuple[Any, ...]) -> Past:
    """A row of `PAST`, checked."""
    return Past(row[0], entry_of(row[1:14]), *row[14:])


def create(path: Path | None) -> sqlite3.Connection:
    """The writer's connection; the tables are made where they are not there. Without a path they are in memory.

    Raises `DataLoss` for a file that is no database, or of another
    format.
    """
    with faults_named(path):
        db = connect(path)
        db.execute(f"PRAGMA page_size = {PAGE}")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript("BEGIN IMMEDIATE;" + SCHEMA)
        db.execute("INSERT OR IGNORE INTO counter VALUES ('format', ?), ('version', 0), ('node', ?), ('horizon', 0)",
                   (FORMAT, TOP))  # fmt: skip
        db.execute("COMMIT")
        found = db.execute("SELECT value FROM counter WHERE name = 'format'").fetchone()[0]
    if found != FORMAT:
        raise DataLoss(f"{path} has format {found}, known is {FORMAT}", remedy="boot the version that wrote it")
    return db


def connect(path: Path | None, *, reads: bool = False) -> sqlite3.Connection:
    """A connection for one thread."""
    name = ":memory:" if path is None else str(path)
    db = sqlite3.connect(name, isolation_level=None, timeout=30.0, check_same_thread=False, cached_statements=256)
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    if reads:
        db.execute("PRAGMA query_only = ON")
    return db


@contextmanager
def faults_named(path: Path | None) -> Iterator[None]:
    """What SQLite raises, as errors of ours: `PreconditionFailed` for a full disk, `DataLoss` for a damaged file."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR} and "malformed" not in str(error):
            raise PreconditionFailed(
                f"nothing can be written to {path}: {error}", remedy="free space on its disk", may_have_run=False
            ) from error
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise DataLoss(
                f"{path} is damaged: {error}", remedy="put back a copy of it; the contents beside it are whole"
            ) from error
        raise
