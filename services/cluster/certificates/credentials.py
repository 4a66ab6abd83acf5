"""What a node shows to others: its key, its certificate and the roots it trusts, in one file of its state folder.

One file, replaced in one step: there is never a key without its certificate. OpenSSL reads it as it is, so a node that
is connected to shows its roots along with its certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from microkernel import durable
from microkernel.errors import Invalid, PreconditionFailed
from services.cluster.certificates.certificate import (
    BACKDATE,
    MOST_ROOTS,
    Certificate,
    expires_at,
    issued_at,
    node_in,
    serial_of,
)
from services.cluster.certificates.names import check_node
from services.cluster.certificates.pem import (
    DAMAGED,
    certificate_from,
    certificate_text,
    fits,
    key_from,
    key_text,
    read,
    why_damaged,
)
from services.cluster.certificates.request import NodeKey

__all__ = ["Credentials", "load", "store"]

HALF, JITTER = 0.5, 0.1  # of a lifetime; together they leave 0.4 of it for trying again
_PARTS = 1 << 32  # of the serial number, which is random, the last 32 bits


@dataclass(frozen=True, slots=True)
class Credentials:
    """What stands in the file at `path`, but for the key. `roots` are PEM, times are Unix times in seconds."""

    path: Path
    node: str
    serial: str
    issued: float
    expires: float
    roots: tuple[str, ...]

    @property
    def begins(self) -> float:
        """When the certificate begins to be valid."""
        return self.issued - BACKDATE

    @property
    def renewal(self) -> float:
        """When to ask for the next certificate: after half its life and up to a tenth more.

        How much more is taken from the serial number. So nodes that were started together do not ask together, and one
        that is restarted does not begin to wait again.
        """
        part = int(self.serial, 16) % _PARTS / _PARTS
        return self.issued + (self.expires - self.issued) * (HALF + JITTER * part)

    def is_due(self, now: float) -> bool:
        """Whether it is time to ask for the next certificate."""
        return now >= self.renewal

    def check(self, now: float) -> None:
        """Raises `PreconditionFailed` when the certificate cannot be used at `now`."""
        if now >= self.expires:
            raise PreconditionFailed(
                f"the certificate of '{self.node}' has expired",
                remedy="join the cluster again with a new join token; if it was made today, set this machine's clock",
            )
        if now < self.begins:
            raise PreconditionFailed(
                f"the certificate of '{self.node}' is not valid yet: this machine's clock is behind the cluster's",
                remedy="set the clock",
            )


def load(path: Path, node: str) -> Credentials | None:
    """The credentials of `node`; None where there are none. Takes no look at the time.

    Raises `PreconditionFailed` for a file that cannot be read, is damaged or belongs to another node.
    """
    try:
        sections = read(path)
        if len(sections) not in range(3, 3 + MOST_ROOTS):
            raise ValueError("it is not a key, a certificate and the roots")
        own, *roots = map(certificate_from, sections[1:])
        return _checked(path, key_from(sections[0]), own, roots, node)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PreconditionFailed(
            f"cannot read the certificate of this node, {path}: {error.strerror}", remedy="check its owner and mode"
        ) from error
    except DAMAGED as error:
        raise PreconditionFailed(
            f"the certificate of this node, {path}, cannot be used: {why_damaged(error)}",
            remedy="delete it, and join the cluster again with a new join token",
        ) from error


def store(path: Path, key: NodeKey, certificate: Certificate, node: str, *, now: float) -> Credentials:
    """Put what the authority has answered to `key`'s request in place of what is at `path`, in one step.

    Raises `Invalid` for an answer that is not for this node, this key and this time: what was there stays.
    `PreconditionFailed` for a file that cannot be written.
    """
    try:
        own = certificate_from(certificate.certificate)
        roots = [certificate_from(root) for root in certificate.roots]
        credentials = _checked(path, key.private, own, roots, check_node(node))
        credentials.check(now)
    except (*DAMAGED, PreconditionFailed) as error:
        raise Invalid(f"the certificate for '{node}' cannot be used: {why_damaged(error)}") from error
    body = key_text(key.private) + "".join(map(certificate_text, (own, *roots)))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.replace(path, body.encode("ascii"))
    except OSError as error:
        raise PreconditionFailed(f"cannot write the certificate of this node to {path}: {error.strerror}") from error
    return credentials


def _checked(
    path: Path, key: ec.EllipticCurvePrivateKey, own: x509.Certificate, roots: list[x509.Certificate], node: str
) -> Credentials:
    """Raises one of `DAMAGED`."""
    if not fits(key, own):
        raise ValueError("the key and the certificate do not fit each other")
    if (named := node_in(own)) != node:
        raise ValueError(f"it is for '{named}', and this node is '{node}'")
    for root in roots:
        root.verify_directly_issued_by(root)
    if not any(_has_issued(root, own) for root in roots):
        raise ValueError("none of the roots with it has signed it")
    return Credentials(
        path=path,
        node=node,
        serial=serial_of(own.serial_number),
        issued=issued_at(own),
        expires=expires_at(own),
        roots=tuple(map(certificate_text, roots)),
    )


def _has_issued(root: x509.Certificate, own: x509.Certificate) -> bool:
    try:
        own.verify_directly_issued_by(root)
    except DAMAGED:
        return False
    return True
