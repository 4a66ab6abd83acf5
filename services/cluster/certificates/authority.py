"""The authority of a cluster: a root certificate of its own, and its signature under those of the nodes.

There is one for a cluster, on the node that lets others join, in one file: for each root its private key and its
certificate (RFC 5280; ECDSA with P-256 and SHA-256). The name of a root has a random part that no other cluster has.
Whoever knows its fingerprint can believe it from wherever it comes.

A root is replaced while the cluster runs, in three steps that take their time from the root itself. Made by
`roll_over`, it is handed out with every certificate and signs none: within `LONGEST_LIFETIME` every node has
renewed its certificate and trusts both. Then it signs. After as long again, no certificate of the old root is valid any
more, and that is forgotten.
"""

from __future__ import annotations

import secrets
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from microkernel import durable
from microkernel.errors import Invalid, PreconditionFailed
from services.cluster.certificates.certificate import (
    BACKDATE,
    LIFETIME,
    LONGEST_LIFETIME,
    MOST_ROOTS,
    SHORTEST_LIFETIME,
    Certificate,
    expires_at,
    fingerprint_of,
    issued_at,
    serial_of,
)
from services.cluster.certificates.join_secret import JoinSecret
from services.cluster.certificates.names import ADMITTING, DOMAIN, host_of
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
from services.cluster.certificates.request import public_key_of

__all__ = ["FILE", "ROOT_LIFETIME", "Authority"]

FILE = "authority.pem"
ROOT_LIFETIME = 3650 * 86_400.0  # seconds
_SHA256 = hashes.SHA256()


class _Root(NamedTuple):
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class Authority:
    """The authority whose key is in a folder. Its methods may be called from any thread."""

    def __init__(self, folder: Path, *, now: float) -> None:
        """Read the authority in `folder`, or make it, at Unix time `now`; the node alone has the state folder.

        Raises `PreconditionFailed` for a folder or a file that cannot be used. It is never made anew over a damaged
        file: every node would be locked out.
        """
        self._path = folder / FILE
        self._changing = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._path.exists():
                self._roots = _read(self._path)
            else:
                self._roots = (_new_root(now),)
                durable.replace(self._path, _text(self._roots))
            self._forget_old(now)
        except OSError as error:
            raise PreconditionFailed(
                f"cannot use the authority of the cluster in {self._path}: {error.strerror}",
                remedy="check its owner and mode",
            ) from error

    def roots(self, now: float) -> tuple[str, ...]:
        """The roots that are trusted at `now`, as PEM, the oldest first."""
        return tuple(certificate_text(root.certificate) for root in _trusted(self._roots, now))

    def fingerprint(self, now: float) -> bytes:
        """The SHA-256, 32 bytes, of the root that signs at `now`: what a node that joins is to know."""
        return fingerprint_of(_signing(self._roots, now).certificate)

    def expires(self, now: float) -> float:
        """The Unix time at which the root that signs at `now` ends, and with it the cluster unless it is replaced."""
        return expires_at(_signing(self._roots, now).certificate)

    def sign(
        self,
        request: bytes,
        node: str,
        lifetime: float = LIFETIME,
        *,
        now: float,
        admits: bool = False,
        secret: JoinSecret | None = None,
    ) -> Certificate:
        """A certificate for `node` with the key of `request`, valid for `lifetime` seconds at most.

        With `admits` it is also for `ADMITTING`, which who joins asks for: without that, any node of the cluster
        could take the join tokens of others. With a `secret` too, it vouches for the root to all that have the same
        one. Raises `Invalid` for a name, a lifetime or a request that is not acceptable, `PreconditionFailed` when the
        root has come to its end.
        """
        if not SHORTEST_LIFETIME <= lifetime <= LONGEST_LIFETIME:
            raise Invalid(
                f"a certificate is valid for {SHORTEST_LIFETIME:g} to {LONGEST_LIFETIME:g} seconds, not {lifetime:g}",
                field="lifetime",
            )
        public_key = public_key_of(request)
        roots = self._roots
        root = _signing(roots, now)
        hosts = [host_of(node), ADMITTING] if admits else [host_of(node)]
        if admits and secret is not None:
            hosts.append(secret.vouched_host(fingerprint_of(root.certificate)))
        expires = min(now + lifetime, expires_at(root.certificate))
        if expires < now + SHORTEST_LIFETIME:
            raise PreconditionFailed(
                "the root certificate of the cluster has come to its end",
                remedy=f"delete {self._path}: a new authority is made, and every node joins again",
            )
        serial = x509.random_serial_number()
        certificate = (
            x509.CertificateBuilder(
                issuer_name=root.certificate.subject,
                subject_name=_name(node),
                public_key=public_key,
                serial_number=serial,
                not_valid_before=_moment(now - BACKDATE),
                not_valid_after=_moment(expires),
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False)
            .sign(root.key, _SHA256)
        )
        return Certificate(
            node=node,
            serial=serial_of(serial),
            certificate=certificate_text(certificate),
            roots=tuple(certificate_text(each.certificate) for each in _trusted(roots, now)),
            issued=issued_at(certificate),
            expires=expires_at(certificate),
        )

    def roll_over(self, *, now: float) -> None:
        """Make the next root, which takes the place of this one in the course of twice `LONGEST_LIFETIME`.

        It is for a root that nears its end. For one whose key was stolen it is too slow: delete the file, and let every
        node join again. Raises `PreconditionFailed` while one is under way, or when the file cannot be written.
        """
        with self._changing:
            self._forget_old(now)
            if len(self._roots) == MOST_ROOTS:
                raise PreconditionFailed(
                    "a new root is already taking the place of the old one",
                    remedy="wait until it has: two weeks from its beginning",
                )
            self._keep((*self._roots, _new_root(now)))

    def _forget_old(self, now: float) -> None:
        kept = _trusted(self._roots, now)
        if len(kept) < len(self._roots):
            self._keep(kept)

    def _keep(self, roots: tuple[_Root, ...]) -> None:
        try:
            durable.replace(self._path, _text(roots))
        except OSError as error:
            raise PreconditionFailed(
                f"cannot write the authority of the cluster to {self._path}: {error.strerror}"
            ) from error
        self._roots = roots


