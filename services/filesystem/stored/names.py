"""Looks names up, now and as they were at a version (hot: once a name on the way to a file)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from microkernel.errors import Invalid, NotFound
from services.filesystem.messages import Snapshot
from services.filesystem.paths import ROOT, TreePath, twin_key
from services.filesystem.stored.database import FIELDS, PAST, TOP, Entry, Past, entry_of, past_of, unchecked_entry_of

__all__ = ["LONGEST_WAY", "Names", "Way"]

NOW = f"SELECT {FIELDS} FROM entry WHERE parent = ? AND key = ?"  # noqa: S608 # constants of ours, here and below
CHILDREN = f"SELECT {FIELDS} FROM entry WHERE parent = ? AND key > ? ORDER BY key LIMIT ?"  # noqa: S608
THEN = f"""
SELECT {FIELDS} FROM entry WHERE parent = :parent AND key = :key AND born <= :version UNION ALL
SELECT {FIELDS} FROM past WHERE parent = :parent AND key = :key AND born <= :version AND died > :version
"""  # noqa: S608
CHILDREN_THEN = f"""
SELECT {FIELDS} FROM entry WHERE parent = :parent AND key > :after AND born <= :version UNION ALL
SELECT {FIELDS} FROM past WHERE parent = :parent AND key > :after AND born <= :version AND died > :version
ORDER BY 2 LIMIT :limit
"""  # noqa: S608

REMEMBERED = 65_536  # folders
LONGEST_WAY = 4096  # names; a rename may make a way longer than a path may be

Way = tuple[Entry, ...]
"""The entries from the top of a volume to a file or folder, that one included; none for the top itself."""


class Names:
    """The names of a volume, as one connection sees them."""

    def __init__(self, db: sqlite3.Connection, *, remembers: bool = False) -> None:
        """Whoever is told of all changes, by `remember` and `forget`, may remember folders: the writer."""
        self.db = db
        self._folders: dict[tuple[int, str], Entry] | None = {} if remembers else None

    def child(self, parent: int, name: str, version: int | None = None) -> Entry | None:
        """What a name in a folder leads to, or a twin of that name; None for nothing."""
        key = twin_key(name)
        if version is None:
            known = None if self._folders is None else self._folders.get((parent, key))
            if known is not None:
                return known
            row = self.db.execute(NOW, (parent, key)).fetchone()
        else:
            row = self.db.execute(THEN, {"parent": parent, "key": key, "version": version}).fetchone()
        if row is None:
            return None
        entry = entry_of(row)
        if version is None:
            self.remember(entry)
        return entry

    def remember(self, entry: Entry) -> None:
        """An entry is there; folders are looked up again and again."""
        if self._folders is not None and entry.folder:
            if len(self._folders) >= REMEMBERED:
                self._folders.clear()
            self._folders[entry.parent, entry.key] = entry

    def forget(self, entry: Entry | None = None) -> None:
        """An entry is there no more; None is all of them."""
        if self._folders is not None:
            if entry is None:
                self._folders.clear()
            else:
                self._folders.pop((entry.parent, entry.key), None)

    def children(self, parent: int, version: int | None = None, *, after: str = "", limit: int = -1) -> list[Entry]:
        """What is in a folder, by name, from behind the name `after`; -1 is no limit. Rows are not checked: one that is
        damaged is not to hide the others.
        """
        key = twin_key(after)
        if version is None:
            rows = self.db.execute(CHILDREN, (parent, key, limit))
        else:
            rows = self.db.execute(CHILDREN_THEN, {"parent": parent, "after": key, "version": version, "limit": limit})
        return [unchecked_entry_of(row) for row in rows]

    def way(self, path: TreePath, version: int | None = None) -> Way:
        """The entries on a path, as far as it leads: fewer than its names where something is not there."""
        way: list[Entry] = []
        parent = TOP
        for name in path.names:
            found = self.child(parent, name, version)
            if found is None or found.name != name or (way and not way[-1].folder):
                break
            way.append(found)
            parent = found.node
        return tuple(way)

    def find(self, path: TreePath, version: int | None = None) -> Way:
        """The entries on a path. Raises `NotFound`."""
        way = self.way(path, version)
        if len(way) < len(path.names):
            raise NotFound(f"there is no {path}", field="path")
        return way

    def way_of(self, node: int, version: int | None = None) -> Way | None:
        """The entries that lead to a node; None where none do, or where they lead in a circle."""
        way: list[Entry] = []
        while node != TOP:
            entry = self.entry_of(node, version)
            if entry is None or len(way) >= LONGEST_WAY:
                return None
            way.append(entry)
            node = entry.parent
        return tuple(reversed(way))

    def path_of(self, node: int, version: int | None = None) -> TreePath | None:
        """The path of a node within its volume; None where nothing leads to it."""
        way = self.way_of(node, version)
        return None if way is None else TreePath(tuple(entry.name for entry in way)) if way else ROOT

    def entry_of(self, node: int, version: int | None = None) -> Entry | None:
        """The one name of a node; None where it has none."""
        sql = f"SELECT {FIELDS} FROM entry WHERE node = ?"  # noqa: S608
        row = self.db.execute(sql, (node,)).fetchone()
        if version is not None and (row is None or entry_of(row).born > version):
            sql = f"SELECT {FIELDS} FROM past WHERE node = ? AND born <= ? AND died > ?"  # noqa: S608
            row = self.db.execute(sql, (node, version, version)).fetchone()
        return None if row is None else entry_of(row)

    def digest(self, entry: Entry) -> str | None:
        """The digest of an entry's content, in hex; None for a folder, and where it was collected."""
        if entry.content is None:
            return None
        row = self.db.execute("SELECT digest FROM content WHERE id = ?", (entry.content,)).fetchone()
        return None if row is None else str(row[0].hex())

    def past(self, *, node: int | None = None, parent: int = 0, key: str = "") -> list[Past]:
        """What a node was, or what a name in a folder led to; the newest first."""
        if node is not None:
            sql = f"SELECT {PAST} FROM past WHERE node = ? ORDER BY born DESC"  # noqa: S608
            return [past_of(row) for row in self.db.execute(sql, (node,))]
        sql = f"SELECT {PAST} FROM past WHERE parent = ? AND key = ? ORDER BY born DESC"  # noqa: S608
        return [past_of(row) for row in self.db.execute(sql, (parent, key))]

    def below(self, node: int) -> Iterator[Entry]:
        """All that is in a folder now, and in the folders in it."""
        folders = [node]
        while folders:
            for entry in self.children(folders.pop()):
                if entry.folder:
                    folders.append(entry.node)
                yield entry

    def count(self, name: str) -> int:
        """A counter of the volume: version, node, horizon."""
        return int(self.db.execute("SELECT value FROM counter WHERE name = ?", (name,)).fetchone()[0])

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, the oldest first."""
        rows = self.db.execute("SELECT name, version, at, by FROM snapshot ORDER BY version, name")
        return [Snapshot(name=name, version=version, at=at, by=by) for name, version, at, by in rows]

    def version_of(self, version: int | str | None) -> int | None:
        """A version by its number or its snapshot's name. Raises `NotFound` for one that is not kept any more."""
        if version is None:
            return None
        named = {each.name: each.version for each in self.snapshots()}
        if isinstance(version, str) and not version.isdecimal():
            if version not in named:
                raise NotFound(f"no snapshot is named '{version}'", field="version", remedy="mk fs snapshots")
            return named[version]
        number = int(version)
        newest = self.count("version")
        if not 0 <= number <= newest:
            raise Invalid(f"there is no version {number} yet: the newest is {newest}", field="version")
        horizon = self.count("horizon")
        if number < horizon and number not in named.values():
            raise NotFound(
                f"version {number} is not kept any more: the oldest is {horizon}",
                field="version",
                remedy="name what is to be kept: mk fs snapshot NAME",
            )
        return number
