"""Keys and certificates as text (PEM, RFC 7468): reading what may be damaged, writing what OpenSSL reads."""

from __future__ import annotations

import re
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.utils import CryptographyDeprecationWarning

__all__ = [
    "DAMAGED",
    "NodePublicKey",
    "certificate_from",
    "certificate_text",
    "fits",
    "key_from",
    "key_text",
    "read",
    "why_damaged",
]

LARGEST_FILE = 65_536  # bytes; two roots, a key and a certificate are some 3,000
# What the library raises for what is damaged; the warning of a serial number that is none, where warnings are errors.
DAMAGED = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)

NodePublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_KEY, _CERTIFICATE = "PRIVATE KEY", "CERTIFICATE"
_SECTION = re.compile(rf"-----BEGIN ({_KEY}|{_CERTIFICATE})-----\n[A-Za-z0-9+/=\n]+-----END \1-----\n")


def read(path: Path) -> list[str]:
    """The sections of a file of ours, in order. Raises `OSError`, and `ValueError` for one that has anything else."""
    with path.open("rb") as file:
        raw = file.read(LARGEST_FILE + 1)
    if len(raw) > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE:,} bytes")
    text = raw.decode("ascii")
    sections = [found.group() for found in _SECTION.finditer(text)]
    if "".join(sections) != text or not text:
        raise ValueError("it is not made of keys and certificates alone")
    return sections


def why_damaged(error: Exception) -> str:
    """What one of `DAMAGED` says, in words."""
    return "a signature in it is wrong" if isinstance(error, InvalidSignature) else str(error)


def key_text(key: ec.EllipticCurvePrivateKey) -> str:
    """A private key as a section: it is not encrypted, the file's mode guards it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")


def key_from(section: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key in `section`. Raises one of `DAMAGED`."""
    key = load_pem_private_key(section.encode("ascii"), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("its key is not of the kind that is made here (P-256)")  # noqa: TRY004 - the file is wrong
    return key


def certificate_text(certificate: x509.Certificate) -> str:
    """A certificate as a section."""
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def certificate_from(section: str) -> x509.Certificate:
    """The certificate in `section`. Raises one of `DAMAGED`."""
    return x509.load_pem_x509_certificate(section.encode("ascii"))


def fits(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bool:
    """Whether `certificate` is for `key`. Raises one of `DAMAGED`."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)
