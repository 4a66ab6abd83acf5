"""The folder of prepared data: named by its key, a digest of all that its contents follow from, and whole or not there.

It is written beside, synced, and renamed when it is whole. Its `manifest` says what each file has to be, and what was
found; the first line is the BLAKE3 of all that follows.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import blake3
import msgspec

from microkernel.durable import sync_folder
from microkernel.errors import DataLoss
from services.training.data.bad_records import BadRecord
from services.training.data.checked_files import writing
from services.training.data.records import Kind
from services.training.data.token_files import PARTS, Part, Tokens

__all__ = ["FORMAT", "Manifest", "digest_of", "new_folder", "read_manifest", "write_manifest"]

FORMAT = 1
"""What the files are like, and how records become tokens; another number makes other keys."""

MANIFEST = "manifest"
PARTIAL = "partial-"
DEAD = 3600.0  # seconds after which what nobody holds was left behind
LARGEST_MANIFEST = 16 << 20


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A folder: what it is of, and what is in it. `digest` (BLAKE3) names its contents, wherever they came from.

    `bad` records were left out, of which the first are `named`, by what users called the `files` then.
    """

    key: str
    kind: Kind
    vocabulary: int
    parts: dict[Part, Tokens]
    files: tuple[str, ...]
    bad: int
    named: tuple[BadRecord, ...]
    digest: str = ""


@contextmanager
def new_folder(cache: Path) -> Iterator[Path]:
    """A folder for what is being written, removed in the end unless it was renamed.

    It is held by a lock, so that what a process left that was killed can be told from what one is writing.
    """
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        _clear(cache)
        folder = cache / f"{PARTIAL}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Say what is in `folder`, and rename it to its key: from here on it counts. One that another wrote is as good."""
    body = msgspec.json.encode(manifest)
    path = folder / MANIFEST
    with writing(path):
        with path.open("xb") as file:
            file.write(blake3.blake3(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
        try:
            folder.rename(folder.parent / manifest.key)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        sync_folder(folder.parent)


def read_manifest(cache: Path, key: str) -> Manifest | None:
    """What is in the folder of that key; None where there is none. Raises `DataLoss` where the manifest is damaged."""
    path = cache / key / MANIFEST
    try:
        with path.open("rb") as file:
            digest, _, body = file.read(LARGEST_MANIFEST).partition(b"\n")
    except FileNotFoundError:
        if not path.parent.exists():
            return None
        digest, body = b"", b""
    except OSError as error:
        raise DataLoss(f"{path} cannot be read: {error.strerror}", remedy="check the disk") from error
    if blake3.blake3(body).hexdigest().encode() != digest:
        raise DataLoss(f"{path} is damaged", remedy=f"remove {path.parent}, and the data are prepared again")
    return msgspec.json.decode(body, type=Manifest)


def digest_of(kind: Kind, parts: dict[Part, Tokens]) -> str:
    """A name for what was prepared: equal for equal tokens, marks and documents."""
    digest = blake3.blake3(f"{FORMAT} {kind}\n".encode())
    for part in PARTS:
        for name, written in sorted(parts[part].files.items()):
            digest.update(f"{part}.{name} {written.digest}\n".encode())
    return digest.hexdigest()


def _clear(cache: Path) -> None:
    """Remove what was left behind by processes that died while they wrote."""
    for folder in cache.glob(f"{PARTIAL}*"):
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another one cleared it
        try:
            if time.time() - os.fstat(handle).st_mtime < DEAD:
                continue
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # somebody writes it
        finally:
            os.close(handle)
