"""Versions of a stored volume: what there were, what differs between two, names for them, and the way back."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from itertools import islice

from microkernel.errors import AlreadyExists, Invalid, NotFound
from services.filesystem.messages import Difference, FileVersion, Snapshot
from services.filesystem.paths import TreePath, twin_key
from services.filesystem.stored.access import Rights
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.database import TOP, Entry, Past
from services.filesystem.stored.differences import differences
from services.filesystem.stored.names import Names, Way
from services.filesystem.stored.placement import NOBODY
from services.filesystem.stored.rollback import roll_back
from services.filesystem.stored.sight import Sight
from services.filesystem.stored.volume import StoredVolume
from services.filesystem.volume import Version, not_there

__all__ = ["Versions"]

SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")
MOST = 1_000_000  # differences that one answer tells


class Versions:
    """The versions of one volume."""

    def __init__(self, volume: StoredVolume) -> None:
        self._volume = volume

    async def history(self, path: TreePath, user: str | None, limit: int) -> list[FileVersion]:
        """What a path has led to, also under other paths, the newest first. Raises `NotFound`."""

        def work(sight: Sight) -> list[FileVersion]:
            way = _latest_way(sight.names, self._volume.inside(path))
            if way is None or not sight.access.of(user, way) & Rights.READ:
                raise not_there(path)
            if not way:
                return []
            return list(islice(self._told(sight.names, way[-1]), limit))

        return await self._volume.look(work, user)

    async def roll_back(self, path: TreePath, version: Version, user: str | None) -> int:
        """Make a path what it was at a version; how many names that has changed."""

        def work(changes: Changes) -> int:
            number = changes.names.version_of(version)
            if number is None:
                raise Invalid("roll back to which version?", field="version", remedy=f"mk fs history {path}")
            return roll_back(changes, self._volume.inside(path), number, user)

        return await self._volume.change(work)

    async def diff(
        self, path: TreePath, since: Version, until: Version, user: str | None
    ) -> AsyncGenerator[Difference, None]:
        """What became different at a path and below it, by name."""

        def work(sight: Sight) -> list[Difference]:
            first, last = sight.names.version_of(since), sight.names.version_of(until)
            if first is None:
                raise Invalid("since which version?", field="since", remedy="mk fs snapshots, mk fs history")
            found = differences(
                sight.names, self._volume.inside(path), first, last, lambda way: sight.access.of(user, way)
            )
            return list(islice(found, MOST))

        for each in await self._volume.look(work, user):
            inside = TreePath(tuple(each.path.split("/")[1:]))
            yield Difference(path=str(self._volume.outside(inside)), how=each.how, kind=each.kind, size=each.size,
                             before=each.before)  # fmt: skip

    async def snapshots(self) -> list[Snapshot]:
        """All snapshots, the oldest first."""
        return await self._volume.look(lambda sight: sight.names.snapshots())

    async def take(self, name: str, user: str | None) -> Snapshot:
        """Name the newest version. Raises `AlreadyExists`."""
        if SNAPSHOT_NAME.fullmatch(name) is None:
            raise Invalid(
                f"'{name[:100]}' is no name for a snapshot: a letter, then letters, digits, '.', '_' and '-'",
                field="name",
            )

        def work(changes: Changes) -> Snapshot:
            taken = Snapshot(name=name, version=changes.version, at=self._volume.now(), by=user or NOBODY)
            row = (taken.name, taken.version, taken.at, taken.by)
            if changes.db.execute("INSERT OR IGNORE INTO snapshot VALUES (?, ?, ?, ?)", row).rowcount == 0:
                raise AlreadyExists(f"a snapshot is named '{name}' already", field="name")
            return taken

        return await self._volume.change(work)

    async def forget(self, name: str) -> None:
        """Take a snapshot's name away; what only it had goes with the next collection. Raises `NotFound`."""

        def work(changes: Changes) -> None:
            if changes.db.execute("DELETE FROM snapshot WHERE name = ?", (name,)).rowcount == 0:
                raise NotFound(f"no snapshot is named '{name}'", field="name", remedy="mk fs snapshots")

        await self._volume.change(work)

    def _told(self, names: Names, last: Entry) -> list[FileVersion]:
        """All rows of a node, and those that its name has led to before."""
        pasts = {past.id: past for past in names.past(node=last.node)}
        pasts |= {past.id: past for past in names.past(parent=last.parent, key=last.key)}
        told = [self._version(names, past.entry, past) for past in pasts.values()]
        told += [
            FileVersion(version=past.died, path=self._path(names, past.entry, past.died - 1), action="removed",
                        at=past.died_at, by=past.died_by)
            for past in pasts.values()
            if past.ending == "removed"
        ]  # fmt: skip
        living = names.entry_of(last.node)
        if living is not None:
            told.append(self._version(names, living, None))
        return sorted(told, key=lambda each: (each.version, each.until is None), reverse=True)

    def _version(self, names: Names, entry: Entry, past: Past | None) -> FileVersion:
        return FileVersion(
            version=entry.born,
            path=self._path(names, entry, entry.born),
            action=entry.action,
            at=entry.at,
            by=entry.by,
            size=None if entry.folder else entry.size,
            digest=names.digest(entry),
            until=None if past is None else past.died,
        )

    def _path(self, names: Names, entry: Entry, version: int) -> str:
        parent = names.path_of(entry.parent, version)
        return "" if parent is None else str(self._volume.outside(parent / entry.name))


def _latest_way(names: Names, path: TreePath) -> Way | None:
    """What a path leads to, or has led to last; None where it never did."""
    way: list[Entry] = []
    parent = TOP
    for name in path.names:
        found = names.child(parent, name)
        if found is None or found.name != name:
            ended = [past for past in names.past(parent=parent, key=twin_key(name)) if past.entry.name == name]
            if not ended:
                return None
            found = ended[0].entry
        way.append(found)
        parent = found.node
    return tuple(way)
