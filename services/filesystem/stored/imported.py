"""A volume on its way in: entries become contents and rows of a new one, in a folder where none was. It blocks.

No row is believed: names are looked at as those in paths are, every parent and every content has to be there, and what
follows from the rest is counted again. All goes into one transaction, and nothing is synced: a folder that is being
restored counts once all of it was, and is thrown away where anything fails.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import msgspec

from microkernel.errors import DataLoss, Invalid, PreconditionFailed
from services.filesystem.stored.contents import Content, ContentFiles, ContentWriter, digest_of
from services.filesystem.stored.database import TOP, create, faults_named
from services.filesystem.stored.names import LONGEST_WAY
from services.filesystem.stored.rows import (
    CONTENTS,
    DAMAGED,
    MOUNTS,
    ROWS,
    TABLES,
    VOLUME,
    Counters,
    DamagedContent,
    Row,
    Table,
)
from services.filesystem.stored.streams import INLINE
from services.filesystem.stored.usage import ROW

__all__ = ["ImportedVolume"]

LARGEST = 2 << 20  # bytes of an entry that is no content: lines of rows are 256 KiB, mounts are 256
_NUMBER = re.compile(CONTENTS + r"([0-4]\d{18})")  # within what SQLite counts
GONE = "gone/"  # where the file of a content would be that was damaged: nowhere

# What has to hold of all rows, with what is said where it does not.
CHECKS = (
    ("SELECT name FROM rows WHERE parent <> :top AND parent NOT IN (SELECT node FROM rows WHERE folder)",
     "is in a folder that is not there"),
    ("SELECT name FROM rows LEFT JOIN content ON content.id = rows.content WHERE "
     "CASE WHEN folder THEN content IS NOT NULL OR rows.size ELSE content.id IS NULL OR content.size <> rows.size END",
     "has no content, or one of another size"),
    ("SELECT name FROM entry GROUP BY node HAVING count(*) > 1", "has two places"),
    (f"""WITH RECURSIVE reached(node, depth) AS (
         SELECT node, 1 FROM entry WHERE parent = :top OR parent NOT IN (SELECT node FROM entry) UNION ALL
         SELECT entry.node, depth + 1 FROM entry JOIN reached ON parent = reached.node WHERE depth < {LONGEST_WAY})
     SELECT name FROM entry WHERE node NOT IN (SELECT node FROM reached)""",  # noqa: S608 # a constant
     "is in itself, or too deep"),
    ("SELECT name FROM rows WHERE born > :version OR node > :node OR node = :top", "is of a version yet to come"),
    ("SELECT name FROM past WHERE died > :version OR died < born", "ended before it began, or has yet to end"),
    ("SELECT name FROM snapshot WHERE version > :version", "is a snapshot of a version yet to come"),
)  # fmt: skip
ALL_ROWS = """
CREATE TEMP VIEW rows AS SELECT parent, name, node, folder, owner, size, content, born FROM entry
UNION ALL SELECT parent, name, node, folder, owner, size, content, born FROM past
"""
USAGE = f"""
INSERT INTO usage SELECT owner, coalesce(sum(size), 0) + {ROW} * sum(count), sum(count) FROM (
    SELECT owner, content, CASE WHEN content IS NULL THEN 0 ELSE size END AS size, count(*) AS count
    FROM rows GROUP BY owner, content) GROUP BY owner
