"""Who may do what in a stored volume, and what has changed in it, as messages tell it."""

from __future__ import annotations

from microkernel.errors import Denied, Invalid
from services.filesystem.messages import Access, Change
from services.filesystem.paths import TreePath
from services.filesystem.stored.access import Rights, grants_of, rights_of
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.database import FIELDS, PAST, TOP, entry_of, past_of
from services.filesystem.stored.placement import NOBODY
from services.filesystem.stored.sight import Sight
from services.filesystem.stored.volume import StoredVolume
from services.filesystem.volume import not_there

__all__ = ["access_of", "change_access", "changes_since", "may_read"]


async def access_of(volume: StoredVolume, path: TreePath, user: str | None) -> Access:
    """Who may do what with a file or folder. Raises `NotFound`."""

    def work(sight: Sight) -> Access:
        way, _ = sight.find(volume.inside(path))
        node = sight.access.given_at(way)
        given_at = sight.names.path_of(node)
        assert given_at is not None
        return Access(
            path=str(path),
            owner=way[-1].owner if way else NOBODY,
            given_at=str(volume.outside(given_at)),
            grants=grants_of(sight.access.at(node) or {}),
        )

    return await volume.look(work, user)


async def change_access(
    volume: StoredVolume, path: TreePath, grants: dict[str, tuple[str, ...]] | None, user: str | None
) -> Access:
    """Put a list at a path, or take it away. Raises `NotFound`, `Denied`, and `Invalid` for rights that are none."""
    rights = None if grants is None else {name: rights_of(given) for name, given in grants.items()}
    if rights is not None and "" in rights:
        raise Invalid("a user has a name", field="grants")

    def work(changes: Changes) -> None:
        way = changes.names.way(volume.inside(path))
        if len(way) < len(volume.inside(path).names) or not changes.access.of(user, way) & Rights.READ:
            raise not_there(path)
        if user is not None and all(entry.owner != user for entry in way):
            raise Denied(f"only its owner and root say who may do what with {path}")
        if not way and rights is None:
            raise Invalid("the top of a volume has a list: say which", field="grants")
        changes.access.put(way[-1].node if way else TOP, rights)

    await volume.change(work)
    return await access_of(volume, path, user)


async def may_read(volume: StoredVolume, path: TreePath, user: str | None) -> bool:
    """Whether a user may read what is at a path, or what is nearest above it."""
    if user is None:
        return True

    def work(sight: Sight) -> bool:
        return bool(sight.access.of(user, sight.names.way(volume.inside(path))) & Rights.READ)

    return await volume.look(work, user)


async def changes_since(volume: StoredVolume, path: TreePath, since: int, user: str | None) -> list[Change]:
    """What has changed at a path and below it since a version, the oldest first.

    Raises `NotFound` where versions since then are not kept any more.
    """

    def work(sight: Sight) -> list[Change]:
        sight.names.version_of(since)
        inside = volume.inside(path)
        found: list[Change] = []
        for row in sight.names.db.execute(f"SELECT {FIELDS} FROM entry WHERE born > ?", (since,)):  # noqa: S608
            entry = entry_of(row)
            way = sight.names.way_of(entry.node)
            place = None if way is None else TreePath(tuple(each.name for each in way))
            if place is None or way is None or not place.is_within(inside):
                continue
            if sight.access.of(user, way) & Rights.READ:
                found.append(
                    Change(path=str(volume.outside(place)), action=entry.action, version=entry.born, by=entry.by,
                           at=entry.at, size=None if entry.folder else entry.size)
                )  # fmt: skip
        for row in sight.names.db.execute(f"SELECT {PAST} FROM past WHERE died > ?", (since,)):  # noqa: S608
            past = past_of(row)
            way = sight.names.way_of(past.entry.parent, past.died - 1)
            if way is None or past.ending != "removed":
                continue  # what ended otherwise has something in its place
            place = TreePath((*(each.name for each in way), past.entry.name))
            if place.is_within(inside) and sight.access.of(user, (*way, past.entry)) & Rights.READ:
                found.append(
                    Change(path=str(volume.outside(place)), action="removed", version=past.died, by=past.died_by,
                           at=past.died_at)
                )  # fmt: skip
        return sorted(found, key=lambda change: change.version)

    return await volume.look(work, user)
