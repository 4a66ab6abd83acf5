"""Forgets versions that nobody keeps, and the contents that nothing refers to any more.

A version is kept for as long as the settings say, and as long as a snapshot has it. What was in a folder that is
forgotten goes with it.
"""

from __future__ import annotations

import msgspec

from microkernel.errors import Denied, NotFound
from services.filesystem.paths import TreePath, twin_key
from services.filesystem.stored.access import Rights
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.database import FIELDS, PAST, TOP, Entry, Past, entry_of, past_of

__all__ = ["Forgotten", "collect", "forget_versions"]

FREE = f"""
SELECT {PAST} FROM past WHERE died_at <= ? AND NOT EXISTS (
    SELECT 1 FROM snapshot WHERE version >= born AND version < died) LIMIT ?
"""  # noqa: S608 # constants of ours


class Forgotten(msgspec.Struct):
    """What one step has forgotten; `files` are contents that may be removed once it is committed."""

    versions: int = 0
    contents: int = 0
    bytes: int = 0
    files: list[str] = msgspec.field(default_factory=list)

    def count(self, step: Forgotten) -> None:
        """Count what another step has forgotten; its files are its own."""
        self.versions += step.versions
        self.contents += step.contents
        self.bytes += step.bytes


def collect(changes: Changes, before: float, most: int) -> Forgotten:
    """Forget at most `most` versions that ended before a time, in Unix seconds, and what only they refer to."""
    found = [past_of(row) for row in changes.db.execute(FREE, (before, most)).fetchall()]
    if not found:
        return Forgotten()
    with changes.undone_on_error():
        return _forget(changes, found)


def forget_versions(changes: Changes, path: TreePath, user: str | None) -> Forgotten:
    """Forget now what a path has led to before: old versions of what is there, and of what was removed from there.

    Those of snapshots stay. Raises `NotFound` for a path that never led anywhere, and `Denied`.
    """
    parent = changes.names.find(path.parent)
    key = twin_key(path.name)
    pasts = {past.id: past for past in changes.names.past(parent=parent[-1].node if parent else TOP, key=key)}
    way = changes.names.way(path)
    if len(way) == len(path.names) and way:
        pasts |= {past.id: past for past in changes.names.past(node=way[-1].node)}
    elif not pasts:
        raise NotFound(f"there is no {path}", field="path")
    kept = [snapshot.version for snapshot in changes.names.snapshots()]
    found = [past for past in pasts.values() if not any(past.entry.born <= version < past.died for version in kept)]
    for entry in {past.entry.node: past.entry for past in found}.values():
        if not changes.access.of(user, (*parent, entry)) & Rights.WRITE:
            raise Denied(f"'{user}' may not change {path}", remedy="mk fs access shows who may")
    if not found:
        return Forgotten()
    with changes.undone_on_error():
        return _forget(changes, found)


def _forget(changes: Changes, found: list[Past]) -> Forgotten:
    changes.names.forget()
    step = _Collection(changes)
    for past in found:
        step.end(past)
    horizon = max(past.died for past in found)
    changes.db.execute("UPDATE counter SET value = max(value, ?) WHERE name = 'horizon'", (horizon,))
    return step.forgotten


class _Collection:
    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._db = changes.db
        self.forgotten = Forgotten()

    def end(self, past: Past) -> None:
        """An old version goes, unless it went with the folder that it was in."""
        if self._db.execute("DELETE FROM past WHERE id = ?", (past.id,)).rowcount:
            self.gone(past.entry)

    def gone(self, entry: Entry) -> None:
        """A row has gone: its content and, for the last one of a folder, what was in that, may have to go too."""
        self.forgotten.versions += 1
        self._changes.usage.take(entry)
        if entry.content is not None:
            self._content(entry.content)
        elif entry.folder and not self._has_row(entry.node):
            self._inside(entry.node)

    def _inside(self, folder: int) -> None:
        if self._changes.access.at(folder) is not None:
            self._changes.access.put(folder, None)
        for row in self._db.execute(f"SELECT {FIELDS} FROM entry WHERE parent = ?", (folder,)).fetchall():  # noqa: S608
            entry = entry_of(row)
            self._db.execute("DELETE FROM entry WHERE parent = ? AND key = ?", (folder, entry.key))
            self.gone(entry)
        for row in self._db.execute(f"SELECT {PAST} FROM past WHERE parent = ?", (folder,)).fetchall():  # noqa: S608
            self.end(past_of(row))

    def _has_row(self, node: int) -> bool:
        sql = "SELECT 1 FROM entry WHERE node = ?1 UNION ALL SELECT 1 FROM past WHERE node = ?1 LIMIT 1"
        return self._db.execute(sql, (node,)).fetchone() is not None

    def _content(self, number: int) -> None:
        sql = "SELECT 1 FROM entry WHERE content = ?1 UNION ALL SELECT 1 FROM past WHERE content = ?1 LIMIT 1"
        if self._db.execute(sql, (number,)).fetchone() is not None:
            return
        row = self._db.execute("DELETE FROM content WHERE id = ? RETURNING size, file", (number,)).fetchone()
        if row is None:
            return
        if self._db.execute("DELETE FROM pieced WHERE content = ?", (number,)).rowcount:
            self._db.execute("DELETE FROM piece WHERE content = ?", (number,))
        self.forgotten.contents += 1
        self.forgotten.bytes += row[0]
        if row[1] is not None:
            self.forgotten.files.append(row[1])
