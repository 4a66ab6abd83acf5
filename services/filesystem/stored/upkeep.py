"""Looks after a stored volume: forgets old versions, reads all there is, repairs from a mirror, keeps quotas."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from microkernel import durable
from microkernel.errors import DataLoss, MicrokernelError, NotFound
from services.filesystem.messages import Collected, Damage, FileQuota, Scrubbed, UseOfFiles
from services.filesystem.paths import TreePath
from services.filesystem.stored.changes import Changes
from services.filesystem.stored.collection import Forgotten, collect, forget_versions
from services.filesystem.stored.contents import PART, Content, ContentFiles, ContentStore, digest_of
from services.filesystem.stored.database import FIELDS, SHARED, entry_of
from services.filesystem.stored.names import Names
from services.filesystem.stored.sight import Sight
from services.filesystem.stored.volume import StoredVolume

__all__ = ["Upkeep"]

STEP = 1000  # versions that one transaction forgets: others get their turn in between
CONTENTS = 200  # contents that are looked up at once
ORPHAN = 3600.0  # seconds after which a content that nothing refers to is nobody's: until then it may be on its way


class Upkeep:
    """What one volume needs now and then."""

    def __init__(self, volume: StoredVolume) -> None:
        self._volume = volume

    async def collect(self, older_than: float | None = None, *, dry_run: bool = False) -> Collected:
        """Forget versions that ended more than `older_than` seconds ago, and contents that nothing refers to."""
        kept = self._volume.settings.keep_seconds if older_than is None else older_than
        before = self._volume.now() - kept
        total = Forgotten()
        if dry_run:
            total = await self._volume.change(lambda changes: _tried(changes, before))
        while not dry_run:
            step = await self._volume.change(lambda changes: collect(changes, before, STEP))
            await asyncio.to_thread(self._volume.store.remove, step.files)
            total.count(step)
            if step.versions == 0:
                break
        orphans = await self._orphans()
        if not dry_run:
            await asyncio.to_thread(self._volume.store.remove, orphans)
        return Collected(
            versions=total.versions, contents=total.contents + len(orphans), bytes=total.bytes, dry_run=dry_run
        )

    async def forget(self, path: TreePath, user: str | None) -> Collected:
        """Forget now what a path has led to before. Raises `NotFound` and `Denied`."""
        inside = self._volume.inside(path)
        step = await self._volume.change(lambda changes: forget_versions(changes, inside, user))
        await asyncio.to_thread(self._volume.store.remove, step.files)
        return Collected(versions=step.versions, contents=step.contents, bytes=step.bytes, dry_run=False)

    async def scrub(self) -> Scrubbed:
        """Read every row and every content, and compare them with their checksums.

        Where there is a mirror, contents that are whole are copied to it, and those that are not are repaired from it.
        """
        damages = [] if self._volume.lost is None else [self._volume.lost]
        damages += await self._volume.look(_damaged_rows)
        mirror = self._volume.settings.mirror
        place = None if mirror is None else await asyncio.to_thread(Path(mirror).expanduser)
        contents = size = last = 0
        while rows := await self._volume.look(partial(_contents, last)):
            for number, content in rows:
                last = number
                contents += 1
                size += content.size
                damages += await self._look_at(number, content, place)
        return Scrubbed(contents=contents, bytes=size, damages=tuple(damages))

    async def usage(self) -> list[UseOfFiles]:
        """What each owner keeps."""
        return await self._volume.look(lambda sight: sight.usage.all())

    async def set_quota(self, quota: FileQuota) -> None:
        """Limit what an owner keeps, from now on; what is there already stays."""
        await self._volume.change(lambda changes: changes.usage.set(quota))

    async def _look_at(self, number: int, content: Content, mirror: Path | None) -> list[Damage]:
        found = await asyncio.to_thread(self._damages, content)
        if not found:
            if mirror is not None:
                await asyncio.to_thread(_copy_to, mirror, content, self._volume.store)
            return []
        repaired = mirror is not None and await self._repair(number, content, mirror)
        paths = await self._volume.look(lambda sight: self._paths_of(sight.names, number))
        return [msgspec.structs.replace(damage, paths=paths, repaired=repaired) for damage in found]

    def _damages(self, content: Content) -> list[Damage]:
        """Which parts of a content are not what was written."""
        what = f"content {content.digest.hex()}"
        if content.inline is not None:
            whole = digest_of(content.inline) == content.digest
            return [] if whole else [Damage(what=what, start=0, stop=content.size)]
        try:
            reader = self._volume.store.open(content)
        except NotFound:
            return [Damage(what=f"{what} is missing", start=0, stop=content.size)]
        except DataLoss as error:
            return [Damage(what=error.message, start=0, stop=content.size)]
        found = []
        try:
            for place in range(0, content.size, PART):
                end = min(place + PART, content.size)
                try:
                    reader.read(place, end)
                except DataLoss:
                    found.append(Damage(what=what, start=place, stop=end))
        finally:
            reader.close()
        return found

    async def _repair(self, number: int, content: Content, mirror: Path) -> bool:
        """Put a content back from the mirror; False where it is not whole there either."""
        try:
            made = await asyncio.to_thread(_copy_from, mirror, content, self._volume.store)
        except (MicrokernelError, OSError):
            return False
        if made is None:
            return False

        def work(changes: Changes) -> None:
            changes.db.execute(
                "UPDATE content SET inline = ?, file = ?, sums = ? WHERE id = ?",
                (made.inline, made.file, made.sums, number),
            )

        await self._volume.change(work)
        if content.file is not None:
            await asyncio.to_thread(self._volume.store.remove, [content.file])
        return True

    def _paths_of(self, names: Names, number: int) -> tuple[str, ...]:
        """The paths that have a content, those of old versions with their number."""
        told: dict[str, None] = {}
        for row in names.db.execute("SELECT node FROM entry WHERE content = ?", (number,)).fetchall():
            path = names.path_of(row[0])
            if path is not None:
                told[str(self._volume.outside(path))] = None
        for node, born in names.db.execute("SELECT node, born FROM past WHERE content = ?", (number,)).fetchall():
            path = names.path_of(node, born)
            if path is not None:
                told[f"{self._volume.outside(path)} at version {born}"] = None
        return tuple(told)

    async def _orphans(self) -> list[str]:
        """Contents on the disk that came in when the node died, before anything referred to them."""
        store = self._volume.store
        if not isinstance(store, ContentFiles):
            return []
        old = await asyncio.to_thread(lambda: list(store.older_than(ORPHAN)))

        def work(sight: Sight) -> list[str]:
            db = sight.names.db
            sql = f"SELECT 1 FROM content WHERE file = ? AND digest = ? AND size > {SHARED}"  # noqa: S608 # a constant
            return [file for file in old if db.execute(sql, (file, _digest_in(file))).fetchone() is None]

        return await self._volume.look(work)


def _digest_in(file: str) -> bytes:
    return bytes.fromhex(file.partition("/")[2].partition("-")[0])


def _tried(changes: Changes, before: float) -> Forgotten:
    """What a collection would forget, counted by doing it and taking it back."""
    total = Forgotten()
    try:
        with changes.undone_on_error():
            while (step := collect(changes, before, STEP)).versions:
                total.count(step)
            raise _TakenBack
    except _TakenBack:
        return total


class _TakenBack(Exception):  # no error: the way out of a transaction
    pass


def _damaged_rows(sight: Sight) -> list[Damage]:
    """What SQLite and the seals of rows say."""
    db = sight.names.db
    found = [Damage(what=str(row[0])) for row in db.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
    for table in ("entry", "past"):
        for row in db.execute(f"SELECT {FIELDS} FROM {table}"):  # noqa: S608 # one of these two
            try:
                entry_of(row)
            except DataLoss as error:
                found.append(Damage(what=error.message))
    return found


def _contents(after: int, sight: Sight) -> list[tuple[int, Content]]:
    sql = "SELECT id, digest, size, inline, file, sums FROM content WHERE id > ? ORDER BY id LIMIT ?"
    return [(row[0], Content(*row[1:])) for row in sight.names.db.execute(sql, (after, CONTENTS))]


def _pieces(content: Content, store: ContentStore) -> Iterator[bytes]:
    if content.inline is not None:
        yield content.inline
        return
    reader = store.open(content)
    try:
        for place in range(0, content.size, PART):
            yield reader.read(place, min(place + PART, content.size))
    finally:
        reader.close()


def _copy_to(mirror: Path, content: Content, store: ContentStore) -> None:
    """Have a content in the mirror too, by the name of its digest."""
    path = _in_mirror(mirror, content)
    if path.exists() and path.stat().st_size == content.size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.replace_by(path, _pieces(content, store))


def _copy_from(mirror: Path, content: Content, store: ContentStore) -> Content | None:
    """A content from the mirror, kept anew; None where it is not what it was there either."""
    path = _in_mirror(mirror, content)
    if content.inline is not None:
        found = path.read_bytes()
        return msgspec.structs.replace(content, inline=found) if digest_of(found) == content.digest else None
    writer = store.begin()
    try:
        with path.open("rb") as file:
            while piece := file.read(PART):
                writer.write([piece])
        made = writer.finish()
    except BaseException:
        writer.abandon()
        raise
    if made.digest != content.digest:
        writer.abandon()
        return None
    return made


def _in_mirror(mirror: Path, content: Content) -> Path:
    digest = content.digest.hex()
    return mirror / digest[:2] / digest
