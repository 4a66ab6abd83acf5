"""The manifest of a checkpoint: what is in it, with digests, signed; a checkpoint is there once its manifest is.

It is one line of JSON, `{"manifest":{...},"key":"...","signature":"..."}`. Nothing within is looked at before its
signature is found to be that of a trusted key. Then the whole has to be, byte for byte, what would be written today:
so no bit of it can change unseen, be it one of a hexadecimal digit's case.

Each file has the BLAKE3 of every piece of 4 MiB, and as its own digest the BLAKE3 of those, one behind the other: one
pass of hashing says which piece is damaged, where a second one for the whole would say no more.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from typing import Annotated, TypeVar

import blake3
import msgspec

from microkernel.errors import DataLoss, Invalid, PreconditionFailed
from microkernel.message import Message
from services.training.checkpoints.facts import Facts, Whole, check_facts, check_sizes
from services.training.checkpoints.image import image_of
from services.training.checkpoints.keys import SigningKey, TrustedKeys

__all__ = [
    "FORMAT", "LARGEST", "PIECE", "Manifest", "Parent", "StoredFile", "digest_of", "digest_of_pieces", "file_name",
    "manifest_name", "opened", "sealed",
]  # fmt: skip

FORMAT = 1
PIECE = 4 << 20  # bytes that have a digest
LARGEST = 256 << 20  # bytes of a manifest: that of 16 TB, most of them digests of pieces
MOST_FILES = 1 << 16
DIGEST = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")
Number = Annotated[int, msgspec.Meta(ge=1, le=99_999_999)]


class StoredFile(Message, forbid_unknown_fields=True):
    """One file: its bytes, the digests, and the elements of its tensors in their order."""

    name: str
    size: Whole
    digest: str
    pieces: tuple[str, ...]
    tensors: dict[str, int]


class Parent(Message, forbid_unknown_fields=True):
    """The checkpoint that the job had before: its number, and the digest of its manifest's file."""

    number: Number
    digest: str


class Manifest(Message, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A checkpoint: the `number`-th of its folder, made at Unix time `made`, in seconds."""

    format: int
    job: str
    number: Number
    made: float
    parent: Parent | None = None
    facts: Facts
    files: tuple[StoredFile, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The elements of all tensors."""
        return {name: elements for file in self.files for name, elements in file.tensors.items()}

    @property
    def bytes(self) -> int:
        """What its files take."""
        return sum(file.size for file in self.files)


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    manifest: msgspec.Raw
    key: str
    signature: str


class _Version(msgspec.Struct):
    format: int


def manifest_name(number: int) -> str:
    """What the manifest's file is called."""
    return f"checkpoint-{number:08}.json"


def file_name(number: int, index: int) -> str:
    """What the file at `index` of a checkpoint is called."""
    return f"checkpoint-{number:08}-{index}.safetensors"


def digest_of(content: bytes) -> str:
    """BLAKE3 in hex."""
    return blake3.blake3(content).hexdigest()


def digest_of_pieces(pieces: Iterable[str]) -> str:
    """The digest of a file by those of its pieces."""
    return digest_of(b"".join(bytes.fromhex(piece) for piece in pieces))


def sealed(manifest: Manifest, key: SigningKey) -> bytes:
    """What the manifest's file holds."""
    content = msgspec.json.encode(manifest, order="deterministic")
    return _enclosed(content, key.fingerprint, key.sign(content).hex())


def opened(content: bytes, name: str, trusted: TrustedKeys, number: int | None = None) -> Manifest:
    """The manifest in `content`, which comes from `name` and has to be the one of `number`, if that is given.

    Raises `DataLoss` for one that is damaged, cut off, not signed by a trusted key, or makes no sense, and
    `PreconditionFailed` for one of a later format.
    """
    envelope = _decoded(content, _Envelope, name)
    raw = bytes(envelope.manifest)
    try:
        signature = bytes.fromhex(envelope.signature)
    except ValueError as error:
        raise DataLoss(f"{name} is damaged: its signature is no hexadecimal number") from error
    trusted.verify(name, envelope.key, signature, raw)
    version = _decoded(raw, _Version, name).format
    if version != FORMAT:
        raise PreconditionFailed(f"{name} has the format {version}, known is {FORMAT}", remedy="use a later release")
    manifest = _decoded(raw, Manifest, name)
    canonical = msgspec.json.encode(manifest, order="deterministic")
    if _enclosed(canonical, envelope.key, signature.hex()) != content:
        raise DataLoss(f"{name} is damaged: it is not written as a manifest is")
    try:
        _check(manifest, number)
    except Invalid as error:
        raise DataLoss(f"{name} makes no sense: {error.message}") from error
    return manifest


def _enclosed(content: bytes, key: str, signature: str) -> bytes:
    return msgspec.json.encode(_Envelope(msgspec.Raw(content), key, signature)) + b"\n"


def _decoded(content: bytes, kind: type[T], name: str) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataLoss(f"{name} is damaged or cut off: {error}") from error


def _check(manifest: Manifest, number: int | None) -> None:
    """What types do not show; names of files are those of this checkpoint, and so lead nowhere else."""
    if number is not None and manifest.number != number:
        raise Invalid(f"it is that of checkpoint {manifest.number}")
    if not 0 < len(manifest.files) <= MOST_FILES:
        raise Invalid(f"it has {len(manifest.files)} files")
    if manifest.parent is not None and DIGEST.fullmatch(manifest.parent.digest) is None:
        raise Invalid("its parent's digest is none")
    if len(manifest.sizes) != sum(len(file.tensors) for file in manifest.files):
        raise Invalid("a tensor is in two files")
    for index, file in enumerate(manifest.files):
        if file.name != file_name(manifest.number, index):
            raise Invalid(f"the file {index} is called {file.name[:64]!r}")
        check_sizes(file.tensors)
        if file.size != image_of(file.tensors).size:
            raise Invalid(f"{file.name} has {file.size} bytes, its tensors need {image_of(file.tensors).size}")
        if len(file.pieces) != -(-file.size // PIECE) or not all(DIGEST.fullmatch(each) for each in file.pieces):
            raise Invalid(f"{file.name} lacks digests of pieces")
        if not hmac.compare_digest(digest_of_pieces(file.pieces), file.digest):
            raise Invalid(f"the digest of {file.name} is not that of its pieces")
    check_facts(manifest.facts, manifest.sizes)
