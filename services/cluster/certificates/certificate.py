"""What the authority gives to a node: its certificate and the roots that it is to trust, as text.

Here are also the spans of time that both ends have to agree on, in seconds.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.extensions import ExtensionNotFound

from microkernel.message import Message
from services.cluster.certificates.names import node_of

__all__ = [
    "BACKDATE",
    "LIFETIME",
    "LONGEST_LIFETIME",
    "MOST_ROOTS",
    "SHORTEST_LIFETIME",
    "Certificate",
    "expires_at",
    "fingerprint_of",
    "hosts_in",
    "issued_at",
    "node_in",
    "serial_of",
]

LIFETIME = 86_400.0
SHORTEST_LIFETIME = 60.0
LONGEST_LIFETIME = 7 * 86_400.0
# A certificate begins before it is made: a node whose clock is behind by less than this takes it at once.
BACKDATE = 300.0
MOST_ROOTS = 2  # the one that signs, and while the authority rolls over the one before or after it

Pem = Annotated[str, msgspec.Meta(max_length=8192)]


class Certificate(Message):
    """The certificate of `node` and the roots that the cluster trusts, the oldest first; PEM.

    `serial` is in hexadecimal, `issued` and `expires` are Unix times in seconds.
    """

    node: str
    serial: str
    certificate: Pem
    roots: Annotated[tuple[Pem, ...], msgspec.Meta(min_length=1, max_length=MOST_ROOTS)]
    issued: float
    expires: float


def fingerprint_of(root: x509.Certificate) -> bytes:
    """What a root is known by: the SHA-256 of it as DER, 32 bytes."""
    return hashlib.sha256(root.public_bytes(Encoding.DER)).digest()


def serial_of(number: int) -> str:
    """A serial number as it is written in messages and lists."""
    return format(number, "x")


def issued_at(certificate: x509.Certificate) -> float:
    """When it was made, by the clock of the authority: Unix time in whole seconds."""
    return certificate.not_valid_before_utc.timestamp() + BACKDATE


def expires_at(certificate: x509.Certificate) -> float:
    """When it ends: Unix time in whole seconds."""
    return certificate.not_valid_after_utc.timestamp()


def node_in(certificate: x509.Certificate) -> str | None:
    """The node that it is for; None where it is not for exactly one. Raises `ValueError` for a damaged one."""
    nodes = [node for node in map(node_of, hosts_in(certificate)) if node is not None]
    return nodes[0] if len(nodes) == 1 else None


def hosts_in(certificate: x509.Certificate) -> list[str]:
    """The names of hosts that it is for. Raises `ValueError` for a damaged one."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)
