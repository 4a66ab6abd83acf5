"""A volume that keeps every version: on disk, or in memory for as long as the node runs."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import msgspec

from microkernel.errors import DataLoss, Invalid, MicrokernelError, NotFound, Overloaded, PreconditionFailed
from microkernel.portable import EntryPiece, Known
from services.filesystem.messages import EVERYBODY, Change, Damage, FileKind, Stat
from services.filesystem.paths import TreePath
from services.filesystem.posix import posix
from services.filesystem.stored.access import AccessLists, Rights
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.collection import collect
from services.filesystem.stored.committer import Committer
from services.filesystem.stored.contents import Content, ContentFiles, ContentMemory, digest_of
from services.filesystem.stored.database import PAGE, TOP, Entry, create
from services.filesystem.stored.exported import exported
from services.filesystem.stored.mark import Mark
from services.filesystem.stored.names import Names, Way
from services.filesystem.stored.placement import NOBODY, Placement
from services.filesystem.stored.readers import Readers
from services.filesystem.stored.settings import VolumeSettings
from services.filesystem.stored.sight import Sight
from services.filesystem.stored.streams import INLINE, STEP, Streams
from services.filesystem.stored.usage import Usage
from services.filesystem.volume import Version, a_folder, folder_stat, not_a_folder, not_there

__all__ = ["StoredVolume"]

T = TypeVar("T")

LOOK = 0.05  # seconds for which the free space of a disk is known: asking takes 17 us
ROW_ON_DISK = 16 << 10  # bytes of pages that a change may take
PATIENCE = 3  # times that a file is looked up again, when a collection took its content away in between


class StoredVolume:
    """Files whose every change is a version; paths are those of the whole tree."""

    def __init__(
        self,
        mount: TreePath,
        folder: Path | None,
        settings: VolumeSettings,
        *,
        about: str = "",
        first: Mapping[str, Mapping[str, Rights]] | None = None,
        top: Mapping[str, Rights] | None = None,
        own_folders: frozenset[str] = frozenset(),
        tell: Callable[[Change], None] = lambda _: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Without a `folder` it is in memory. `first` are the folders of a new one with who may what in them; `top` is
        the list at its top. `tell` is called on the loop with what has changed, once it is on the disk.
        """
        self.mount = mount
        self.about = about
        self.settings = settings
        self.now = now
        self.lost: Damage | None = None  # what was found to be lost when it was opened
        self._mark: Mark | None = None
        self._folder = folder
        self._free = 0  # bytes of the disk, when it was last looked at
        self._looked = -math.inf
        self._first = first or {}
        self._top = {EVERYBODY: Rights.READ} if top is None else top
        self._own_folders = own_folders
        self._tell = tell
        self._database = None if folder is None else folder / "names.sqlite"
        self.store: ContentFiles | ContentMemory = (
            ContentMemory() if folder is None else ContentFiles(folder / "contents")
        )

    async def open(self) -> None:
        """Make what is not there, and clear away what a crash has left. Raises `DataLoss` and `PreconditionFailed`."""
        name = f"filesystem {self.mount}"
        self._committer = Committer(
            self._open_changes,
            path=self._database,
            name=name,
            committed=self._mark_version,
            remove=self.store.remove,
            tell=self._changed,
        )
        await self._committer.start()
        self._readers = None if self._database is None else Readers(self._database, name)
        self.streams = Streams(self.store, name)

    async def close(self) -> None:
        if self._readers is not None:
            await self._readers.close()
        await self.streams.close()
        await self._committer.close()
        if self._mark is not None:
            self._mark.close()

    async def look(self, work: Callable[[Sight], T], user: str | None = None) -> T:
        """What `work` makes of what is committed."""
        if self._readers is None:  # a database in memory has one connection
            return await self._committer.run(lambda changes: work(self._sight(changes.db, user)))
        return await self._readers.run(lambda db: work(self._sight(db, user)))

    async def content(self, number: int) -> Content | None:
        """A content by its number; None where it was collected."""
        return await self.look(lambda sight: sight.content(number))

    async def change(self, work: Callable[[Changes], T]) -> T:
        """Do `work` with the tables; it is on the disk when this returns."""
        if self.settings.keep_seconds > 0:
            return await self._committer.run(work)

        def leaving_nothing(changes: Changes) -> tuple[T, list[str]]:
            result = work(changes)
            files = []
            while (step := collect(changes, math.inf, 1000)).versions:
                files += step.files
            return result, files

        result, files = await self._committer.run(leaving_nothing)
        self.store.remove(files)  # in memory: a volume on disk keeps versions for a while
        return result

    def inside(self, path: TreePath) -> TreePath:
        """A path of the tree as one from the volume's own top."""
        return path.below(self.mount)

    def outside(self, path: TreePath) -> TreePath:
        """A path from the volume's own top as one of the tree."""
        return TreePath((*self.mount.names, *path.names))

    def exported(self, known: Known, mounts: bytes | None, largest: int | None = None) -> Iterator[EntryPiece]:
        """All that is kept on disk, contents of up to `largest` bytes, as it is when the first entry is asked for.

        It blocks.
        """
        assert self._database is not None
        assert isinstance(self.store, ContentFiles)
        return exported(self._database, self.store, known, mounts, largest)

    async def stat(self, path: TreePath, user: str | None, version: Version = None) -> Stat:
        def work(sight: Sight) -> Stat:
            way, _ = sight.find(self.inside(path), version)
            if not way:
                return folder_stat(path, self.about)
            return self.stat_of(path, way[-1], sight.names.digest(way[-1]))

        return await self.look(work, user)

    async def list(
        self, path: TreePath, user: str | None, version: Version = None, *, after: str = "", limit: int = 10_000
    ) -> list[Stat]:
        def work(sight: Sight) -> list[Stat]:
            number = sight.names.version_of(version)
            way = sight.names.way(self.inside(path), number)
            if len(way) < len(self.inside(path).names):
                raise not_there(path)
            if way and not way[-1].folder:
                raise not_a_folder(path)
            if not sight.access.of(user, way) & (Rights.READ | Rights.ADD):
                raise not_there(path)
            return [*self._listed(sight, path, way, number, after, limit)]

        return await self.look(work, user)

    async def read(
        self, path: TreePath, user: str | None, start: int, stop: int | None, version: Version = None
    ) -> AsyncGenerator[bytes, None]:
        missing: NotFound | None = None
        for _ in range(PATIENCE):
            content = (await self._content(path, user, version))[1]
            try:
                async with aclosing(self.streams.give_out(content, start, stop, path)) as pieces:
                    async for piece in pieces:
                        yield piece
            except NotFound as error:  # raised before the first byte only
                missing = error
            else:
                return
        raise DataLoss(
            f"the content of {path} is missing", remedy="mk fs scrub repairs it from a mirror where there is one"
        ) from missing

    async def write(self, path: TreePath, content: bytes, user: str | None, if_version: int | None = None) -> Stat:
        if len(content) <= INLINE:
            made = Content(digest_of(content), len(content), inline=content)
            return await self._put(path, made, user, if_version)

        async def one() -> AsyncIterator[bytes]:
            yield content

        return await self.write_stream(path, one(), user, None, if_version)

    async def write_stream(
        self,
        path: TreePath,
        pieces: AsyncIterator[bytes],
        user: str | None,
        start: int | None = None,
        if_version: int | None = None,
    ) -> Stat:
        room = await self.look(lambda sight: self._room(sight, path), user)

        def check(size: int) -> None:
            self._check_disk(STEP)  # what is on its way has not all been written yet
            if room is not None and size > room:
                raise Overloaded(
                    f"{path} takes more than {size} bytes, and {max(0, room)} are left of the quota",
                    remedy="remove files, and forget their old versions: mk fs collect",
                    may_have_run=False,
                    causes=posix(errno.EDQUOT),
                )

        if start is not None:
            before, old = await self._content(path, user, None)
            if not 0 <= start <= old.size:
                raise Invalid(f"{path} has {old.size} bytes: nothing can begin at {start}", field="start")
            pieces = self._patched(path, old, pieces, start)
            if_version = before.born if if_version is None else if_version
        content = await self.streams.take_in(pieces, check)
        return await self._put(path, content, user, if_version)

    async def make_folder(self, path: TreePath, user: str | None, *, exist_ok: bool) -> Stat:
        def work(changes: Changes) -> Entry | None:
            return changes.make_folder(self.inside(path), user, exist_ok=exist_ok)

        made = await self.change(work)
        return await self.stat(path, user) if made is None else self.stat_of(path, made)

    async def remove(self, path: TreePath, user: str | None, *, recursive: bool) -> None:
        await self.change(lambda changes: changes.remove(self.inside(path), user, recursive=recursive))

    async def rename(self, path: TreePath, to: TreePath, user: str | None, *, replace: bool) -> Stat:
        def work(changes: Changes) -> Entry:
            return changes.rename(self.inside(path), self.inside(to), user, replace=replace)

        return self.stat_of(to, await self.change(work))

    async def copy(self, path: TreePath, to: TreePath, user: str | None, version: Version = None) -> Stat:
        before, _ = await self._content(path, user, version)
        return self.stat_of(to, await self.change(lambda changes: changes.copy(before, self.inside(to), user)))

    def stat_of(self, path: TreePath, entry: Entry, digest: str | None = None) -> Stat:
        """An entry as messages have it."""
        return Stat(
            path=str(path),
            kind=FileKind.FOLDER if entry.folder else FileKind.FILE,
            size=None if entry.folder else entry.size,
            version=entry.born,
            modified=entry.at,
            owner=entry.owner,
            by=entry.by,
            digest=digest,
            about="" if entry.is_whole else "its row is damaged",
        )

    def _sight(self, db: sqlite3.Connection, user: str | None) -> Sight:
        names = Names(db)
        usage = Usage(db, self.settings)
        return Sight(names, self._access, usage, Placement(names, self._access, self._own_folders), user)

    def _open_changes(self) -> Changes:
        """The writer's end, on its thread."""
        if isinstance(self.store, ContentFiles):
            self.store.open_store()
        db = create(self._database)
        usage = Usage(db, self.settings)
        self._mark = Mark(None if self._folder is None else self._folder / "newest")
        self._access = AccessLists(db)
        changes = Changes(db, usage, self._access, self.now, own_folders=self._own_folders)
        if changes.version == 0:
            db.execute("BEGIN IMMEDIATE")
            changes.access.put(TOP, self._top)
            for name, grants in self._first.items():
                made = changes.make_folder(TreePath((name,)), None)
                assert made is not None
                changes.access.put(made.node, grants)
            changes.version = max(changes.version, 1)
            changes.keep()
            db.execute("COMMIT")
            changes.told.clear()
        newest = self._mark.read()
        if newest > changes.version:
            what = f"versions {changes.version + 1} to {newest} are lost: the log of {self._database} was damaged"
            self.lost = Damage(what=what)
            changes.version = newest  # no number is given twice
        return changes

    def _mark_version(self, version: int) -> None:
        assert self._mark is not None
        self._mark.write(version)

    def _changed(self, change: Change) -> None:
        """Something has changed: paths are now those of the tree."""
        prefix = "" if not self.mount.names else str(self.mount)
        before = None if change.before is None else prefix + change.before
        path = prefix + change.path if change.path != "/" or not prefix else prefix
        self._tell(msgspec.structs.replace(change, path=path, before=before))

    async def _put(self, path: TreePath, content: Content, user: str | None, if_version: int | None) -> Stat:
        def work(changes: Changes) -> Entry:
            # In the log and, after it, in the database; a file is on the disk already.
            self._check_disk(ROW_ON_DISK + (0 if content.inline is None else 2 * content.size), changes.db)
            return changes.put(self.inside(path), content, user, if_version)

        try:
            return self.stat_of(path, await self.change(work), content.digest.hex())
        except MicrokernelError:
            if content.file is not None:
                await asyncio.to_thread(self.store.remove, [content.file])
            raise

    def _check_disk(self, more: int, db: sqlite3.Connection | None = None) -> None:
        """Raises `PreconditionFailed` where so many bytes more are not to be put on the disk.

        What goes into a database may take pages of it that are free.
        """
        if self._folder is None:
            return
        now, reserve = time.monotonic(), self.settings.reserve_bytes
        if now - self._looked > LOOK or self._free - more < reserve:
            found = os.statvfs(self._folder)
            self._free, self._looked = found.f_bavail * found.f_frsize, now
            if db is not None:
                self._free += db.execute("PRAGMA freelist_count").fetchone()[0] * PAGE
        self._free -= more
        if self._free < reserve:
            raise PreconditionFailed(
                f"the disk of {self._folder} has {self._free + more} bytes left, of which {reserve} stay free",
                remedy="remove files and forget their old versions (mk fs collect), or free space beside them",
                may_have_run=False,
            )

    async def _content(self, path: TreePath, user: str | None, version: Version) -> tuple[Entry, Content]:
        """The entry and the content at a path. Raises `NotFound`, and `Invalid` for a folder."""

        def work(sight: Sight) -> tuple[Entry, Content]:
            way, _ = sight.find(self.inside(path), version)
            if not way or way[-1].folder:
                raise a_folder(path)
            content = None if way[-1].content is None else sight.content(way[-1].content)
            if content is None:
                raise NotFound(f"the content of {path} was collected a moment ago")
            return way[-1], content

        return await self.look(work, user)

    async def _patched(
        self, path: TreePath, old: Content, pieces: AsyncIterator[bytes], start: int
    ) -> AsyncGenerator[bytes, None]:
        """An old content with other bytes from `start` on, as far as they go."""
        place = start
        async with aclosing(self.streams.give_out(old, 0, start, path)) as kept:
            async for piece in kept:
                yield piece
        async for piece in pieces:
            place += len(piece)
            yield piece
        async with aclosing(self.streams.give_out(old, place, None, path)) as rest:
            async for piece in rest:
                yield piece

    def _room(self, sight: Sight, path: TreePath) -> int | None:
        """How many bytes may be written to a path, as it is now; raises what would be raised at the end."""
        way, missing, before = sight.placement.place(self.inside(path), sight.user)
        if before is not None:
            sight.placement.need(sight.user, (*way, before), Rights.WRITE, path)
        owner = before.owner if before is not None else sight.user or NOBODY
        sight.usage.check(owner, 0, 1 + len(missing))
        return sight.usage.room(owner)

    def _listed(
        self, sight: Sight, path: TreePath, way: Way, version: int | None, after: str, limit: int
    ) -> Iterator[Stat]:
        """What the user may see of a folder."""
        folder = way[-1].node if way else TOP
        may_read = bool(sight.access.of(sight.user, way) & Rights.READ)
        while limit > 0:
            page = sight.names.children(folder, version, after=after, limit=limit)
            for entry in page:
                has_list = sight.access.at(entry.node) is not None
                seen = bool(sight.access.of(sight.user, (*way, entry)) & Rights.READ) if has_list else may_read
                if seen or entry.owner == sight.user:
                    limit -= 1
                    yield self.stat_of(path / entry.name, entry)
            if not page:
                return
            after = page[-1].name
