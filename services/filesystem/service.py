"""The tree of this node, over any link: what is where, what is in it, and what it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import ClassVar

from microkernel.errors import Denied, Invalid
from microkernel.inputs import Inputs
from microkernel.message import Message, calling_user, is_root
from microkernel.portable import (
    AHEAD,
    EntryPiece,
    Export,
    Import,
    Imported,
    Known,
    check_restoring,
    from_thread,
    only_root,
)
from microkernel.service import Service, every, handles, streams
from services.filesystem.live import DeviceFiles, ProcessFiles
from services.filesystem.messages import (
    EVERYBODY,
    Access,
    Change,
    ChangeAccess,
    Collect,
    Collected,
    CopyFile,
    Diff,
    Difference,
    FileQuota,
    FileVersion,
    ForgetVersions,
    Found,
    Grep,
    History,
    IndexFolder,
    IndexState,
    ListFolder,
    MakeFolder,
    Match,
    Mounted,
    MountStorage,
    NameSnapshot,
    ReadFile,
    RemoveFile,
    RenameFile,
    RollBack,
    Scrub,
    Scrubbed,
    Search,
    SetFileQuota,
    ShowFile,
    Snapshot,
    Stat,
    TakeSnapshot,
    Unmount,
    UseOfFiles,
    WatchFiles,
    WriteFile,
    WriteStream,
)
from services.filesystem.model_files import ModelFiles
from services.filesystem.paths import ROOT, TreePath, parse
from services.filesystem.remote.mounts import Mounts, kept_mounts
from services.filesystem.restored import restored
from services.filesystem.search.search import Searches
from services.filesystem.settings import FilesystemSettings
from services.filesystem.stored.access import Rights
from services.filesystem.stored.freed_memory import keep_freed_memory
from services.filesystem.stored.settings import VolumeSettings
from services.filesystem.stored.told import access_of, change_access, changes_since, may_read
from services.filesystem.stored.upkeep import Upkeep
from services.filesystem.stored.versions import Versions
from services.filesystem.stored.volume import StoredVolume
from services.filesystem.tree import Tree
from services.filesystem.volume import Volume
from services.filesystem.watchers import Watchers, folders_of, path_in

__all__ = ["Filesystem", "FilesystemSettings"]

MOST_LISTED = 100_000
HOUR = 3600.0
TMP = TreePath(("tmp",))
FIRST = {
    "checkpoints": {EVERYBODY: Rights.READ | Rights.ADD},
    "contexts": {EVERYBODY: Rights.READ},
    "data": {EVERYBODY: Rights.READ | Rights.ADD},
    "home": {EVERYBODY: Rights.READ},
}
OWN_FOLDERS = frozenset({"contexts", "home"})


class Filesystem(Service):
    """One tree of names: files with all their versions, `/tmp` in memory, `/proc` and `/dev` the node as it is now."""

    name = "filesystem"
    uses = ("kernel", "devices", "inference", "memory", "models", "scheduler")
    Settings: ClassVar[type[Message]] = FilesystemSettings
    settings: FilesystemSettings

    async def start(self) -> None:
        keep_freed_memory()
        self._watchers = Watchers()
        disk = StoredVolume(
            ROOT,
            self.state_dir,
            self.settings,
            about="files, with all their versions",
            first=FIRST,
            own_folders=OWN_FOLDERS,
            tell=self._changed,
        )
        self._searches = Searches(self, disk)
        memory = StoredVolume(
            TMP,
            None,
            VolumeSettings(keep_seconds=0.0, limit_bytes=self.settings.tmp_bytes),
            about="files in memory, until the node stops",
            top={EVERYBODY: Rights.ADD},
            tell=self._changed,
        )
        mounts: dict[TreePath, Volume] = {
            ROOT: disk,
            TMP: memory,
            parse("/models"): ModelFiles(self, parse("/models")),
            parse("/proc"): ProcessFiles(self, parse("/proc")),
            parse("/dev"): DeviceFiles(self, parse("/dev")),
        }
        self.tree = Tree({})
        for mount, volume in mounts.items():
            if isinstance(volume, StoredVolume):
                await volume.open()
                if volume.lost is not None:
                    self.log.error("%s", volume.lost.what)
            self.tree.mounts[mount] = volume
        self._mounts = Mounts(self.tree, disk, frozenset(FIRST), self.state_dir, self.log)
        await self._mounts.open(self.settings.mounts)

        await self._searches.start()

    async def stop(self) -> None:
        for volume in list(self.tree.mounts.values()):
            await volume.close()

    @handles(idempotent=True)
    async def stat(self, message: ShowFile) -> Stat:
        """What a path leads to."""
        return await self.tree.stat(parse(message.path), _user(), message.version)

    @handles(name="list", idempotent=True)
    async def list_folder(self, message: ListFolder) -> list[Stat]:
        """What is in a folder, by name; users other than root see what they may."""
        if not 1 <= message.limit <= MOST_LISTED:
            raise Invalid(f"limit is {message.limit}, allowed is 1 to {MOST_LISTED}", field="limit")
        return await self.tree.list(
            parse(message.path), _user(), message.version, after=message.after, limit=message.limit
        )

    @streams(credit=16)
    async def read(self, message: ReadFile) -> AsyncIterator[bytes]:
        """A file's bytes, piece by piece, each compared with its checksum."""
        pieces = self.tree.read(parse(message.path), _user(), message.start, message.stop, message.version)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    @handles
    async def write(self, message: WriteFile) -> Stat:
        """Put a content in place of what is at a path; on the disk, and a version, when this answers."""
        path = parse(message.path)
        return await self.tree.writable(path).write(path, message.content, _user(), message.if_version)

    @streams(credit=4)
    async def write_stream(self, message: WriteStream, inputs: Inputs[bytes]) -> AsyncIterator[Stat]:
        """`write` in pieces, of any length in all; the one item is what is there once the last piece is on the disk."""
        path = parse(message.path)
        volume = self.tree.writable(path)
        yield await volume.write_stream(path, inputs, _user(), message.start, message.if_version)

    @handles
    async def make_folder(self, message: MakeFolder) -> Stat:
        """Make a folder, and those on the way to it."""
        path = parse(message.path)
        return await self.tree.writable(path).make_folder(path, _user(), exist_ok=message.exist_ok)

    @handles
    async def remove(self, message: RemoveFile) -> None:
        """Remove a file or folder; its versions stay."""
        path = parse(message.path)
        self.tree.check_free(path)
        await self.tree.writable(path).remove(path, _user(), recursive=message.recursive)

    @handles
    async def rename(self, message: RenameFile) -> Stat:
        """Give a file or folder another path."""
        return await self.tree.rename(parse(message.path), parse(message.to), _user(), replace=message.replace)

    @handles
    async def copy(self, message: CopyFile) -> Stat:
        """Have a file's content under another path too."""
        return await self.tree.copy(parse(message.path), parse(message.to), _user(), message.version)

    @handles(idempotent=True)
    async def history(self, message: History) -> list[FileVersion]:
        """The versions of what a path leads to, or has led to, the newest first."""
        path = parse(message.path)
        return await Versions(self.tree.stored(path)).history(path, _user(), message.limit)

    @handles(deadline=None)
    async def roll_back(self, message: RollBack) -> int:
        """Make a file or folder what it was at a version; how many names that has changed."""
        path = parse(message.path)
        return await Versions(self.tree.stored(path)).roll_back(path, message.version, _user())

    @streams
    async def diff(self, message: Diff) -> AsyncIterator[Difference]:
        """What became different in a folder from one version to another, or to now."""
        path = parse(message.path)
        found = Versions(self.tree.stored(path)).diff(path, message.since, message.until, _user())
        async with aclosing(found):
            async for each in found:
                yield each

    @handles
    async def snapshot(self, message: TakeSnapshot) -> Snapshot:
        """Name the tree as it is now; what it has is kept."""
        _only_root("name versions of a whole volume")
        return await Versions(self.tree.stored(parse(message.path))).take(message.name, _user())

    @handles(idempotent=True)
    async def snapshots(self, message: ShowFile) -> list[Snapshot]:
        """All snapshots of the volume that has a path."""
        return await Versions(self.tree.stored(parse(message.path))).snapshots()

    @handles
    async def forget_snapshot(self, message: NameSnapshot) -> None:
        """Take a snapshot's name away; what only it had may be collected."""
        _only_root("forget snapshots")
        await Versions(self.tree.stored(parse(message.path))).forget(message.name)

    @handles(idempotent=True)
    async def access(self, message: ShowFile) -> Access:
        """Who may do what with a file or folder."""
        path = parse(message.path)
        return await access_of(self.tree.stored(path), path, _user())

    @handles(idempotent=True)
    async def change_access(self, message: ChangeAccess) -> Access:
        """Say who may do what from a file or folder on downwards; for its owner, and root."""
        path = parse(message.path)
        return await change_access(self.tree.stored(path), path, message.grants, _user())

    @handles(idempotent=True)
    async def usage(self, message: ShowFile) -> list[UseOfFiles]:
        """What each owner keeps in the volume that has a path; users other than root see what is theirs."""
        found = await Upkeep(self.tree.stored(parse(message.path))).usage()
        return [each for each in found if is_root() or each.owner == _user()]

    @handles(idempotent=True)
    async def set_quota(self, message: SetFileQuota) -> None:
        """Say how many bytes an owner may keep, from now on and over restarts."""
        _only_root("set quotas")
        quota = FileQuota(owner=message.owner, limit_bytes=message.limit_bytes)
        await Upkeep(self.tree.stored(parse(message.path))).set_quota(quota)

    @handles
    async def forget_versions(self, message: ForgetVersions) -> Collected:
        """Forget now what a path has led to before; for who may change it."""
        path = parse(message.path)
        return await Upkeep(self.tree.stored(path)).forget(path, _user())

    @handles(deadline=None)
    async def collect(self, message: Collect) -> Collected:
        """Forget old versions, and the contents that only they have."""
        _only_root("forget versions")
        upkeep = Upkeep(self.tree.stored(parse(message.path)))
        return await upkeep.collect(message.older_than, dry_run=message.dry_run)

    @handles(deadline=None)
    async def scrub(self, message: Scrub) -> Scrubbed:
        """Read all that is kept, compare it with its checksums, and repair what a mirror has."""
        _only_root("scrub")
        return await Upkeep(self.tree.stored(parse(message.path))).scrub()

    @handles
    async def mount(self, message: MountStorage) -> Mounted:
        """Put other storage into the tree; it is asked for nothing yet."""
        _only_root("mount")
        return await self._mounts.mount(message)

    @handles
    async def unmount(self, message: Unmount) -> None:
        """Take other storage out of the tree; who reads there is told."""
        _only_root("unmount")
        await self._mounts.unmount(parse(message.path))

    @handles(idempotent=True)
    async def mounts(self) -> list[Mounted]:
        """Other storage in the tree, by path; users other than root see what they may read."""
        return self._mounts.list(_user())

    @streams
    async def watch(self, message: WatchFiles) -> AsyncIterator[Change]:
        """What changes at a path and below it, from now on or since a version; users see what they may read."""
        path = parse(message.path)
        changes = self._watchers.changes(path)
        async with aclosing(changes):
            coming = asyncio.ensure_future(anext(changes))  # what changes while the past is read waits there
            try:
                last: dict[TreePath, int] = {}
                if message.since is not None:
                    volume = self.tree.stored(path)
                    for change in await changes_since(volume, path, message.since, _user()):
                        last[volume.mount] = max(last.get(volume.mount, 0), change.version)
                        yield change
                while True:
                    change = await coming
                    coming = asyncio.ensure_future(anext(changes))
                    place = path_in(change.path)
                    volume = self.tree.stored(place)
                    if change.version > last.get(volume.mount, 0) and await may_read(volume, place, _user()):
                        yield change
            finally:
                coming.cancel()
                await asyncio.wait([coming])

    @handles
    async def index(self, message: IndexFolder) -> IndexState:
        """Have the text in a folder indexed for search by meaning, or not any more."""
        _only_root("say what is indexed")
        return await self._searches.index(self._on_disk(message.path), is_indexed=message.indexed)

    @handles(idempotent=True)
    async def index_state(self) -> IndexState:
        """What is indexed, and what waits to be."""
        _only_root("see what is indexed")
        return await self._searches.state()

    @handles(idempotent=True)
    async def search(self, message: Search) -> list[Found]:
        """Pieces of text that mean what the query says, of indexed files that the caller may read."""
        return await self._searches.search(message, self._on_disk(message.path), _user())

    @streams
    async def grep(self, message: Grep) -> AsyncIterator[Match]:
        """Lines of text files that have a pattern in them."""
        found = self._searches.grep(message, self._on_disk(message.path), _user())
        async with aclosing(found):
            async for match in found:
                yield match

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
        """All files with all their versions, and what was mounted, as they are at one moment."""
        only_root("exports all files")
        mounts = await asyncio.to_thread(kept_mounts, self.state_dir)
        pieces = from_thread(self.tree.stored(ROOT).exported(Known(message), mounts, message.largest))
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:  # noqa: ARG002
        """Make the files of another node those of this one, which has none yet."""
        check_restoring(self)
        yield Imported(notes=await restored(self.state_dir, inputs, self.name))

    @every(HOUR)
    async def collect_old(self) -> None:
        """Forget what is older than the settings say."""
        for volume in list(self.tree.mounts.values()):
            if isinstance(volume, StoredVolume):
                done = await Upkeep(volume).collect()
                if done.versions:
                    self.log.info(
                        "%d old versions of %s are forgotten, %d bytes", done.versions, volume.mount, done.bytes
                    )

    def _on_disk(self, text: str) -> TreePath:
        """A path in the volume that is searched. Raises `Invalid` for others."""
        path = parse(text)
        if self.tree.stored(path) is not self.tree.volume(ROOT):
            raise Invalid(f"{path} is not on the disk, and is not searched", field="path")
        return path

    def _changed(self, change: Change) -> None:
        self._watchers.tell(change)
        self._searches.changed(change)
        folders = folders_of(change)
        self.publish(f"filesystem.changed{folders}", change)


def _user() -> str | None:
    """On whose behalf the running call is; None for root and this node."""
    return None if is_root() else calling_user()


def _only_root(what: str) -> None:
    if not is_root():
        raise Denied(f"only root may {what}")
