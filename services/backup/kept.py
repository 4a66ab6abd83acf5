"""What one node keeps of another: its newest replica, in a file of SQLite. It blocks: for threads.

Contents are kept once, by their BLAKE3, however often a node tells of them: most of a replica that comes is here. They
are safe as soon as they are whole; what a broken link has left goes with the next replica that comes to its end,
and is known to it before. What tells of them counts in one step, so that there is always one replica that is whole.
Whoever reads one has it as it was when that began.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import blake3
import msgspec

from microkernel.errors import DataLoss, Invalid, NotFound, PreconditionFailed
from microkernel.portable import KNOWN, PIECE, Entries, EntryPiece
from services.backup.messages import KeepReplica, PartSummary, Replica

__all__ = ["KeptReplica", "ReplicaTaker"]

FORMAT = 1
LEAST_FREE = 1 << 30  # bytes of the disk that are left to others
AT_ONCE = 16 << 20  # bytes after which what has come is made safe
PLACES = 24  # bits of the number of a piece
LONGEST_NOTE = 1024  # characters
WAIT = 30.0  # seconds for another connection
SCHEMA = """
CREATE TABLE IF NOT EXISTS content(
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS piece(id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS entry(
    edition INTEGER NOT NULL, part TEXT NOT NULL, name TEXT NOT NULL, content INTEGER NOT NULL, note TEXT NOT NULL,
    PRIMARY KEY(edition, part, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS edition(number INTEGER PRIMARY KEY, came REAL NOT NULL, replica BLOB NOT NULL);
"""


class KeptReplica:
    """The file in which a node's replica is, whether there is one yet or not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def told(self) -> tuple[Replica, float]:
        """The replica, and Unix time when it came. Raises `NotFound` where none is whole, `DataLoss`."""
        with closing(self._connected(reads=True)) as db:
            return _newest(db, self.path)

    @property
    def disk_bytes(self) -> int:
        """What it takes of the disk."""
        found = 0
        for each in self._files():
            with contextlib.suppress(FileNotFoundError):
                found += each.stat().st_size
        return found

    def reading(self) -> ReplicaReader:
        """The replica as it is now. Raises as `told`."""
        return ReplicaReader(self._connected(reads=True), self.path)

    def forget(self) -> None:
        """Delete it. Raises `NotFound` where there is none."""
        if not self.path.exists():
            raise NotFound(f"there is no replica of '{self.path.stem}' here", field="node")
        for each in self._files():
            each.unlink(missing_ok=True)

    def mend(self) -> bool:
        """Delete it if the file is damaged, for its node to make it anew; whether it was."""
        try:
            with closing(self._connected()) as db, faults_named(self.path):
                found = db.execute("PRAGMA quick_check(1)").fetchone()
        except DataLoss:
            found = None
        is_whole: bool = found == ("ok",)
        if not is_whole:
            self.forget()
        return not is_whole

    def taker(self, asked: KeepReplica) -> ReplicaTaker:
        """Takes a newer one. Raises `DataLoss`, and `PreconditionFailed` where the disk is full."""
        return ReplicaTaker(self._connected(), self.path, asked)

    def _files(self) -> list[Path]:
        """What SQLite has of it, the file itself last."""
        return [self.path.with_name(self.path.name + end) for end in ("-shm", "-wal", "")]

    def _connected(self, *, reads: bool = False) -> sqlite3.Connection:
        if reads and not self.path.exists():
            raise NotFound(f"there is no replica of '{self.path.stem}' here", field="node")
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        try:
            with faults_named(self.path):
                self._prepare(db, reads=reads)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection, *, reads: bool) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in {0, FORMAT}:
            raise PreconditionFailed(f"{self.path} has format {version}, known is {FORMAT}")
        if version == 0 and reads:
            raise NotFound(f"no replica of '{self.path.stem}' is whole here", field="node")
        if version == 0:
            self.path.chmod(0o600)
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")
        db.execute("PRAGMA synchronous = FULL")


class ReplicaReader:
    """A replica as it was when this was made. Close it."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        try:
            db.execute("BEGIN")
            self.replica, _ = _newest(db, path)
            (self._edition,) = db.execute("SELECT max(number) FROM edition").fetchone()
        except BaseException:
            db.close()
            raise

    def pieces(self, part: str) -> Iterator[EntryPiece]:
        """What a service has given. Raises `DataLoss` for a content that is not as it came."""
        ask = "SELECT name, note, content.id, digest, size FROM entry JOIN content ON content.id = entry.content"
        with faults_named(self._path):
            rows = self._db.execute(f"{ask} WHERE edition = ? AND part = ? ORDER BY name", (self._edition, part))
            for name, note, content, digest, size in rows:
                yield from self._content(part, EntryPiece(name=name, size=size, note=note), content, digest)

    def _content(self, part: str, entry: EntryPiece, content: int, digest: bytes) -> Iterator[EntryPiece]:
        found, sent, piece = blake3.blake3(), 0, entry
        for (some,) in self._db.execute("SELECT bytes FROM piece WHERE id >= ? AND id < ?", _places(content)):
            found.update(some)
            sent += len(some)
            yield msgspec.structs.replace(piece, content=some)
            piece = EntryPiece()
        if sent != entry.size or found.digest() != digest:
            raise DataLoss(f"'{entry.name}' of '{part}' is damaged in {self._path}")

    def close(self) -> None:
        """Let go of it."""
        self._db.close()


class ReplicaTaker:
    """Takes one replica in, piece by piece. Close it, whether it has come to its end or not."""

    def __init__(self, db: sqlite3.Connection, path: Path, asked: KeepReplica) -> None:
        self._db = db
        self._path = path
        self._asked = asked
        self._turn = threading.Lock()  # it is closed on another thread than it works on
        self._entries: Entries | None = None
        self._parts: list[PartSummary] = []
        self._hash = blake3.blake3()  # of the content that is coming
        self._content = 0
        self._name = self._note = ""
        self._pieces = 0
        self._rest = bytearray()
        self._size = 0  # bytes of the part, with what is known
        self._unsafe = 0  # bytes since the last commit
        try:
            with faults_named(path):
                self._begin()
                self._edition = 1 + (db.execute("SELECT max(number) FROM edition").fetchone()[0] or 0)
                self._next = 1 + (db.execute("SELECT max(id) FROM content").fetchone()[0] or 0)
                db.execute("DELETE FROM entry WHERE edition = ?", (self._edition,))
        except BaseException:
            db.close()
            raise

    def known(self) -> bytes:
        """The first bytes of the digests of all that is here."""
        with self._turn, faults_named(self._path):
            return b"".join(digest[:KNOWN] for (digest,) in self._db.execute("SELECT digest FROM content"))

    def add(self, part: str, pieces: Sequence[EntryPiece]) -> None:
        """The next pieces. Raises `Invalid` for what is out of place, `PreconditionFailed` where the disk is full."""
        with self._turn, faults_named(self._path):
            if self._entries is None or self._entries.what != part:
                self._begin_part(part)
            for piece in pieces:
                self._add(piece)

    def finish(self, now: float) -> None:
        """It was all, `now` in Unix time: this is the replica from here on. Raises `DataLoss` where something lacks."""
        with self._turn, faults_named(self._path):
            self._end_part()
            asked, db = self._asked, self._db
            given = {part.name: part for part in self._parts}
            replica = Replica(
                node=self._path.stem,
                at=asked.at,
                made_by=asked.made_by,
                parts=tuple(given.get(name, PartSummary(name=name)) for name in asked.parts),
                left_out=asked.left_out,
            )
            db.execute("INSERT INTO edition VALUES(?, ?, ?)", (self._edition, now, msgspec.json.encode(replica)))
            db.execute("DELETE FROM edition WHERE number < ?", (self._edition,))
            db.execute("DELETE FROM entry WHERE edition < ?", (self._edition,))
            gone = db.execute("SELECT id FROM content WHERE id NOT IN (SELECT content FROM entry)").fetchall()
            for (content,) in gone:
                db.execute("DELETE FROM piece WHERE id >= ? AND id < ?", _places(content))
                db.execute("DELETE FROM content WHERE id = ?", (content,))
            db.execute("COMMIT")
            # What is free goes back to the disk, unless somebody reads: then it does with the next one.
            db.executescript("PRAGMA busy_timeout = 0; PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Let go of it; what is not safe by now is dropped."""
        with self._turn:
            self._db.close()

    def _begin_part(self, part: str) -> None:
        self._end_part()
        if part not in self._asked.parts or any(each.name >= part for each in self._parts):
            raise Invalid(f"'{part}' is not the next of the parts {', '.join(self._asked.parts)}", field="part")
        self._entries = Entries(part, knows=True)
        self._size = 0

    def _end_part(self) -> None:
        entries = self._entries
        if entries is not None:
            entries.finish()
            self._parts.append(PartSummary(name=entries.what, entries=entries.count, bytes=self._size))
            self._entries = None

    def _add(self, piece: EntryPiece) -> None:
        entries = self._entries
        assert entries is not None
        if entries.add(piece):
            self._begin_entry(piece)
        if piece.known:
            self._know(piece)
            return
        if piece.content:
            self._put(piece.content)
        if not entries.left:
            self._end_entry()

    def _begin_entry(self, piece: EntryPiece) -> None:
        entries = self._entries
        assert entries is not None
        if entries.size > PIECE << (PLACES - 1):
            raise Invalid(f"'{piece.name}' of '{entries.what}' has {entries.size} bytes, and that is too large")
        self._name, self._note = piece.name, piece.note[:LONGEST_NOTE]
        self._content = self._next
        self._pieces = 0
        self._hash = blake3.blake3()
        self._rest.clear()

    def _put(self, content: bytes) -> None:
        """Cut into pieces of one length, however they come."""
        self._hash.update(content)
        self._rest += content
        while len(self._rest) >= PIECE:
            self._store(bytes(self._rest[:PIECE]))
            del self._rest[:PIECE]

    def _store(self, piece: bytes) -> None:
        first, _ = _places(self._content)
        self._db.execute("INSERT INTO piece VALUES(?, ?)", (first + self._pieces, piece))
        self._pieces += 1
        self._unsafe += len(piece)

    def _end_entry(self) -> None:
        entries = self._entries
        assert entries is not None
        if self._rest or not self._pieces:
            self._store(bytes(self._rest))
        digest, content = self._hash.digest(), self._content
        same = self._find(digest, entries.size)
        if same is None:
            self._db.execute("INSERT INTO content VALUES(?, ?, ?)", (content, digest, entries.size))
            self._next += 1
        else:
            self._db.execute("DELETE FROM piece WHERE id >= ? AND id < ?", _places(content))
        self._tell(content if same is None else same)
        if self._unsafe >= AT_ONCE:
            self._make_safe()

    def _know(self, piece: EntryPiece) -> None:
        """An entry whose content is here from before."""
        entries = self._entries
        assert entries is not None
        content = self._find(_digest(piece), entries.size)
        if content is None:
            raise Invalid(f"the content of '{piece.name}' of '{entries.what}' is not here")
        self._tell(content)

    def _tell(self, content: int) -> None:
        assert self._entries is not None
        self._size += self._entries.size
        row = (self._edition, self._entries.what, self._name, content, self._note)
        self._db.execute("INSERT INTO entry VALUES(?, ?, ?, ?, ?)", row)

    def _find(self, digest: bytes, size: int) -> int | None:
        ask = "SELECT id FROM content WHERE digest = ? AND size = ?"
        row = self._db.execute(ask, (digest, size)).fetchone()
        return None if row is None else int(row[0])

    def _begin(self) -> None:
        free = shutil.disk_usage(self._path.parent).free
        if free < LEAST_FREE:
            raise PreconditionFailed(
                f"only {free} bytes are left where replicas are kept", remedy="free space on its disk", field="disk"
            )
        self._db.execute("BEGIN IMMEDIATE")

    def _make_safe(self) -> None:
        """Commit what has come; none of it is half."""
        self._db.execute("COMMIT")
        self._unsafe = 0
        self._begin()


@contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """What SQLite raises, as errors of ours: `PreconditionFailed` for a full disk, `DataLoss` for a damaged file."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}:
            why = f"nothing can be written to {path}: {error}"
            raise PreconditionFailed(why, remedy="free space on its disk") from error
        if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            raise DataLoss(f"{path} is damaged: {error}", remedy="delete it: it is made anew") from error
        raise


def _places(content: int) -> tuple[int, int]:
    """The numbers of a content's pieces: the first that one may have, and the one behind the last."""
    return content << PLACES, (content + 1) << PLACES


def _newest(db: sqlite3.Connection, path: Path) -> tuple[Replica, float]:
    row = db.execute("SELECT replica, came FROM edition ORDER BY number DESC LIMIT 1").fetchone()
    if row is None:
        raise NotFound(f"no replica of '{path.stem}' is whole here", field="node")
    try:
        return msgspec.json.decode(row[0], type=Replica), row[1]
    except msgspec.DecodeError as error:
        raise DataLoss(f"{path} is damaged: {error}", remedy="delete it: it is made anew") from error


def _digest(piece: EntryPiece) -> bytes:
    try:
        return bytes.fromhex(piece.digest)
    except ValueError as error:
        raise Invalid(f"'{piece.name}' has a digest that is none") from error
