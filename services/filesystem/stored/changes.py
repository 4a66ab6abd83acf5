"""What changes names, within the transaction of whoever calls (hot: once a file that is written).

Each change looks at all that it needs, and raises before it writes a row; what it has done is one version.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from microkernel.errors import AlreadyExists, Invalid, NotFound, PreconditionFailed
from services.filesystem.messages import Change
from services.filesystem.paths import TreePath, twin_key
from services.filesystem.posix import posix
from services.filesystem.stored.access import AccessLists, Rights
from services.filesystem.stored.contents import Content
from services.filesystem.stored.database import FIELDS, SHARED, TOP, Entry
from services.filesystem.stored.names import Names, Way
from services.filesystem.stored.placement import NOBODY, Placement
from services.filesystem.stored.usage import Usage

__all__ = ["Changes"]

INSERT = f"INSERT INTO entry({FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 # constants
KNOWN = f"SELECT id FROM content WHERE digest = ? AND size > {SHARED}"  # noqa: S608 # as its index says
BURY = f"INSERT INTO past({FIELDS}, died, died_at, died_by, ending) SELECT {FIELDS}, ?, ?, ?, ? FROM entry WHERE parent = ? AND key = ?"  # noqa: S608, E501


class Changes:
    """The writer's end of a volume: one thread, inside a transaction."""

    def __init__(
        self,
        db: sqlite3.Connection,
        usage: Usage,
        access: AccessLists,
        now: Callable[[], float],
        *,
        own_folders: frozenset[str],
    ) -> None:
        """`now` is Unix time. In `own_folders` of the top, a folder with a user's name is that user's."""
        self.db = db
        self.names = Names(db, remembers=True)
        self.usage = usage
        self.access = access
        self._now = now
        self._placement = Placement(self.names, access, own_folders)
        self.superfluous: list[str] = []  # contents that came in, and were there
        self.told: list[Change] = []
        self.reset()

    def reset(self) -> None:
        """Begin from what the tables say: at first, and after a transaction that was taken back."""
        self.version = self.names.count("version")
        self._node = self.names.count("node")
        self._counted = (self.version, self._node)
        self.access.load()
        self.usage.reset()
        self.names.forget()
        self.superfluous, self.told = [], []

    @property
    def is_counted(self) -> bool:
        """Whether all that was counted up is in the table."""
        return self._counted == (self.version, self._node)

    def keep(self) -> None:
        """Before the commit: write what is in memory."""
        self.usage.keep()
        if self._counted != (self.version, self._node):
            self.db.execute("UPDATE counter SET value = ? WHERE name = 'version'", (self.version,))
            self.db.execute("UPDATE counter SET value = ? WHERE name = 'node'", (self._node,))
            self._counted = (self.version, self._node)

    def put(self, path: TreePath, content: Content, user: str | None, if_version: int | None = None) -> Entry:
        """A content in place of what is at a path; returns the new entry.

        Raises `Denied`, `Overloaded` for a quota, `Invalid` for a folder, `AlreadyExists` for a twin, and
        `PreconditionFailed` where `if_version` is not what is there.
        """
        way, missing, before = self._placement.place(path, user)
        self._check_version(path, before, if_version)
        if before is not None:
            self._placement.need(user, (*way, before), Rights.WRITE, path)
        owner = before.owner if before is not None else user or NOBODY
        number, is_new = self._known(content)
        kept = not is_new and self.usage.keeps(owner, number)
        self.usage.check(owner, 0 if kept else content.size, 1 + len(missing))
        if is_new:
            number = self._keep(content)
        entry = self._entry(path, way, missing, user, folder=False, owner=owner, size=content.size, content=number,
                            node=None if before is None else before.node, action="written")  # fmt: skip
        if before is not None:
            self.bury(before, user, "written")
        self.insert(entry, fresh=not kept)
        self.tell(path, entry, user, entry.action)
        return entry

    def make_folder(self, path: TreePath, user: str | None, *, exist_ok: bool = False) -> Entry | None:
        """A folder, and those on the way; None for one that is there. Raises as `put`."""
        if not path.names:
            if exist_ok:
                return None
            raise AlreadyExists("the top of a volume is there already", field="path")
        way, missing, before = self._placement.place(path, user, folder_ok=True)
        if before is not None:
            if before.folder and exist_ok:
                return None
            raise AlreadyExists(f"{path} is there already", field="path")
        self.usage.check(user or NOBODY, 0, 1 + len(missing))
        entry = self._entry(
            path, way, missing, user, folder=True, owner=self._placement.owner(path, user), action="made"
        )
        self.insert(entry)
        self._private(path, entry)
        self.tell(path, entry, user, entry.action)
        return entry

    def remove(self, path: TreePath, user: str | None, *, recursive: bool) -> Entry:
        """End a name. Raises `NotFound`, `Denied`, and `PreconditionFailed` for a folder that is not empty."""
        way = self._placement.readable(path, user)
        if not way:
            raise Invalid("the top of a volume cannot be removed", field="path", causes=posix(errno.EBUSY))
        entry = way[-1]
        self._placement.need(user, way, Rights.WRITE, path)
        if entry.folder:
            if not recursive and self.names.children(entry.node, limit=1):
                raise PreconditionFailed(
                    f"{path} is not empty",
                    remedy="remove it with all that is in it: --recursive",
                    causes=posix(errno.ENOTEMPTY),
                )
            self._placement.need_below(way, user, path)
        self.version += 1
        self.bury(entry, user, "removed")
        self.tell(path, entry, user, "removed")
        return entry

    def rename(self, path: TreePath, to: TreePath, user: str | None, *, replace: bool) -> Entry:
        """Another path for the same node. Raises as `remove` and `put`."""
        source = self._placement.readable(path, user)
        if not source:
            raise Invalid("the top of a volume has no other name", field="path", causes=posix(errno.EBUSY))
        moved = source[-1]
        self._placement.need(user, source, Rights.WRITE, path)
        if moved.folder:
            if to != path and to.is_within(path):
                raise Invalid(f"{to} is in {path} itself", field="to")
            self._placement.need_below(source, user, path)
        way, missing, before = self._placement.place(to, user, folder_ok=True, renamed=moved)
        if before is not None and before.node != moved.node:
            if before.folder or not replace:
                raise AlreadyExists(f"{to} is there already", field="to", remedy="" if before.folder else "--replace")
            self._placement.need(user, (*way, before), Rights.WRITE, to)
        self.usage.check(moved.owner, 0, 1 + len(missing))
        entry = self._entry(to, way, missing, user, folder=moved.folder, owner=moved.owner, size=moved.size,
                            content=moved.content, node=moved.node, action="renamed")  # fmt: skip
        if before is not None and before.node != moved.node:
            self.bury(before, user, "replaced")
        self.bury(moved, user, "renamed")
        self.insert(entry, fresh=False)
        self.tell(to, entry, user, entry.action, path)
        return entry

    def copy(self, source: Entry, to: TreePath, user: str | None) -> Entry:
        """A file's content under another path too, as its own node; `source` may be of an old version."""
        assert source.content is not None
        way, missing, before = self._placement.place(to, user)
        if before is not None:
            self._placement.need(user, (*way, before), Rights.WRITE, to)
        if self.db.execute("SELECT 1 FROM content WHERE id = ?", (source.content,)).fetchone() is None:
            raise NotFound("its content was collected a moment ago", field="version")
        owner = before.owner if before is not None else user or NOBODY
        kept = self.usage.keeps(owner, source.content)
        self.usage.check(owner, 0 if kept else source.size, 1 + len(missing))
        entry = self._entry(to, way, missing, user, folder=False, owner=owner, size=source.size,
                            content=source.content, node=None if before is None else before.node,
                            action="copied")  # fmt: skip
        if before is not None:
            self.bury(before, user, "copied")
        self.insert(entry, fresh=not kept)
        self.tell(to, entry, user, entry.action)
        return entry

    def restore(self, parent: int, old: Entry, node: int | None, user: str | None, action: str) -> int:
        """An entry of an old version once more, in the running version; returns its node, a new one for None.

        Raises `Overloaded` for a quota.
        """
        kept = old.content is None or self.usage.keeps(old.owner, old.content)
        self.usage.check(old.owner, 0 if kept else old.size)
        row = self._row(parent, old.name, user, folder=old.folder, owner=old.owner, action=action, size=old.size,
                        content=old.content, node=node)  # fmt: skip
        self.insert(row, fresh=not kept)
        return row.node

    def folders_to(self, path: TreePath, user: str | None) -> int:
        """Begin a version; the folder that a path's last name is in, which is made if it is not there."""
        way, missing, _ = self._placement.place(path, user, folder_ok=True)
        self.usage.check(user or NOBODY, 0, len(missing))
        self.version += 1
        return self._folders(path, way, missing, user)

    def may_restore(self, path: TreePath, then: Way, user: str | None) -> None:
        """Raises `NotFound` where a user may not read what was at a path, `Denied` where it may not change what is."""
        if not self.access.of(user, then) & Rights.READ:
            raise NotFound(f"there is no {path}", field="path")
        way = self.names.way(path)
        if len(way) == len(path.names):
            self._placement.need(user, way, Rights.WRITE, path)
            self._placement.need_below(way, user, path)

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """For changes that find out on the way that they cannot be done."""
        self.usage.keep()
        kept = (self.version, self._node, len(self.superfluous), len(self.told))
        self.db.execute("SAVEPOINT change")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK TO change")
            self.version, self._node = kept[:2]
            del self.superfluous[kept[2] :], self.told[kept[3] :]
            self.access.load()
            self.usage.reset()
            self.names.forget()
            raise
        finally:
            self.db.execute("RELEASE change")

    def insert(self, entry: Entry, *, fresh: bool = False) -> None:
        """A row more; `fresh` where its owner has not had its content."""
        self.usage.add(entry, is_new=fresh)
        self.db.execute(INSERT, msgspec.structs.astuple(entry))
        self.names.remember(entry)

    def bury(self, entry: Entry, user: str | None, ending: str) -> None:
        """Put a row where those are that have ended, with the running version."""
        self.db.execute(BURY, (self.version, self._now(), user or NOBODY, ending, entry.parent, entry.key))
        self.db.execute("DELETE FROM entry WHERE parent = ? AND key = ?", (entry.parent, entry.key))
        self.names.forget(entry)

    def tell(
        self, path: TreePath, entry: Entry | None, user: str | None, action: str, before: TreePath | None = None
    ) -> None:
        """What whoever watches is to know after the commit."""
        size = None if entry is None or entry.folder else entry.size
        self.told.append(
            Change(path=str(path), action=action, version=self.version, by=user or NOBODY, at=self._now(), size=size,
                   before=None if before is None else str(before))
        )  # fmt: skip

    def _check_version(self, path: TreePath, before: Entry | None, if_version: int | None) -> None:
        there = 0 if before is None else before.born
        if if_version is None or if_version == there:
            return
        if if_version == 0:
            raise AlreadyExists(f"{path} is there already, at version {there}", field="if_version")
        raise PreconditionFailed(
            f"{path} is at version {there}, not {if_version}" if there else f"there is no {path}",
            remedy="read it again, and write what follows from that",
            causes=posix(errno.ESTALE),
        )

    def _entry(
        self,
        path: TreePath,
        way: Way,
        missing: tuple[str, ...],
        user: str | None,
        *,
        folder: bool,
        owner: str,
        action: str,
        size: int = 0,
        content: int | None = None,
        node: int | None = None,
    ) -> Entry:
        """A version more: the entry at a path, in folders of which those that are missing are made."""
        self.version += 1
        parent = self._folders(path, way, missing, user)
        return self._row(parent, path.name, user, folder=folder, owner=owner, action=action, size=size,
                         content=content, node=node)  # fmt: skip

    def _folders(self, path: TreePath, way: Way, missing: tuple[str, ...], user: str | None) -> int:
        """The node of the folder at the end of a way, behind folders that are made."""
        parent = way[-1].node if way else TOP
        for place, name in enumerate(missing, start=len(way)):
            at = TreePath(path.names[: place + 1])
            made = self._row(parent, name, user, folder=True, owner=self._placement.owner(at, user), action="made")
            self.insert(made)
            self._private(at, made)
            parent = made.node
        return parent

    def _row(
        self,
        parent: int,
        name: str,
        user: str | None,
        *,
        folder: bool,
        owner: str,
        action: str,
        size: int = 0,
        content: int | None = None,
        node: int | None = None,
    ) -> Entry:
        if node is None:
            self._node += 1
            node = self._node
        return Entry(parent, twin_key(name), name, node, folder, owner, size, content, self._now(), user or NOBODY,
                     action, self.version).sealed()  # fmt: skip

    def _private(self, path: TreePath, made: Entry) -> None:
        """The folder of a user is for that user."""
        if self._placement.is_own(path):
            self.access.put(made.node, {})

    def _known(self, content: Content) -> tuple[int, bool]:
        """The number of a content that is kept already, and whether it is not."""
        if content.size <= SHARED:
            return 0, True
        row = self.db.execute(KNOWN, (content.digest,)).fetchone()
        if row is None:
            return 0, True
        if content.file is not None:
            self.superfluous.append(content.file)
        return int(row[0]), False

    def _keep(self, content: Content) -> int:
        cursor = self.db.execute(
            "INSERT INTO content(digest, size, inline, file, sums) VALUES (?, ?, ?, ?, ?)",
            (content.digest, content.size, content.inline, content.file, content.sums),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid
