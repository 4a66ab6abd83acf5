"""Who may do what in a volume: lists of rights at files and folders, which hold from there on downwards.

Who owns a file, or a folder that it is in, may do all with it. For others the nearest list on the way up decides alone;
above all lists nobody may anything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from enum import IntFlag

from microkernel.errors import Invalid
from services.filesystem.messages import EVERYBODY, Grant
from services.filesystem.stored.database import TOP, Entry

__all__ = ["ALL", "AccessLists", "Rights", "grants_of", "rights_of"]


class Rights(IntFlag):
    """`ADD` puts names into folders, `WRITE` changes, renames and removes what is there."""

    NONE = 0
    READ = 1
    ADD = 2
    WRITE = 4


ALL = Rights.READ | Rights.ADD | Rights.WRITE


class AccessLists:
    """The lists of a volume, in memory, as they are in its table."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._lists: Mapping[int, Mapping[str, Rights]] = {}
        self.load()

    def load(self) -> None:
        """Read the table again."""
        lists: dict[int, dict[str, Rights]] = {}
        for node, user, rights in self._db.execute("SELECT node, user, rights FROM access"):
            lists.setdefault(node, {})[user] = Rights(rights)
        self._lists = lists  # in one step: readers are on other threads

    def at(self, node: int) -> Mapping[str, Rights] | None:
        """The list that is kept at a node; None for none."""
        return self._lists.get(node)

    def nodes(self) -> Iterable[int]:
        """Where there are lists."""
        return self._lists.keys()

    def put(self, node: int, grants: Mapping[str, Rights] | None) -> None:
        """Keep a list, in the running transaction."""
        self._db.execute("DELETE FROM access WHERE node = ?", (node,))
        if grants is not None:
            rows = [(node, user, int(rights)) for user, rights in grants.items()]
            # A list of nobody is a list too.
            self._db.executemany("INSERT INTO access VALUES (?, ?, ?)", rows or [(node, "", 0)])
        self.load()

    def given_at(self, way: Sequence[Entry]) -> int:
        """Which node's list holds at the end of a way from the top; the top where there is none."""
        return next((entry.node for entry in reversed(way) if entry.node in self._lists), TOP)

    def of(self, user: str | None, way: Sequence[Entry]) -> Rights:
        """What a user may do at the end of a way from the top; None is root."""
        if user is None or any(entry.owner == user for entry in way):
            return ALL
        grants = self._lists.get(self.given_at(way), {})
        return grants.get(user, Rights.NONE) | grants.get(EVERYBODY, Rights.NONE)


def rights_of(names: Iterable[str]) -> Rights:
    """Rights by their names in messages. Raises `Invalid` for one that is none."""
    rights = Rights.NONE
    for name in names:
        if name not in {"read", "add", "write"}:
            raise Invalid(f"'{name}' is no right: read, add, write", field="grants")
        rights |= Rights[name.upper()]
    return rights


def grants_of(grants: Mapping[str, Rights]) -> tuple[Grant, ...]:
    """A list as messages have it."""
    return tuple(
        Grant(user=user, rights=tuple(str(right.name).lower() for right in Rights if right and right in rights))
        for user, rights in sorted(grants.items())
        if user
    )
