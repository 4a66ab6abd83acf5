"""The mounts of a node: those of its settings, and those that were made while it ran, which its state folder keeps."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from microkernel.errors import AlreadyExists, DataLoss, Invalid, MicrokernelError, NotFound, PreconditionFailed
from microkernel.portable import put_file
from services.filesystem.messages import FileKind, Mounted, MountStorage
from services.filesystem.paths import ROOT, TreePath, parse, twin_key
from services.filesystem.remote.address import Address, parse_address
from services.filesystem.remote.cache import BlockCache
from services.filesystem.remote.distant import DistantStore
from services.filesystem.remote.local import LocalStore
from services.filesystem.remote.settings import Mount, check_mount
from services.filesystem.remote.store import WritableStore, digest_of
from services.filesystem.remote.volume import RemoteVolume, WritableRemoteVolume
from services.filesystem.remote.web import WebStore
from services.filesystem.stored.volume import StoredVolume
from services.filesystem.tree import Tree

__all__ = ["Mounts", "kept_mounts", "put_mounts"]

KEPT = Path("remote", "mounts.json")  # in the folder of the service

CACHE_BYTES = 1 << 30
CACHE_SECONDS = 10.0
MOST = 256  # mounts of a node
MOST_LISTED = 100_000  # names beside a mount that are compared with its own


class _Entry(msgspec.Struct):
    """A mount: what is said of it, and the volume if it is in the tree."""

    path: TreePath
    said: Mount
    address: Address
    configured: bool
    volume: RemoteVolume | None = None
    problem: str | None = None


class Mounts:
    """Puts other storage into the tree and takes it out again."""

    def __init__(
        self, tree: Tree, disk: StoredVolume, taken: frozenset[str], folder: Path, log: logging.Logger
    ) -> None:
        """`disk` has the root; `taken` are folders of it that stay what they are. `folder` is for state."""
        self._tree = tree
        self._disk = disk
        self._taken = {twin_key(name) for name in taken}
        self._folder = folder / "remote"
        self._kept = folder / KEPT
        self._log = log
        self._entries: dict[TreePath, _Entry] = {}
        self._changing = asyncio.Lock()

    async def open(self, configured: Mapping[str, Mount]) -> None:
        """Mount what the settings say, and what was mounted before."""
        for text, said in configured.items():
            await self._open(_entry(text, said, configured=True))
        for text, said in (await asyncio.to_thread(self._load)).items():
            entry = _entry(text, said, configured=False)
            if entry.path not in self._entries:
                await self._open(entry)
        used = {_folder_name(entry) for entry in self._entries.values()}
        await asyncio.to_thread(self._sweep, used)

    async def mount(self, asked: MountStorage) -> Mounted:
        """Put other storage at a path. Raises `Invalid`, `AlreadyExists` and `PreconditionFailed`."""
        check_mount(asked.url, asked.options, asked.cache_bytes, asked.cache_seconds)
        said = Mount(**{name: getattr(asked, name) for name in asked.__struct_fields__ if name != "path"})
        entry = _entry(asked.path, said, configured=False)
        async with self._changing:
            kept = self._entries.get(entry.path)
            if kept is not None:
                raise AlreadyExists(
                    f"{entry.path} is a mount already", field="path", remedy=f"mk fs umount {kept.path}"
                )
            if len(self._entries) >= MOST:
                raise PreconditionFailed(f"there are {MOST} mounts already", remedy="mk fs umount")
            await self._check_place(entry.path)
            await self._start(entry)
            try:
                await self._keep()
            except BaseException:
                await self._end(entry)
                raise
        return _told(entry)

    async def unmount(self, path: TreePath) -> None:
        """Take other storage out of the tree. Raises `NotFound`."""
        async with self._changing:
            entry = self._entries.get(path)
            if entry is None:
                raise NotFound(f"{path} is no mount", field="path", remedy="mk fs mounts")
            await self._end(entry)
            await self._keep()

    def list(self, user: str | None) -> list[Mounted]:
        """All that a user may read, by path; None is root."""
        return [
            _told(entry)
            for _, entry in sorted(self._entries.items())
            if user is None or entry.said.users is None or user in entry.said.users
        ]

    async def _open(self, entry: _Entry) -> None:
        """Mount at boot: what cannot be is shown, and does not keep the node from booting."""
        try:
            await self._check_place(entry.path)
            await self._start(entry)
        except MicrokernelError as error:
            entry.problem = str(error)
            self._entries[entry.path] = entry
            self._log.error("%s is not mounted: %s", entry.path, error)

    async def _start(self, entry: _Entry) -> None:
        entry.volume = _volume(entry, self._folder / _folder_name(entry))
        await entry.volume.open()
        self._entries[entry.path] = entry
        self._tree.mounts[entry.path] = entry.volume

    async def _end(self, entry: _Entry) -> None:
        self._entries.pop(entry.path, None)
        self._tree.mounts.pop(entry.path, None)
        if entry.volume is not None:
            await entry.volume.close()
            await entry.volume.cache.clear()
            await asyncio.to_thread(shutil.rmtree, self._folder / _folder_name(entry), True)

    async def _check_place(self, path: TreePath) -> None:
        """Raises `PreconditionFailed` where a mount would hide something, or be hidden."""
        if path == ROOT or (len(path.names) == 1 and twin_key(path.names[0]) in self._taken):
            raise _no_place(path, f"{path} stays what it is", "mount below /mnt")
        for mount in self._tree.mounts:
            if mount == ROOT:
                continue
            if path.is_within(mount):
                raise _no_place(path, f"{mount} is another volume, and nothing is mounted in it", "mount below /mnt")
            if mount.is_within(path):
                raise _no_place(path, f"{mount} is mounted below it", f"mk fs umount {mount}")
            if len(mount.names) >= len(path.names) and _twins(mount.names[: len(path.names)], path.names):
                raise _no_place(path, f"{mount} is taken for the same name", "choose another one")
        await self._check_names(path)

    async def _check_names(self, path: TreePath) -> None:
        """Raises as `_check_place` where files of the tree are at a path, or a name of it is taken for another one."""
        place = ROOT
        for name in path.names:
            beside = [each.path.rpartition("/")[2] for each in await self._disk.list(place, None, limit=MOST_LISTED)]
            twin = next((each for each in beside if twin_key(each) == twin_key(name)), None)
            if twin is None:
                return
            if twin != name:
                raise _no_place(path, f"{place / twin} is taken for the same name", "choose another one")
            place /= name
            if (await self._disk.stat(place, None)).kind != FileKind.FOLDER:
                raise _no_place(path, f"{place} is a file", "choose another place")
        if await self._disk.list(path, None, limit=1):
            raise _no_place(
                path, f"{path} is not empty, and a mount would hide what is in it", "choose an empty folder"
            )

    async def _keep(self) -> None:
        kept = {str(path): entry.said for path, entry in self._entries.items() if not entry.configured}
        await asyncio.shield(asyncio.to_thread(self._save, msgspec.json.encode(kept)))

    def _save(self, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = self._kept.with_suffix(".new")
        with beside.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._kept)

    def _load(self) -> dict[str, Mount]:
        kept: dict[str, Mount] = {}
        try:
            for text, said in msgspec.json.decode(self._kept.read_bytes(), type=dict[str, msgspec.Raw]).items():
                kept[text] = msgspec.json.decode(said, type=Mount)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            self._log.error("mounts of before are lost: %s cannot be read: %s", self._kept, error)
        return kept

    def _sweep(self, used: set[str]) -> None:
        """Remove what is kept of mounts that are no more."""
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                if folder.is_dir() and folder.name not in used:
                    shutil.rmtree(folder, ignore_errors=True)


def kept_mounts(folder: Path) -> bytes | None:
    """What is kept of mounts, for a backup; None where none were made. It blocks."""
    try:
        return (folder / KEPT).read_bytes()
    except FileNotFoundError:
        return None


def put_mounts(folder: Path, content: bytes) -> None:
    """Keep what another node has kept. It blocks. Raises `DataLoss`."""
    try:
        for path, said in msgspec.json.decode(content, type=dict[str, Mount]).items():
            _entry(path, said, configured=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, Invalid) as error:
        raise DataLoss(f"the mounts of the backup are damaged: {error}") from error
    put_file(folder / KEPT, content)


def _entry(text: str, said: Mount, *, configured: bool) -> _Entry:
    return _Entry(parse(text), said, parse_address(said.url), configured)


def _volume(entry: _Entry, folder: Path) -> RemoteVolume:
    """The volume for a mount; nothing is asked of its store."""
    said, address, place = entry.said, entry.address, str(entry.path)
    limit, seconds = said.cache_bytes, said.cache_seconds
    limit = (0 if address.is_local else CACHE_BYTES) if limit is None else limit
    seconds = (0.0 if address.is_local else CACHE_SECONDS) if seconds is None else seconds
    cache = BlockCache(folder / "blocks", limit)
    store: WritableStore
    if address.kind == "file":
        store = LocalStore(place, address, said.timeout_seconds)
    else:
        kind = WebStore if address.kind in {"http", "https"} else DistantStore
        store = kind(place, address, said.options, said.options_env, said.timeout_seconds)
    about = address.url
    if said.writable:
        return WritableRemoteVolume(entry.path, about, store, cache, seconds, said.users, folder / "incoming")
    return RemoteVolume(entry.path, about, store, cache, seconds, said.users)


def _told(entry: _Entry) -> Mounted:
    volume = entry.volume
    return Mounted(
        path=str(entry.path),
        kind=entry.address.kind,
        url=entry.address.url,
        writable=entry.said.writable,
        cached_bytes=0 if volume is None else volume.cache.bytes,
        cache_bytes=0 if volume is None else volume.cache.limit,
        atomic=volume.atomic if isinstance(volume, WritableRemoteVolume) else None,
        configured=entry.configured,
        problem=entry.problem,
    )


def _folder_name(entry: _Entry) -> str:
    """Where what is kept of a mount is: another URL or other options are another mount."""
    said = entry.said
    return digest_of(
        [str(entry.path), said.url, repr(sorted(said.options.items())), repr(sorted(said.options_env.items()))]
    )


def _twins(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return one != other and [twin_key(name) for name in one] == [twin_key(name) for name in other]


def _no_place(path: TreePath, why: str, remedy: str) -> PreconditionFailed:
    return PreconditionFailed(f"nothing can be mounted at {path}: {why}", field="path", remedy=remedy)
