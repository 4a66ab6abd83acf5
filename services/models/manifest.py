"""What a stored model consists of, as the store writes it down in JSON; nothing that is read back is trusted."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from microkernel.errors import DataLoss
from services.models.layout import NESTED
from services.models.names import is_name

__all__ = ["BLOB", "Manifest", "StoredFile", "decode_manifest", "digest_of_model", "read_manifest"]

BLOB = re.compile(r"sha256-[0-9a-f]{64}")


class StoredFile(msgspec.Struct, frozen=True):
    """One file of a model: its name in the model's folder, sha256 in hex, and size."""

    name: str
    digest: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a stored model. `refs` are all refs that gave this content, the first one first."""

    version: int = 1
    name: str
    refs: tuple[str, ...]
    format: str
    digest: str
    bytes: int
    files: tuple[StoredFile, ...]
    pulled_at: float
    architecture: str | None = None
    license: str | None = None
    kind: str = "model"


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest; raises `FileNotFoundError`, or `DataLoss` that names the file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataLoss(f"the manifest {path} cannot be read: {error.strerror}") from error
    return decode_manifest(content, path.stem, str(path))


def decode_manifest(content: bytes, name: str, where: str) -> Manifest:
    """Check what stands in the manifest of a model of that name; raises `DataLoss` that says `where` it is."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataLoss(f"the manifest {where} is damaged: {error}") from error
    safe = all(_is_safe(file.name) and BLOB.fullmatch(f"sha256-{file.digest}") for file in manifest.files)
    if (
        manifest.version != 1
        or manifest.name != name
        or not is_name(manifest.name)
        or not (safe and manifest.files and manifest.refs)
    ):
        raise DataLoss(f"the manifest {where} is damaged: it is not what this store has written")
    return manifest


def _is_safe(name: str) -> bool:
    """Whether a file of that name stays in the model's folder."""
    return name == Path(name).name or name in NESTED


def digest_of_model(files: tuple[StoredFile, ...]) -> str:
    """One digest for a model: that of its file, or that of the list of its files."""
    if len(files) == 1:
        return files[0].digest
    listing = "".join(f"{file.digest}  {file.name}\n" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()
