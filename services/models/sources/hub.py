"""A model of the Hugging Face hub, fetched by a child that uses `huggingface_hub` and can be killed at any moment.

Only a `.gguf` file, or the safetensors files with what belongs to them, are taken; never pickled weights. Files are
kept by the hub's own digest while they grow, so that a later pull goes on where this one ended. Whole ones are compared
with that digest: sha256 for large files, git's blob digest for small ones.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from microkernel.errors import (
    DataLoss,
    Denied,
    Invalid,
    MicrokernelError,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from services.models import disk
from services.models.child import Exit, run_child
from services.models.layout import NESTED, describe, is_adapter_folder, is_model_folder, is_wanted, one_gguf
from services.models.names import HubRef, is_file_name, name_for
from services.models.sources import Fetched
from services.models.store import Scratch, Staged
from services.models.transfer import Transfer

__all__ = ["fetch_repository"]

CHILD = Path(__file__).with_name("hub_child.py")
MAX_SMALL = 32 << 20  # bytes of a file without sha256: it lies in git itself, and is compared in one piece
SILENCE = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}


class HubFile(msgspec.Struct, frozen=True):
    """A file as the hub lists it: `sha256` for large files, otherwise git's digest `blob`."""

    name: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    blob: str
    sha256: str | None = None


class Listing(msgspec.Struct, frozen=True):
    """A repository at one commit."""

    commit: str
    files: tuple[HubFile, ...]
    license: str | None = None


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line from the child: a listing, bytes that have arrived, or an error and its kind."""

    listing: Listing | None = None
    done: int = 0
    error: str | None = None
    kind: str = ""


def fetch_repository(ref: HubRef, scratch: Scratch, transfer: Transfer, *, endpoint: str | None = None) -> Fetched:
    """Bring a repository's model into the scratch folder.

    Raises `NotFound`, `Denied` (gated or private), `Unavailable` (not reached), `Invalid` (no model, or several) and
    `DataLoss` (what arrived is not what the hub lists).
    """
    listings: list[Listing] = []
    _ask(ref, {"task": "list", "endpoint": endpoint}, scratch, transfer, on_listing=listings.append)
    listing = listings[0]
    files = _chosen(ref, listing)
    for file in files:
        if file.sha256 is None and file.size > MAX_SMALL:
            raise Invalid(
                f"hf:{ref.repository}: {file.name} has {file.size} bytes and no sha256, allowed are {MAX_SMALL}",
                field="ref",
            )
    total = sum(file.size for file in files)
    there = sum(_part(scratch, file).stat().st_size for file in files if _part(scratch, file).exists())
    disk.require_room(scratch.kept, total - there, reserve=transfer.reserve_bytes)
    wanted = [{"name": file.name, "size": file.size, "part": str(_part(scratch, file))} for file in files]
    _ask(
        ref,
        {"task": "fetch", "endpoint": endpoint, "commit": listing.commit, "files": wanted},
        scratch,
        transfer,
        missing=total - there,
        on_done=lambda done: transfer.tell("fetching", done, total),
    )
    staged = _checked(files, scratch, transfer, total=total)
    about = describe({file.name: file.path for file in staged})
    stem = staged[0].name.removesuffix(".gguf") if about.format == "gguf" else ref.repository.partition("/")[2]
    found = msgspec.structs.replace(about, license=about.license or listing.license)
    return Fetched(staged, found, name_for(stem))


def _chosen(ref: HubRef, listing: Listing) -> list[HubFile]:
    """The files of the one model that the ref means."""
    by_name = {file.name: file for file in listing.files}
    where = f"hf:{ref.repository}"
    if ref.file is None:
        layout = [name for name in by_name if is_wanted(name)]
        if is_model_folder(layout) or is_adapter_folder(layout):
            return [by_name[name] for name in sorted(layout)]
    gguf = one_gguf(by_name, ref.file, where=where, ref=where)
    if gguf is None:
        raise Invalid(f"{where} has no model: neither .gguf nor config.json with safetensors", field="ref")
    if not is_file_name(gguf.rpartition("/")[2]) or not gguf.isprintable():
        raise Invalid(f"{where} is unsafe: the file name {gguf!r}", field="ref")
    return [by_name[gguf]]


def _part(scratch: Scratch, file: HubFile) -> Path:
    """Where a file grows: named by its content, so that another revision never goes on from this one."""
    return scratch.kept / hashlib.sha256((file.sha256 or file.blob).encode()).hexdigest()[:32]


def _checked(files: list[HubFile], scratch: Scratch, transfer: Transfer, *, total: int) -> tuple[Staged, ...]:
    staged: list[Staged] = []
    for file in files:
        part = _part(scratch, file)
        done = sum(earlier.bytes for earlier in staged)
        found = disk.digest_of(part, transfer, done=done, total=total)
        right = found.digest == file.sha256 if file.sha256 else _git_digest(part) == file.blob
        if found.bytes != file.size or not right:
            part.unlink()
            raise DataLoss(
                f"{file.name} is damaged: {found.bytes} of {file.size} bytes, sha256 {found.digest[:8]}…",
                remedy="pull again: it is fetched anew",
            )
        name = file.name if file.name in NESTED else file.name.rpartition("/")[2]
        staged.append(Staged(name, part, found.digest, found.bytes))
    return tuple(staged)


def _git_digest(path: Path) -> str:
    content = path.read_bytes()  # only small files lie in git itself
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _ask(
    ref: HubRef,
    order: dict[str, object],
    scratch: Scratch,
    transfer: Transfer,
    *,
    missing: int = 0,
    on_listing: Callable[[Listing], object] = lambda _listing: None,
    on_done: Callable[[int], object] = lambda _done: None,
) -> None:
    """Run one child and raise what it says went wrong."""
    failed: list[Said] = []

    def hear(line: str) -> None:
        try:
            said = msgspec.json.decode(line, type=Said)
        except msgspec.DecodeError as error:
            raise Unavailable(f"the hub's answer for {ref} is not understood: {error}") from error
        if said.error is not None:
            failed.append(said)
        elif said.listing is not None:
            on_listing(said.listing)
        else:
            on_done(said.done)

    text = msgspec.json.encode({**order, "repository": ref.repository, "revision": ref.revision}).decode()
    command = [sys.executable, "-P", str(CHILD), text]
    ended = run_child(command, transfer, folder=scratch.fresh, environment=SILENCE, on_line=hear)
    if failed:
        raise _failure(ref, failed[0], scratch, missing)
    if ended.code != 0:
        raise Unavailable(f"fetching {ref} failed: {_last(ended)}")


def _failure(ref: HubRef, said: Said, scratch: Scratch, missing: int) -> MicrokernelError:
    why = (said.error or "").strip().partition("\n")[0][:300]
    match said.kind:
        case "absent":
            return NotFound(f"the hub has no {ref}: {why}", field="ref")
        case "denied":
            return Denied(
                f"the hub does not give {ref} to us: {why}", remedy="accept its terms there, and set HF_TOKEN"
            )
        case "damaged":
            return DataLoss(f"{ref}: {why}", remedy="pull again: it is fetched anew")
        case "full":
            return disk.full(scratch.kept, missing)
        case "disk":
            return PreconditionFailed(f"{scratch.kept} cannot be written to: {why}")
        case _:
            return Unavailable(
                f"the hub cannot be reached for {ref}: {why}",
                remedy="check the network, or pull the model from a path",
            )


def _last(ended: Exit) -> str:
    return next((line[:300] for line in reversed(ended.errors) if line.strip()), f"exit code {ended.code}")