"""  # noqa: S608 # a constant


class ImportedVolume:
    """Takes entries in, and then finishes: a `Taker`."""

    def __init__(self, folder: Path) -> None:
        """Raises `PreconditionFailed` where a volume is."""
        self.mounts: bytes | None = None
        self.damaged = 0
        self._path = folder / "names.sqlite"
        if self._path.exists():
            raise PreconditionFailed(f"{folder} has a volume already")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store = ContentFiles(folder / "contents", synced=False)
        self._store.open_store()
        self._db = create(self._path)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute("BEGIN")
        self._counters: Counters | None = None
        self._name = ""
        self._size = 0
        self._body = bytearray()
        self._writer: ContentWriter | None = None

    def begin(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._body.clear()
        if not name.startswith(CONTENTS):
            if size > LARGEST:
                raise DataLoss(f"'{name}' has {size} bytes, more than such an entry ever has")
        elif size > INLINE:
            self._writer = self._store.begin()

    def add(self, content: bytes) -> None:
        if self._writer is None:
            self._body += content
        else:
            self._writer.write([content])

    def end(self) -> None:
        try:
            with faults_named(self._path):
                self._take(self._name)
        except (sqlite3.Error, msgspec.MsgspecError, ValueError, Invalid) as error:
            raise DataLoss(f"'{self._name}' is damaged: {error}") from error

    def finish(self) -> None:
        """It was all. Raises `DataLoss` where that is no volume."""
        if self._counters is None:
            raise DataLoss(f"'{VOLUME}' is missing: the volume is not whole")
        with faults_named(self._path):
            self._check(self._counters)
            self._db.execute(USAGE)
            for name in ("version", "node", "horizon"):
                self._db.execute("UPDATE counter SET value = ? WHERE name = ?", (getattr(self._counters, name), name))
            self._db.execute("COMMIT")
            self._db.execute("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        """Let go of it, however far it came."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.abandon()
        self._db.close()

    def _take(self, name: str) -> None:
        if name.startswith(CONTENTS):
            number = _NUMBER.fullmatch(name)
            if number is None:
                raise Invalid("a content has a number")
            self._content(int(number[1]))
        elif name.startswith(ROWS):
            table = next((each for each in TABLES if name.startswith(f"{ROWS}{each.name}/")), None)
            if table is None:
                raise Invalid("there is no such table")
            self._db.executemany(table.insert, self._rows(table))
        elif name.startswith(DAMAGED):
            for line in self._body.splitlines():
                self._miss(msgspec.json.decode(line, type=DamagedContent))
        elif name == MOUNTS:
            self.mounts = bytes(self._body)
        elif name == VOLUME:
            self._counters = Counters.decode(bytes(self._body))
        else:
            raise Invalid("a volume has no such entry")

    def _content(self, number: int) -> None:
        if self._writer is None:
            body = bytes(self._body)
            content = Content(digest_of(body), len(body), inline=body)
        else:
            content = self._writer.finish()
            self._writer = None
        row = (number, content.digest, content.size, content.inline, content.file, content.sums)
        self._db.execute("INSERT INTO content(id, digest, size, inline, file, sums) VALUES (?, ?, ?, ?, ?, ?)", row)

    def _miss(self, content: DamagedContent) -> None:
        """Have a content be known and missing, as it was: a scrub names it, and may have a mirror of it."""
        self.damaged += 1
        found = self._db.execute("DELETE FROM content WHERE id = ? RETURNING file", (content.id,)).fetchone()
        if found is not None and found[0] is not None:
            self._store.remove([found[0]])
        row = (content.id, bytes.fromhex(content.digest), content.size, f"{GONE}{content.digest}", b"")
        self._db.execute("INSERT INTO content(id, digest, size, file, sums) VALUES (?, ?, ?, ?, ?)", row)

    def _rows(self, table: Table) -> list[tuple[object, ...]]:
        rows: list[Row] = [msgspec.json.decode(line, type=table.row) for line in self._body.splitlines()]
        return [row.values() for row in rows]

    def _check(self, counters: Counters) -> None:
        """Raises `DataLoss` where rows do not belong together."""
        if counters.horizon > counters.version or counters.version < 1:
            raise DataLoss(f"'{VOLUME}' is damaged: its versions are not in order")
        self._db.execute(ALL_ROWS)
        said = {"top": TOP, "version": counters.version, "node": counters.node}
        for sql, wrong in CHECKS:
            row = self._db.execute(f"{sql} LIMIT 1", said).fetchone()
            if row is not None:
                raise DataLoss(f"{row[0]!a} {wrong}")
        # One that nothing refers to would stay for ever.
        self._db.execute("DELETE FROM content WHERE id NOT IN (SELECT content FROM rows WHERE content IS NOT NULL)")
