"""The first contact of a node with a cluster of which it knows one thing: the root's fingerprint, or the join secret.

It takes two connections. The first believes nobody and says nothing: it takes the certificates that are shown in the
handshake and leaves. Whose SHA-256 is the fingerprint is the root; nobody can make another one. The second is an
ordinary one that believes this root alone and asks for the name of the node that lets others join. So the join token
is sent over a link that was checked by OpenSSL, as any other, and never over one that is to be checked later. Docker
Swarm and kubeadm join in the same two steps.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
import sys

from cryptography import x509

from microkernel.errors import Unauthenticated, Unavailable
from services.cluster.certificates.certificate import hosts_in
from services.cluster.certificates.join_secret import JoinSecret
from services.cluster.certificates.names import ADMITTING
from services.cluster.certificates.pem import DAMAGED

__all__ = ["TIMEOUT", "find_root", "find_vouched_root"]

TIMEOUT = 10.0  # seconds


async def find_root(host: str, port: int, fingerprint: bytes, *, timeout: float = TIMEOUT) -> str:
    """The root, as PEM, that has `fingerprint` and is shown by the node at `host` and `port`. It is told nothing.

    Raises `Unauthenticated` when no certificate with it is shown, `Unavailable` when no node with TLS answers within
    `timeout` seconds.
    """
    for certificate in await _shown(host, port, timeout):
        if hmac.compare_digest(hashlib.sha256(certificate).digest(), fingerprint):
            return ssl.DER_cert_to_PEM_cert(certificate)
    raise Unauthenticated(
        f"what answers at {host}, port {port} is not the cluster that the join token is for",
        remedy="make a new join token there, and check the address",
    )


async def find_vouched_root(host: str, port: int, secret: JoinSecret, *, timeout: float = TIMEOUT) -> tuple[str, str]:
    """The root, as PEM, that a node with the same join secret vouches for, and the name by which it does.

    The node is told nothing. The name is to be asked for in the second connection: that is what proves it. Raises as
    `find_root` does.
    """
    shown = await _shown(host, port, timeout)
    try:
        hosts = hosts_in(x509.load_der_x509_certificate(shown[0])) if shown else []
    except DAMAGED:
        hosts = []
    for certificate in shown[1:]:
        vouched = secret.vouched_host(hashlib.sha256(certificate).digest())
        if vouched in hosts:
            return ssl.DER_cert_to_PEM_cert(certificate), vouched
    raise Unauthenticated(
        f"what answers at {host}, port {port} does not have the join secret of this node",
        remedy="give the first node the same file with --join-secret, and check the address",
    )


async def _shown(host: str, port: int, timeout: float) -> list[bytes]:
    """What is shown there, as DER: the certificate, then what came with it. Raises `Unavailable`."""
    where = f"{host}, port {port}"
    try:
        async with asyncio.timeout(timeout):
            return await _shown_at(host, port)
    except TimeoutError as error:
        raise Unavailable(f"{where}: no answer within {timeout:g} s", retry_after=1.0, may_have_run=False) from error
    except ssl.SSLError as error:
        raise Unavailable(f"what answers at {where} does not speak TLS 1.3", may_have_run=False) from error
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"nothing answers at {where}", retry_after=1.0, may_have_run=False) from error


async def _shown_at(host: str, port: int) -> list[bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what is shown is compared, and nothing is sent
    _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=ADMITTING)
    try:
        return _chain(writer.get_extra_info("ssl_object"))
    finally:
        writer.transport.abort()


def _chain(tls: ssl.SSLObject) -> list[bytes]:
    """All that was shown, as DER."""
    if sys.version_info >= (3, 13):
        return tls.get_unverified_chain()
    below = tls._sslobj  # type: ignore[attr-defined] # noqa: SLF001 - there since 3.10, public since 3.13
    return [ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in below.get_unverified_chain() or ()]
