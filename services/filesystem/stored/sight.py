"""A volume as one user sees it, through one connection."""

from __future__ import annotations

import msgspec

from services.filesystem.paths import TreePath
from services.filesystem.stored.access import AccessLists, Rights
from services.filesystem.stored.contents import Content
from services.filesystem.stored.names import Names, Way
from services.filesystem.stored.placement import Placement
from services.filesystem.stored.usage import Usage
from services.filesystem.volume import Version, not_there

__all__ = ["Sight"]


class Sight(msgspec.Struct, frozen=True):
    """Names, lists and usage; `user` None is root."""

    names: Names
    access: AccessLists
    usage: Usage
    placement: Placement
    user: str | None

    def find(self, path: TreePath, version: Version = None) -> tuple[Way, int | None]:
        """The way to what the user may read, and the version as a number; None is now. Raises `NotFound`.

        The version that a `Stat` tells leads to what it told of, also when others of that time are not kept any more.
        """
        way = () if version is None else self.names.way(path)
        if way and len(way) == len(path.names) and way[-1].born == version:
            number = None
        else:
            number = self.names.version_of(version)
            way = self.names.way(path, number)
        if len(way) < len(path.names) or (way and not self.access.of(self.user, way) & Rights.READ):
            raise not_there(path)
        return way, number

    def content(self, number: int) -> Content | None:
        """A content by its number; None where it was collected."""
        sql = "SELECT digest, size, inline, file, sums FROM content WHERE id = ?"
        row = self.names.db.execute(sql, (number,)).fetchone()
        return None if row is None else Content(*row)
