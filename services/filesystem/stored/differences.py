"""What became different from one version to another: both trees, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from microkernel.errors import NotFound
from services.filesystem.messages import Difference, FileKind
from services.filesystem.paths import TreePath
from services.filesystem.stored.access import Rights
from services.filesystem.stored.database import TOP, Entry
from services.filesystem.stored.names import Names, Way

__all__ = ["differences"]


def differences(
    names: Names, path: TreePath, since: int, until: int | None, rights: Callable[[Way], Rights]
) -> Iterator[Difference]:
    """Files and folders at and below `path` that `until` has and `since` has not, or the other way round, or other.

    What `rights` does not let be read is left out. Raises `NotFound` where the path led nowhere at both.
    """
    way, other = names.way(path, since), names.way(path, until)
    before = way if len(way) == len(path.names) else None
    after = other if len(other) == len(path.names) else None
    if before is None and after is None:
        raise NotFound(f"there was no {path}", field="path")
    yield from _Differences(names, since, until, rights).of(path, before, after)


class _Differences:
    def __init__(self, names: Names, since: int, until: int | None, rights: Callable[[Way], Rights]) -> None:
        self._names = names
        self._since, self._until = since, until
        self._rights = rights

    def of(self, path: TreePath, before: Way | None, after: Way | None) -> Iterator[Difference]:
        way = after if after is not None else before
        assert way is not None
        if not self._rights(way) & Rights.READ:
            return
        old = before[-1] if before else None
        new = after[-1] if after else None
        if path.names:
            yield from self._one(path, old, new)
        is_folder = (not before or before[-1].folder, not after or after[-1].folder)
        children = self._children(before, self._since) if before is not None and is_folder[0] else {}
        others = self._children(after, self._until) if after is not None and is_folder[1] else {}
        for key in sorted(children.keys() | others.keys()):
            child, other = children.get(key), others.get(key)
            shown = other or child
            assert shown is not None
            yield from self.of(
                path / shown.name,
                (*(before or ()), child) if child is not None else None,
                (*(after or ()), other) if other is not None else None,
            )

    def _children(self, way: Way, version: int | None) -> dict[str, Entry]:
        node = way[-1].node if way else TOP
        return {entry.key: entry for entry in self._names.children(node, version)}

    def _one(self, path: TreePath, old: Entry | None, new: Entry | None) -> Iterator[Difference]:
        if old is None and new is not None:
            yield Difference(path=str(path), how="added", kind=_kind(new), size=_size(new))
        elif new is None and old is not None:
            yield Difference(path=str(path), how="removed", kind=_kind(old), before=_size(old))
        elif old is not None and new is not None and not self._alike(old, new):
            yield Difference(path=str(path), how="changed", kind=_kind(new), size=_size(new), before=_size(old))

    def _alike(self, old: Entry, new: Entry) -> bool:
        if (old.name, old.folder, old.size) != (new.name, new.folder, new.size):
            return False
        # Equal small contents are rows of their own.
        return old.content == new.content or self._names.digest(old) == self._names.digest(new)


def _kind(entry: Entry) -> FileKind:
    return FileKind.FOLDER if entry.folder else FileKind.FILE


def _size(entry: Entry) -> int | None:
    return None if entry.folder else entry.size
