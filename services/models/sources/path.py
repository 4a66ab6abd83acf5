"""A model that lies on this machine: it is copied, so that it stays as it is when somebody edits the original."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from microkernel.errors import Aborted, DataLoss, Invalid, NotFound
from services.models import disk
from services.models.layout import NESTED, Description, describe, is_adapter_folder, is_model_folder, is_wanted
from services.models.names import PathRef, is_file_name, name_for
from services.models.sources import Fetched
from services.models.store import Scratch, Staged
from services.models.transfer import Transfer

__all__ = ["fetch_path", "look_at"]


def fetch_path(ref: PathRef, scratch: Scratch, transfer: Transfer) -> Fetched:
    """Copy the file or the folder into the scratch folder; raises `NotFound`, `Invalid`, `DataLoss`, or `Aborted` where
    a file changed.
    """
    originals, _ = look_at(ref.path)
    total = sum(path.stat().st_size for path in originals.values())
    disk.require_room(scratch.fresh, total, reserve=transfer.reserve_bytes)
    staged: list[Staged] = []
    for name, path in originals.items():
        staged.append(_copy(name, path, scratch, transfer, done=sum(file.bytes for file in staged), total=total))
    about = describe({file.name: file.path for file in staged})  # the copy, whatever the original has become
    stem = ref.path.stem if about.format == "gguf" else ref.path.resolve().name
    return Fetched(tuple(staged), about, name_for(stem))


def look_at(path: Path) -> tuple[dict[str, Path], Description]:
    """The files of the model at `path`, by name, and what they say of themselves; raises as `fetch_path` does."""
    try:
        files = _files_of(path)
        return files, describe(files)
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}", field="ref") from error


def _files_of(path: Path) -> dict[str, Path]:
    """The files of the model at `path`, by name; raises `NotFound`, or `Invalid` where it is none."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise NotFound(f"no model at {path}: {error.strerror}", field="ref") from error
    if stat.S_ISREG(mode):
        if path.suffix.lower() != ".gguf":
            raise Invalid(f"{path} is no .gguf file", remedy="give a .gguf file, or the folder of a model", field="ref")
        name = path.name if is_file_name(path.name) else f"{name_for(path.stem)}.gguf"
        return {name: path}
    if not stat.S_ISDIR(mode):
        raise Invalid(f"{path} is neither a file nor a folder", field="ref")
    names = sorted(child.name for child in path.iterdir() if child.is_file())
    nested = sorted(name for name in NESTED if (path / name).is_file())
    wanted = [name for name in (*names, *nested) if is_wanted(name)]
    if not is_model_folder(wanted) and not is_adapter_folder(wanted):
        ggufs = [name for name in names if name.lower().endswith(".gguf")]
        hint = (
            f"give one of its files: {', '.join(ggufs[:20])}"
            if ggufs
            else "it needs config.json and *.safetensors, or an adapter's"
        )
        raise Invalid(f"{path} is no model folder", remedy=hint, field="ref")
    return {name: path / name for name in wanted}


def _copy(name: str, path: Path, scratch: Scratch, transfer: Transfer, *, done: int, total: int) -> Staged:
    target = scratch.fresh / name.replace("/", "-")
    try:
        source = path.open("rb")
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    with source:
        before = os.fstat(source.fileno())
        try:
            copied = disk.copy(source, target, transfer, stage="fetching", done=done, total=total)
        except OSError as error:
            raise DataLoss(f"{path} cannot be read to its end: {error.strerror}") from error
        after = os.fstat(source.fileno())
    if (before.st_size, before.st_mtime_ns) != (
        after.st_size,
        after.st_mtime_ns,
    ) or copied.bytes != after.st_size:
        target.unlink()
        raise Aborted(f"{path} was changed while it was copied", remedy="pull again when it is complete")
    return Staged(name, target, copied.digest, copied.bytes)