def _signing(roots: tuple[_Root, ...], now: float) -> _Root:
    return roots[-1] if now >= issued_at(roots[-1].certificate) + LONGEST_LIFETIME else roots[0]


def _trusted(roots: tuple[_Root, ...], now: float) -> tuple[_Root, ...]:
    return roots[-1:] if now >= issued_at(roots[-1].certificate) + 2 * LONGEST_LIFETIME else roots


def _new_root(now: float) -> _Root:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"microkernel cluster {secrets.token_hex(8)}")
    certificate = (
        x509.CertificateBuilder(
            issuer_name=name,
            subject_name=name,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=_moment(now - BACKDATE),
            not_valid_after=_moment(now + ROOT_LIFETIME),
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        # Where somebody has it among the roots of a system, it still speaks for no other name.
        .add_extension(x509.NameConstraints([x509.DNSName(DOMAIN)], None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, _SHA256)
    )
    return _Root(key, certificate)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _moment(unix: float) -> datetime:
    return datetime.fromtimestamp(int(unix), UTC)


def _text(roots: tuple[_Root, ...]) -> bytes:
    return "".join(key_text(root.key) + certificate_text(root.certificate) for root in roots).encode("ascii")


def _read(path: Path) -> tuple[_Root, ...]:
    try:
        sections = read(path)
        if len(sections) not in range(2, 2 * MOST_ROOTS + 1, 2):
            raise ValueError("it does not have a certificate for each key")
        roots = tuple(
            _Root(key_from(key), certificate_from(certificate))
            for key, certificate in zip(sections[::2], sections[1::2], strict=True)
        )
        for root in roots:
            root.certificate.verify_directly_issued_by(root.certificate)
            if not fits(root.key, root.certificate):
                raise ValueError("a key and its certificate do not fit each other")
    except DAMAGED as error:
        raise PreconditionFailed(
            f"the authority of the cluster in {path} is damaged: {why_damaged(error)}",
            remedy="restore it from a backup; or delete it: a new one is made, and every node joins again",
        ) from error
    return roots
