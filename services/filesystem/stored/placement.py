"""Where a path would be, and whether a user may put something there; it looks and changes nothing."""

from __future__ import annotations

import errno

from microkernel.errors import AlreadyExists, Denied, Invalid, NotFound
from services.filesystem.paths import TreePath
from services.filesystem.posix import posix
from services.filesystem.stored.access import AccessLists, Rights
from services.filesystem.stored.database import TOP, Entry
from services.filesystem.stored.names import Names, Way

__all__ = ["NOBODY", "Placement"]

NOBODY = "root"  # who a change without a user is by


class Placement:
    """Paths and rights, as one connection sees them."""

    def __init__(self, names: Names, access: AccessLists, own_folders: frozenset[str]) -> None:
        """In `own_folders` of the top, a folder with a user's name is that user's."""
        self._names = names
        self._access = access
        self._own_folders = own_folders

    def place(
        self, path: TreePath, user: str | None, *, folder_ok: bool = False, renamed: Entry | None = None
    ) -> tuple[Way, tuple[str, ...], Entry | None]:
        """Where a path would be: the folders that are there, the names of those that are not, and what is at its end.

        Raises `Invalid` for what is no file's place, `AlreadyExists` for a twin, `Denied` where nothing may be added.
        """
        if not path.names:
            raise Invalid("the top of a volume is a folder", field="path", causes=posix(errno.EISDIR))
        way: list[Entry] = []
        parent = TOP
        for place, name in enumerate(path.names):
            found = self._names.child(parent, name)
            last = place == len(path.names) - 1
            if found is None or (found.name != name and last and renamed is not None and found.node == renamed.node):
                missing = path.names[place:-1]
                self.may_add(user, tuple(way), path, path.names[place])
                return tuple(way), missing, found
            if found.name != name:
                raise AlreadyExists(
                    f"{TreePath(path.names[:place]) / found.name} is there, and {name!r} is taken for the same name",
                    field="path",
                    remedy="use that name, or one that differs by more than case and form",
                )
            if last:
                if found.folder and not folder_ok:
                    raise Invalid(f"{path} is a folder", field="path", causes=posix(errno.EISDIR))
                return tuple(way), (), found
            if not found.folder:
                at = TreePath(path.names[: place + 1])
                raise Invalid(f"{at} is a file, not a folder", field="path", causes=posix(errno.ENOTDIR))
            way.append(found)
            parent = found.node
        raise AssertionError("a path that is not the top has a last name")

    def may_add(self, user: str | None, way: Way, path: TreePath, name: str) -> None:
        """Raises `Denied` where a user may not put a name into the folder at the end of a way."""
        is_own = len(way) == 1 and way[0].name in self._own_folders and user == name
        rights = self._access.of(user, way)
        if not is_own and not rights & (Rights.ADD | Rights.WRITE):
            raise Denied(
                f"'{user}' may not put anything into {TreePath(path.names[: len(way)])}",
                remedy="mk fs access shows who may",
            )

    def need(self, user: str | None, way: Way, right: Rights, path: TreePath) -> None:
        if not self._access.of(user, way) & right:
            raise Denied(f"'{user}' may not change {path}", remedy="mk fs access shows who may")

    def need_below(self, way: Way, user: str | None, path: TreePath) -> None:
        """Lists within a folder may say otherwise: who may change the folder may not by that change what is in it."""
        if user is None or any(entry.owner == user for entry in way):
            return
        for node in self._access.nodes():
            below = self._names.way_of(node)
            if below is not None and len(below) > len(way) and below[len(way) - 1].node == way[-1].node:
                self.need(user, below, Rights.WRITE, path)

    def readable(self, path: TreePath, user: str | None) -> Way:
        """The entries on a path; what may not be read, is not there."""
        way = self._names.find(path)
        if not self._access.of(user, way) & Rights.READ:
            raise NotFound(f"there is no {path}", field="path")
        return way

    def owner(self, path: TreePath, user: str | None) -> str:
        """Whose a new folder is: in the folders of users, that of the name."""
        if self.is_own(path):
            return path.name
        return user or NOBODY

    def is_own(self, path: TreePath) -> bool:
        """Whether a path is that of a user's own folder."""
        return len(path.names) == 2 and path.names[0] in self._own_folders
