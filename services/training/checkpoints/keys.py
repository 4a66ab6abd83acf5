"""Keys that sign checkpoints: Ed25519 (https://datatracker.ietf.org/doc/html/rfc8032), one a node, made once."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from microkernel.durable import sync_folder
from microkernel.errors import DataLoss, Invalid, PreconditionFailed
from services.training.checkpoints.disk import writing

__all__ = ["SigningKey", "TrustedKeys", "fingerprint_of"]

PURPOSE = b"microkernel training checkpoint\0"  # a signature under this is none under anything else
PRIVATE = 0o600
PUBLIC_BYTES = 32


def fingerprint_of(public: bytes) -> str:
    """The name of a public key, given as its 32 bytes: their BLAKE3 in hex."""
    return blake3.blake3(public).hexdigest()


class SigningKey:
    """The private key of a node."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()
        """32 bytes, for those who are to trust it."""
        self.fingerprint = fingerprint_of(self.public)

    def sign(self, content: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(PURPOSE + content)

    @classmethod
    def at(cls, path: Path) -> SigningKey:
        """The key in `path`, made (mode 0600) where there is none.

        Raises `DataLoss` for a file that holds none, `PreconditionFailed` for one that others may read or no room.
        """
        if not path.exists():
            _make(path)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise PreconditionFailed(
                    f"the key {path} may be read by others than its owner",
                    remedy="chmod 600 it if nobody has read it; otherwise delete it, and trust its signatures no more",
                )
            content = file.read(1 << 16)
        try:
            key = load_pem_private_key(content, password=None)
        except (ValueError, TypeError) as error:
            raise DataLoss(f"{path} holds no private key", remedy="delete it: the next start makes one") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise DataLoss(f"the key in {path} is not of Ed25519", remedy="delete it: the next start makes one")
        return cls(key)


class TrustedKeys:
    """Public keys, 32 bytes each, whose signatures are believed."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys: list[tuple[str, Ed25519PublicKey]] = []
        for public in keys:
            if len(public) != PUBLIC_BYTES:
                raise Invalid(f"a public key has {PUBLIC_BYTES} bytes, not {len(public)}", field="trusted")
            self._keys.append((fingerprint_of(public), Ed25519PublicKey.from_public_bytes(public)))

    def verify(self, name: str, fingerprint: str, signature: bytes, content: bytes) -> None:
        """Raise `DataLoss` that names `name` unless the trusted key of that fingerprint has signed `content`."""
        given = fingerprint.encode()
        key = next((key for known, key in self._keys if hmac.compare_digest(known.encode(), given)), None)
        if key is None:
            raise DataLoss(
                f"{name} is signed with the key {fingerprint[:16]!r}, which is not trusted here",
                remedy="trust the public key of the node that wrote it, if you know it",
            )
        try:
            key.verify(signature, PURPOSE + content)
        except InvalidSignature as error:
            raise DataLoss(f"{name} is not what was signed: it has been damaged or changed") from error


def _make(path: Path) -> None:
    """Whoever comes first has made it; a process that is killed meanwhile leaves no half of a key under this name."""
    content = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with writing(path.parent, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE)
        try:
            with open(handle, "wb") as file:  # noqa: PTH123 - a handle, which has its mode from the first moment
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                path.hardlink_to(beside)
            except FileExistsError:
                return
            sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)
