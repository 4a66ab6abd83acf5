"""What checkpoints there are in a folder, which of them are complete, and what else is there.

The names: `checkpoint-NUMBER.json` is a manifest, `checkpoint-NUMBER-INDEX.safetensors` are its files. `.partial` ends
what is being written, `.removed` the manifest of a checkpoint that is being removed. Numbers only grow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from microkernel.durable import sync_folder
from microkernel.errors import DataLoss, MicrokernelError, NotFound
from services.training.checkpoints.disk import PARTIAL
from services.training.checkpoints.keys import TrustedKeys
from services.training.checkpoints.manifest import LARGEST, Manifest, digest_of, manifest_name, opened

__all__ = ["REMOVED", "Checkpoint", "Found", "clean", "last_number", "load", "remove", "scan"]

REMOVED = ".removed"
NAME = re.compile(r"checkpoint-(\d{8})(?:\.json|-\d{1,5}\.safetensors)(?:\.partial|\.removed)?")
MANIFEST = re.compile(r"checkpoint-(\d{8})\.json")


class Checkpoint(msgspec.Struct, frozen=True):
    """One that is complete: its manifest is signed, and its files are there with their sizes."""

    folder: Path
    manifest: Manifest
    digest: str

    @property
    def number(self) -> int:
        """Its place among those of the folder: later ones have larger numbers."""
        return self.manifest.number

    @property
    def step(self) -> int:
        """The step of the job."""
        return self.manifest.facts.step


class Found(msgspec.Struct, frozen=True):
    """What a folder has: complete checkpoints, the newest first, and what is wrong with others, each by its name."""

    complete: tuple[Checkpoint, ...]
    notes: tuple[str, ...]


def scan(folder: Path, trusted: TrustedKeys, job: str | None = None) -> Found:
    """Look through a folder; one that is not there is empty. With `job`, those of another one are not complete."""
    complete: list[Checkpoint] = []
    notes = []
    for number in sorted(_manifests(folder), reverse=True):
        try:
            checkpoint = load(folder, number, trusted)
        except MicrokernelError as error:
            notes.append(error.message)
            continue
        if job is not None and checkpoint.manifest.job != job:
            notes.append(f"{manifest_name(number)} is of the job '{checkpoint.manifest.job[:64]}'")
            continue
        notes += _unlike_parent(complete, checkpoint)
        complete.append(checkpoint)
    return Found(tuple(complete), tuple(notes))


def load(folder: Path, number: int, trusted: TrustedKeys) -> Checkpoint:
    """One checkpoint, without its tensors. Raises `NotFound`, and `DataLoss` for what is damaged or missing."""
    name = manifest_name(number)
    try:
        handle = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"there is no {name} in {folder}") from error
    except OSError as error:
        raise DataLoss(f"{name} cannot be read: {error.strerror}") from error
    try:
        with open(handle, "rb") as file:  # noqa: PTH123 - a handle
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise DataLoss(f"{name} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST:
        raise DataLoss(f"{name} is larger than {LARGEST >> 20} MiB")
    manifest = opened(content, name, trusted, number)
    for each in manifest.files:
        _check_size(folder / each.name, each.size)
    return Checkpoint(folder, manifest, digest_of(content))


def last_number(folder: Path) -> int:
    """The largest number that any name in the folder has; 0 where none has one."""
    return max((int(found[1]) for name in _names(folder) if (found := NAME.fullmatch(name))), default=0)


def remove(folder: Path, numbers: Iterable[int]) -> None:
    """Remove checkpoints: first they are none any more, then their files go, so that a kill leaves no doubt."""
    for number in numbers:
        manifest = folder / manifest_name(number)
        manifest.rename(manifest.with_name(manifest.name + REMOVED))
    sync_folder(folder)
    _finish_removals(folder)


def clean(folder: Path) -> tuple[str, ...]:
    """Remove what killed writers left, while nobody writes; says what is there that is known to nobody.

    These are `.partial` files, removals that were begun, and files behind the last manifest. A file without a manifest
    before it may be somebody's, and stays.
    """
    _finish_removals(folder)
    numbers = _manifests(folder)
    last = max(numbers, default=0)
    notes = []
    for name in _names(folder):
        found = NAME.fullmatch(name)
        if found is None:
            continue
        if name.endswith(PARTIAL) or (name.endswith(".safetensors") and int(found[1]) > last):
            (folder / name).unlink()
        elif int(found[1]) not in numbers:
            notes.append(f"{name} has no manifest, and is left as it is")
    sync_folder(folder)
    return tuple(notes)


def _finish_removals(folder: Path) -> None:
    for name in _names(folder):
        found = NAME.fullmatch(name)
        if found is None or not name.endswith(f".json{REMOVED}"):
            continue
        for file in _names(folder):
            if file.startswith(f"checkpoint-{found[1]}-") and NAME.fullmatch(file):
                (folder / file).unlink()
        (folder / name).unlink()


def _unlike_parent(newer: list[Checkpoint], checkpoint: Checkpoint) -> list[str]:
    """Of those that say that they follow this one, which mean another: somebody has put it in its place."""
    return [
        f"{manifest_name(each.number)} follows another {manifest_name(checkpoint.number)} than is there"
        for each in newer
        if each.manifest.parent is not None
        and each.manifest.parent.number == checkpoint.number
        and each.manifest.parent.digest != checkpoint.digest
    ]


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.lstat().st_size
    except FileNotFoundError as error:
        raise DataLoss(f"{path.name} is missing") from error
    if found != size:
        raise DataLoss(f"{path.name} has {found} bytes, and should have {size}")


def _manifests(folder: Path) -> set[int]:
    return {int(found[1]) for name in _names(folder) if (found := MANIFEST.fullmatch(name))}


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
