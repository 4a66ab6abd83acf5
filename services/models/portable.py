"""The models of a store, on their way out and into the store of another node. It blocks: for threads.

Manifests always leave, weights where they are asked for: those can be fetched again, and say from where. Weights are
compared with their digests on both ways; a model that lacks some is known where it comes in, as one that has to be
pulled.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator
from typing import IO

import msgspec

from microkernel.errors import DataLoss, PreconditionFailed, TooBig
from microkernel.portable import PIECE, EntryPiece, Known, pieces_of
from services.models.manifest import BLOB, Manifest, decode_manifest
from services.models.store import ModelStore

__all__ = ["ImportedModels", "exported"]

BLOBS, MANIFESTS = "blobs/", "manifests/"
LARGEST = 32 << 20  # bytes of all manifests
TOLD = 20  # models that are named one by one


def exported(store: ModelStore, known: Known, *, weights: bool) -> Iterator[EntryPiece]:
    """The entries, in order. A model that is removed meanwhile is left out."""
    manifests = store.manifests_by_name()
    missing: set[str] = set()
    if weights:
        files = {file.digest: file.bytes for manifest in manifests.values() for file in manifest.files}
        for digest in sorted(files):
            if not (yield from _file(store, digest, files[digest], known)):
                missing.add(digest)
    for name in sorted(manifests):
        manifest = manifests[name]
        note = ""
        if not missing.isdisjoint(file.digest for file in manifest.files):
            if store.manifests_by_name().get(name) != manifest:
                continue
            note = f"files of '{name}' are missing or damaged, and not in the backup: mk models pull {manifest.refs[0]}"
        yield from pieces_of(f"{MANIFESTS}{name}.json", msgspec.json.encode(manifest) + b"\n", note=note)


def _file(store: ModelStore, digest: str, size: int, known: Known) -> Generator[EntryPiece, None, bool]:
    """The pieces of a file; returns whether it is whole."""
    name = f"{BLOBS}sha256-{digest}"
    if known.has(bytes.fromhex(digest)):
        yield EntryPiece(name=name, size=size, digest=digest, known=True)
        return True
    try:
        file = store.open_file(digest)
    except OSError:
        return False
    with file:
        if os.fstat(file.fileno()).st_size != size:
            return False
        found, left, first = hashlib.sha256(), size, name
        while left or first:
            piece = file.read(min(left, PIECE))
            if left and not piece:
                piece = bytes(min(left, PIECE))  # it was cut off a moment ago: the digest tells
            found.update(piece)
            left -= len(piece)
            yield EntryPiece(name=first, size=size if first else None, content=piece, digest=digest if first else "")
            first = ""
    return found.hexdigest() == digest


class ImportedModels:
    """Takes models in, and then finishes: a `FileTaker`."""

    def __init__(self, store: ModelStore) -> None:
        """Raises `PreconditionFailed` where the store has models."""
        store.open()
        if store.manifests_by_name():
            raise PreconditionFailed(f"{store.root} has models already")
        self.notes: tuple[str, ...] = ()
        self._store = store
        self._manifests: list[Manifest] = []
        self._name = ""
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._body = bytearray()
        self._left = LARGEST

    def begin(self, name: str, size: int) -> None:
        self._name = name
        self._body.clear()
        if name.startswith(BLOBS) and BLOB.fullmatch(name.removeprefix(BLOBS)):
            self._digest = hashlib.sha256()
            self._file = self._store.begin_file(name.removeprefix(BLOBS))
            return
        if not name.startswith(MANIFESTS):
            raise DataLoss(f"'{name}' is nothing that a store of models has")
        self._left -= size
        if self._left < 0:
            raise TooBig(f"the manifests of models have more than {LARGEST} bytes")

    def add(self, content: bytes) -> None:
        if self._file is None:
            self._body += content
        else:
            self._digest.update(content)
            self._file.write(content)

    def end(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
            blob = self._name.removeprefix(BLOBS)
            self._store.end_file(blob, is_whole=f"sha256-{self._digest.hexdigest()}" == blob)
            return
        stem = self._name.removeprefix(MANIFESTS).removesuffix(".json")
        self._manifests.append(decode_manifest(bytes(self._body), stem, f"'{self._name}'"))

    def finish(self) -> None:
        """It was all: have the models known. Files that none of them has are removed."""
        lacking = self._store.adopt(self._manifests)
        self.notes = tuple(
            f"the weights of '{manifest.name}' are not here: mk models pull {manifest.refs[0]}"
            for manifest in lacking[:TOLD]
        )
        if len(lacking) > TOLD:
            self.notes += (f"and those of {len(lacking) - TOLD} models more",)

    def close(self) -> None:
        """Let go of it, however far it came."""
        if self._file is not None:
            self._file.close()
