"""What each owner keeps in a volume, and how much it may: in the tables, in the transaction that changes it.

An owner pays for each content once, however many of its files and old versions have it, and for every row.
"""

from __future__ import annotations

import errno
import sqlite3

from microkernel.errors import Overloaded
from services.filesystem.messages import EVERYBODY, FileQuota, UseOfFiles
from services.filesystem.posix import posix
from services.filesystem.stored.database import Entry
from services.filesystem.stored.settings import VolumeSettings

__all__ = ["ROW", "Usage"]

ROW = 512  # bytes that a version counts besides its content


class Usage:
    """Bytes by owner. What the settings say holds until a quota is set live.

    What was looked up stays in memory, and what has changed is written by `keep`, before the commit: a file that is
    written would else cost four statements more.
    """

    def __init__(self, db: sqlite3.Connection, settings: VolumeSettings) -> None:
        self._db = db
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Begin from what the tables say."""
        self._kept: dict[str, tuple[int, int]] = {}
        self._limits: dict[str, int | None] = {}
        self._whole: int | None = None
        self._changed: set[str] = set()

    def keep(self) -> None:
        """Write what has changed."""
        rows = [(owner, *self._kept[owner]) for owner in self._changed]
        self._changed.clear()
        self._db.executemany("INSERT OR REPLACE INTO usage VALUES (?, ?, ?)", rows)

    def limit(self, owner: str) -> int | None:
        """What an owner may keep, in bytes; None is no limit."""
        if owner not in self._limits:
            self._limits[owner] = self._limit(owner)
        return self._limits[owner]

    def check(self, owner: str, more: int, rows: int = 1) -> None:
        """Raises `Overloaded` where an owner may not keep so many bytes, and rows, more."""
        needed = more + rows * ROW
        whole = self._settings.limit_bytes
        if whole is not None and self.whole() + needed > whole:
            raise Overloaded(
                f"the volume keeps {self.whole()} bytes of {whole}, and this takes {needed}",
                remedy="remove files",
                may_have_run=False,
                causes=posix(errno.ENOSPC),
            )
        limit = self.limit(owner)
        if limit is None:
            return
        used, _ = self.of(owner)
        if used + needed > limit:
            raise Overloaded(
                f"'{owner}' keeps {used} bytes of {limit}, and this takes {needed}",
                remedy="remove files, and forget their old versions: mk fs collect",
                may_have_run=False,
                causes=posix(errno.EDQUOT),
            )

    def of(self, owner: str) -> tuple[int, int]:
        """Bytes and rows of an owner."""
        if owner not in self._kept:
            row = self._db.execute("SELECT bytes, versions FROM usage WHERE owner = ?", (owner,)).fetchone()
            self._kept[owner] = (0, 0) if row is None else (int(row[0]), int(row[1]))
        return self._kept[owner]

    def room(self, owner: str) -> int | None:
        """How many bytes more an owner may keep now; None is no limit."""
        limit, whole = self.limit(owner), self._settings.limit_bytes
        rooms = [] if limit is None else [limit - self.of(owner)[0]]
        rooms += [] if whole is None else [whole - self.whole()]
        return min(rooms, default=None)

    def whole(self) -> int:
        """Bytes of all owners."""
        if self._whole is None:
            self.keep()
            self._whole = int(self._db.execute("SELECT coalesce(sum(bytes), 0) FROM usage").fetchone()[0])
        return self._whole

    def keeps(self, owner: str, content: int) -> bool:
        """Whether an owner has a content already, in a file or in an old version of one."""
        for table in ("entry", "past"):
            sql = f"SELECT 1 FROM {table} WHERE content = ? AND owner = ? LIMIT 1"  # noqa: S608 # one of these two
            if self._db.execute(sql, (content, owner)).fetchone() is not None:
                return True
        return False

    def add(self, entry: Entry, *, is_new: bool) -> None:
        """A row is about to come; `is_new` where its owner has not had its content."""
        self._change(entry.owner, entry.size if is_new else 0, 1)

    def take(self, entry: Entry) -> None:
        """A row has gone."""
        kept = entry.content is None or self.keeps(entry.owner, entry.content)
        self._change(entry.owner, 0 if kept else -entry.size, -1)

    def all(self) -> list[UseOfFiles]:
        """What all owners keep, by name."""
        rows = self._db.execute("SELECT owner, bytes, versions FROM usage ORDER BY owner").fetchall()
        return [
            UseOfFiles(owner=owner, bytes=size, versions=versions, limit_bytes=self.limit(owner))
            for owner, size, versions in rows
        ]

    def set(self, quota: FileQuota) -> None:
        """A limit, from now on."""
        self._db.execute("INSERT OR REPLACE INTO quota VALUES (?, ?)", (quota.owner, quota.limit_bytes))
        self._limits.clear()

    def _limit(self, owner: str) -> int | None:
        settings = self._settings
        for name, otherwise in ((owner, settings.quotas), (EVERYBODY, {EVERYBODY: settings.default_quota})):
            row = self._db.execute("SELECT bytes FROM quota WHERE owner = ?", (name,)).fetchone()
            if row is not None:
                return None if row[0] is None else int(row[0])
            if name in otherwise:
                return otherwise[name]
        return None

    def _change(self, owner: str, size: int, rows: int) -> None:
        used, had = self.of(owner)
        more = size + rows * ROW
        self._kept[owner] = (used + more, had + rows)
        self._changed.add(owner)
        if self._whole is not None:
            self._whole += more
