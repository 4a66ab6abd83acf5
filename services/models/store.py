"""The model store: files by their content, models by name, and nothing half at any moment.

    blobs/sha256-<hex>         every file once, read-only, named by what is in it
    snapshots/<name>/<digest>/ symbolic links to blobs under the files' own names: the paths that are given out
    manifests/<name>.json      what a model consists of; a model exists exactly as long as this file does
    partial/<origin>/          what pulls under way have fetched so far; safe to delete while no pull runs
    lock                       held while any of the above but `partial` is changed

A model is stored by renaming its checked files into `blobs`, linking them, and writing the manifest last. Whoever dies
in between leaves files that no manifest names, and the next one who holds the lock sweeps them away. A running process
keeps what it has open or mapped, whatever is removed.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import msgspec

from microkernel.errors import AlreadyExists, DataLoss, NotFound
from services.models import disk
from services.models.layout import Description
from services.models.manifest import BLOB, Manifest, StoredFile, digest_of_model, read_manifest
from services.models.messages import Model
from services.models.names import require_name
from services.models.transfer import Transfer

__all__ = ["ModelStore", "Scratch", "Staged"]

DAMAGED = ".damaged"  # the suffix of a blob that is not what its name says; swept away with the next change
PARTIAL_LIFETIME = 7 * 86400.0  # seconds until the sweep takes an abandoned download for unwanted


class Staged(msgspec.Struct, frozen=True):
    """A complete, flushed file that waits in `partial` to be taken into the store."""

    name: str
    path: Path
    digest: str
    bytes: int


class Scratch(msgspec.Struct, frozen=True):
    """Where one pull works: `kept` outlives a failure, `fresh` is empty at its start and goes with it."""

    kept: Path
    fresh: Path


class ModelStore:
    """Models under the folder `root`; any number of threads and processes may use one folder at once."""

    def __init__(self, root: Path, *, now: Callable[[], float] = time.time) -> None:
        self.root = root
        self.blobs, self.snapshots = root / "blobs", root / "snapshots"
        self.manifests, self.partials = root / "manifests", root / "partial"
        self._now = now

    def open(self) -> None:
        """Make the folders, and clear away what a process that died in the middle has left."""
        for folder in (self.blobs, self.snapshots, self.manifests, self.partials):
            with disk.writing(self.root, 0):
                folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._sweep()

    def list(self) -> tuple[Model, ...]:
        """All models whose manifests can be read, by name."""
        return tuple(self._model(manifest) for manifest in self._scan()[0])

    def broken(self) -> dict[str, str]:
        """The names whose manifests cannot be read, each with the reason."""
        return self._scan()[1]

    def find(self, ref: str) -> Model:
        """The stored model of this name, or the one that this very ref gave.

        Raises `NotFound`; and `DataLoss` where its manifest is unreadable, or a file is missing or has the wrong size.
        """
        manifests, broken = self._scan()
        if ref in broken:
            raise DataLoss(f"model '{ref}': {broken[ref]}", remedy="remove it and pull it again")
        for manifest in manifests:
            if ref == manifest.name or ref in manifest.refs:
                self._require_files(manifest)
                return self._model(manifest)
        raise NotFound(
            f"no model '{ref}' in the store",
            remedy=f"it has: {', '.join(m.name for m in manifests) or 'none'}",
        )

    def commit(
        self,
        staged: Iterable[Staged],
        about: Description,
        *,
        name: str,
        ref: str,
        transfer: Transfer | None = None,
    ) -> Model:
        """Take staged files into the store as model `name`, all or nothing; what it held before under `ref` goes.

        Raises `AlreadyExists` where another ref's different content has the name.
        """
        require_name(name)
        staged = sorted(staged, key=lambda file: file.name)
        files = tuple(StoredFile(file.name, file.digest, file.bytes) for file in staged)
        with self._locked(transfer):
            refs = self._refs(name, ref, digest_of_model(files))
            manifest = Manifest(
                name=name,
                refs=refs,
                format=about.format,
                digest=digest_of_model(files),
                bytes=sum(file.bytes for file in files),
                files=files,
                pulled_at=self._now(),
                architecture=about.architecture,
                license=about.license,
                kind=about.kind,
            )
            for file in {file.digest: file for file in staged}.values():  # two names may have one content
                file.path.chmod(0o444)
                # Also over a blob that is there: the same content, unless the old one is damaged.
                file.path.replace(self._blob(file.digest))
            disk.flush_folder(self.blobs)
            self._publish(manifest)
            self._sweep()
        return self._model(manifest)

    def alias(self, known: str, name: str) -> Model:
        """Give the stored model `known` a second name; no byte is copied."""
        require_name(name)
        with self._locked():
            manifest = self._manifest(known)
            self._require_files(manifest)
            self._refs(name, manifest.refs[0], manifest.digest)
            manifest = msgspec.structs.replace(manifest, name=name)
            self._publish(manifest)
        return self._model(manifest)

    def remove(self, name: str) -> int:
        """Take a name out of the store, with the files that no other name has; gives the bytes that this freed."""
        require_name(name)
        with self._locked():
            try:
                (self.manifests / f"{name}.json").unlink()
            except FileNotFoundError as error:
                raise NotFound(f"no model '{name}' in the store") from error
            disk.flush_folder(self.manifests)
            return self._sweep()

    def verify(self, name: str, transfer: Transfer | None = None) -> Model:
        """Read all of a model's files and compare them with their digests; `DataLoss` names those that differ.

        A damaged file is set aside, so that the model is not loaded any more and a pull fetches it anew.
        """
        transfer = transfer or Transfer()
        manifest = self._manifest(name)
        bad: builtins.list[str] = []
        done = 0
        for file in manifest.files:
            blob = self._blob(file.digest)
            try:
                seen = blob.stat()
                found = disk.digest_of(blob, transfer, done=done, total=manifest.bytes)
            except OSError as error:
                bad.append(f"{file.name} cannot be read ({error.strerror})")
            else:
                if found.digest != file.digest:
                    bad.append(f"{file.name} is damaged: {found.bytes} of {file.bytes} bytes, another sha256")
                    self._set_aside(blob, seen)
            done += file.bytes
        if bad:
            raise DataLoss(f"model '{name}': {'; '.join(bad)}", remedy=f"pull {manifest.refs[0]} again")
        return self._model(manifest)

    def manifests_by_name(self) -> dict[str, Manifest]:
        """What each model consists of, of all whose manifests can be read."""
        return {manifest.name: manifest for manifest in self._scan()[0]}

    def open_file(self, digest: str) -> IO[bytes]:
        """A file by its sha256, to be read. Raises `OSError`."""
        return self._blob(digest).open("rb")

    def begin_file(self, blob: str) -> IO[bytes]:
        """A file that comes from elsewhere, to be written, and then handed to `end_file`."""
        return (self.blobs / f"{blob}{DAMAGED}").open("wb")

    def end_file(self, blob: str, *, is_whole: bool) -> None:
        """Have a file that has come be one of the store's, unless it is not what its name says."""
        incoming = self.blobs / f"{blob}{DAMAGED}"
        if is_whole:
            incoming.chmod(0o444)
            incoming.replace(self.blobs / blob)

    def adopt(self, manifests: Iterable[Manifest]) -> builtins.list[Manifest]:
        """Make models of another store known here; returns those of which files are missing."""
        lacking = []
        with self._locked():
            for manifest in manifests:
                self._publish(manifest)
                try:
                    self._require_files(manifest)
                except DataLoss:
                    lacking.append(manifest)
            self._sweep()
        return lacking

    @contextmanager
    def partial(self, origin: str, transfer: Transfer) -> Iterator[Scratch]:
        """The folders for what is fetched from `origin`, for one pull at a time among all processes.

        What was kept stays when the pull fails, so that the next one goes on from there; it goes when the pull
        succeeds.
        """
        slug = re.sub(r"[^A-Za-z0-9]+", "-", origin)[-40:].strip("-")
        folder = self.partials / f"{slug}-{hashlib.sha256(origin.encode()).hexdigest()[:12]}"
        lock = folder.with_suffix(".lock")
        with disk.exclusive(lock, transfer.pause):
            scratch = Scratch(folder / "kept", folder / "fresh")
            _clear(folder)
            with disk.writing(self.partials, 0):
                scratch.kept.mkdir(parents=True, exist_ok=True)
                scratch.fresh.mkdir()
            try:
                yield scratch
                shutil.rmtree(folder)
            finally:
                if _clear(folder):
                    lock.unlink()

    def _scan(self) -> tuple[tuple[Manifest, ...], dict[str, str]]:
        manifests: builtins.list[Manifest] = []
        broken: dict[str, str] = {}
        for path in sorted(self.manifests.glob("*.json")):
            try:
                manifests.append(read_manifest(path))
            except FileNotFoundError:
                continue  # removed since the folder was read
            except DataLoss as error:
                broken[path.stem] = error.message
        return tuple(manifests), broken

    def _manifest(self, name: str) -> Manifest:
        require_name(name)
        try:
            return read_manifest(self.manifests / f"{name}.json")
        except FileNotFoundError as error:
            raise NotFound(f"no model '{name}' in the store") from error

    def _refs(self, name: str, ref: str, digest: str) -> tuple[str, ...]:
        """All refs of `name` once `ref` is stored under it; refused where that would put another model in its place."""
        try:
            old = read_manifest(self.manifests / f"{name}.json")
        except (FileNotFoundError, DataLoss):
            return (ref,)
        if old.digest != digest and old.refs != (ref,):
            raise AlreadyExists(
                f"the name '{name}' is taken by the model from {old.refs[0]}",
                remedy="pull under another name, or remove that model first",
                field="name",
            )
        return old.refs if ref in old.refs else (*old.refs, ref)

    def _publish(self, manifest: Manifest) -> None:
        folder = self._snapshot(manifest)
        links = {
            file.name: Path("../../../blobs" if "/" not in file.name else "../../../../blobs", f"sha256-{file.digest}")
            for file in manifest.files
        }
        if not all((folder / name).is_symlink() and (folder / name).readlink() == to for name, to in links.items()):
            self._link(folder, links)
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        disk.write(self.manifests / f"{manifest.name}.json", content)

    def _link(self, folder: Path, links: Mapping[str, Path]) -> None:
        fresh = folder.with_name(f".{secrets.token_hex(4)}.tmp")
        with disk.writing(self.snapshots, 0):
            fresh.mkdir(parents=True)
            for name, to in links.items():
                (fresh / name).parent.mkdir(exist_ok=True)
                (fresh / name).symlink_to(to)
            if folder.exists():
                shutil.rmtree(folder)
            fresh.rename(folder)
        for inner in {(folder / name).parent for name in links}:
            disk.flush_folder(inner)
        disk.flush_folder(folder)
        disk.flush_folder(folder.parent)
        disk.flush_folder(self.snapshots)

    def _set_aside(self, blob: Path, seen: os.stat_result) -> None:
        with self._locked(), suppress(FileNotFoundError):
            if os.path.samestat(blob.stat(), seen):  # not one that a pull has mended meanwhile
                blob.replace(blob.with_suffix(DAMAGED))

    def _sweep(self) -> int:
        """Delete what no manifest names; gives the bytes of the blobs that went. Called with the lock held."""
        for path in self.manifests.glob(".*.tmp"):
            path.unlink()
        self._sweep_partials()
        manifests, broken = self._scan()
        if broken:
            return 0  # what an unreadable manifest names is unknown, and may be mended by hand
        current = {self._snapshot(manifest) for manifest in manifests}
        for folder in self.snapshots.glob("*/*"):
            if folder not in current and folder.is_dir():
                shutil.rmtree(folder)
        for folder in self.snapshots.iterdir():
            with suppress(OSError):
                folder.rmdir()  # only an empty one goes
        named = {file.digest for manifest in manifests for file in manifest.files}
        freed = 0
        for blob in self.blobs.iterdir():
            kept = blob.name.removeprefix("sha256-") in named
            if not kept and BLOB.fullmatch(blob.name.removesuffix(DAMAGED)):
                freed += blob.stat().st_size
                blob.unlink()
        return freed

    def _sweep_partials(self) -> None:
        for lock in self.partials.glob("*.lock"):
            try:
                with disk.exclusive(lock, _give_up):
                    folder = lock.with_suffix("")
                    if folder.exists() and self._now() - folder.stat().st_mtime > PARTIAL_LIFETIME:
                        shutil.rmtree(folder)
                    if _clear(folder):
                        lock.unlink()
            except BlockingIOError:
                continue  # a pull is at it

    def _require_files(self, manifest: Manifest) -> None:
        for file in manifest.files:
            try:
                size = self._blob(file.digest).stat().st_size
            except OSError:
                size = -1
            if size != file.bytes or not (self._snapshot(manifest) / file.name).exists():
                what = "is missing" if size < 0 else f"has {size} of {file.bytes} bytes"
                raise DataLoss(f"model '{manifest.name}': {file.name} {what}", remedy=f"pull {manifest.refs[0]} again")

    def _model(self, manifest: Manifest) -> Model:
        folder = self._snapshot(manifest)
        return Model(
            name=manifest.name,
            ref=manifest.refs[0],
            format=manifest.format,
            path=str(folder / manifest.files[0].name if manifest.format == "gguf" else folder),
            digest=manifest.digest,
            bytes=manifest.bytes,
            pulled_at=manifest.pulled_at,
            architecture=manifest.architecture,
            license=manifest.license,
            kind=manifest.kind,
        )

    def _snapshot(self, manifest: Manifest) -> Path:
        return self.snapshots / manifest.name / manifest.digest[:16]

    def _blob(self, digest: str) -> Path:
        return self.blobs / f"sha256-{digest}"

    @contextmanager
    def _locked(self, transfer: Transfer | None = None) -> Iterator[None]:
        with disk.exclusive(self.root / "lock", transfer.pause if transfer else _wait):
            yield


def _clear(folder: Path) -> bool:
    """Delete what a pull may not leave behind; True if nothing else was there, and the folder is gone too."""
    shutil.rmtree(folder / "fresh", ignore_errors=True)
    for empty in (folder / "kept", folder):
        with suppress(OSError):
            empty.rmdir()  # only an empty one goes
    return not folder.exists()


def _wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def _give_up(_seconds: float) -> None:
    raise BlockingIOError
