"""Makes a path what it was at a version, by changes like any others: nothing is forgotten by it."""

from __future__ import annotations

from microkernel.errors import Denied
from services.filesystem.paths import TreePath
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.database import TOP, Entry

__all__ = ["roll_back"]

ACTION = "rolled back"


def roll_back(changes: Changes, path: TreePath, version: int, user: str | None) -> int:
    """All at and below `path` as it was at `version`; returns how many names that has changed.

    Nodes stay what they were, but for one that has another name by now: it is copied. Raises `NotFound` where nothing
    was there, `Denied`, and `Overloaded` for a quota; then nothing has changed.
    """
    with changes.undone_on_error():
        return _RollBack(changes, version, user).run(path)


class _RollBack:
    def __init__(self, changes: Changes, version: int, user: str | None) -> None:
        self._changes = changes
        self._names = changes.names
        self._then = version
        self._user = user
        self._count = 0

    def run(self, path: TreePath) -> int:
        way = self._names.find(path, self._then)
        changes = self._changes
        if not way:
            if self._user is not None:
                raise Denied("only root rolls a whole volume back")
            changes.version += 1
            self._children(TOP, TOP)
            changes.tell(path, None, self._user, ACTION)
            return self._count
        changes.may_restore(path, way, self._user)
        parent = changes.folders_to(path, self._user)
        self._child(parent, way[-1])
        changes.tell(path, way[-1], self._user, ACTION)
        return self._count

    def _child(self, parent: int, old: Entry) -> None:
        """Put one entry back into a folder."""
        now = self._names.child(parent, old.name)
        if now is not None and now.node == old.node:
            if (now.name, now.content) != (old.name, old.content):
                self._changes.bury(now, self._user, ACTION)
                self._insert(parent, old, old.node)
            if old.folder:
                self._children(old.node, old.node)
            return
        if now is not None:
            self._changes.bury(now, self._user, ACTION)
        is_free = self._names.entry_of(old.node) is None
        node = self._insert(parent, old, old.node if is_free else None)
        if old.folder:
            self._children(old.node, node)

    def _children(self, then: int, now: int) -> None:
        """What was in the folder `then`, into the folder `now`, and nothing else."""
        old = {entry.key: entry for entry in self._names.children(then, self._then)}
        for entry in self._names.children(now):
            if entry.key not in old:
                self._changes.bury(entry, self._user, ACTION)
                self._count += 1
        for entry in old.values():
            self._child(now, entry)

    def _insert(self, parent: int, old: Entry, node: int | None) -> int:
        self._count += 1
        return self._changes.restore(parent, old, node, self._user, ACTION)
