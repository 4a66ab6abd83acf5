"""A cluster's authority, and nodes with certificates of all kinds, good and bad."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.cluster.certificates.authority import FILE, Authority
from services.cluster.certificates.certificate import LIFETIME
from services.cluster.certificates.credentials import Credentials, store
from services.cluster.certificates.join_secret import JoinSecret
from services.cluster.certificates.pem import certificate_from, certificate_text, key_from, key_text, read
from services.cluster.certificates.request import NodeKey

__all__ = ["BOTH", "DAY", "NOW", "Cluster", "forged"]

DAY = 86_400.0
# OpenSSL goes by this machine's clock: what is valid has to be so now. Everything else is made as long ago as it takes.
NOW = time.time()


class Cluster:
    """An authority that is a month old, and the files of its nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority", now=NOW - 30 * DAY)

    def node(
        self,
        name: str,
        *,
        at: float = NOW,
        lifetime: float = LIFETIME,
        admits: bool = False,
        secret: JoinSecret | None = None,
    ) -> Credentials:
        """The credentials of `name`, made `at` a time."""
        key = NodeKey()
        certificate = self.authority.sign(key.request(name), name, lifetime, now=at, admits=admits, secret=secret)
        return store(self.folder / name / "node.pem", key, certificate, name, now=at)

    def made_by_hand(self, name: str, hosts: Sequence[str], usages: Sequence[x509.ObjectIdentifier]) -> Credentials:
        """What the authority would never sign, signed with its key."""
        root_key, root = read(self.folder / "authority" / FILE)
        return forged(self.folder / f"{name}.pem", name, hosts, root_key, root, usages)


BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


def forged(
    path: Path,
    name: str,
    hosts: Sequence[str],
    root_key: str | None = None,
    root: str | None = None,
    usages: Sequence[x509.ObjectIdentifier] = BOTH,
) -> Credentials:
    """A certificate for `hosts`, signed by `root_key`, or by its own key without one."""
    own = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = own if root_key is None else key_from(root_key)
    certificate = (
        x509.CertificateBuilder(
            issuer_name=subject if root is None else certificate_from(root).subject,
            subject_name=subject,
            public_key=own.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=datetime.fromtimestamp(int(NOW) - 300, UTC),
            not_valid_after=datetime.fromtimestamp(int(NOW) + 86_400, UTC),
        )
        .add_extension(x509.BasicConstraints(ca=root is None, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    roots = (certificate_text(certificate) if root is None else root,)
    path.write_text(key_text(own) + certificate_text(certificate) + "".join(roots))
    return Credentials(path, name, format(certificate.serial_number, "x"), NOW, NOW + DAY, roots)
