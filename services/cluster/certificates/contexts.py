"""TLS between nodes: 1.3 only, and only the roots of the cluster are believed, never those of the system.

A node that is connected to has a `ServerTls`. It asks for a certificate without insisting: who has none is nobody yet,
and what nobody may do is not decided here; a certificate that is not the cluster's ends the handshake. A client
insists on the certificate of the very node that it means, by name, whatever address it dials: `server_hostname` is
`host_of(node)`.

A renewed certificate holds for the next handshake. `ServerTls.context`, which the listening sockets have, is empty:
each handshake is moved to the current context when the client has said its first word (`SSL_set_SSL_CTX`, from the
callback for server names). Loading a certificate into a live context would be less: it takes no root away, and in a
thread it is not safe. Tried with OpenSSL 3.0, handshakes failed meanwhile, and then the interpreter crashed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509

from microkernel.errors import PreconditionFailed
from microkernel.message import Message
from services.cluster.certificates.certificate import expires_at, issued_at, node_in, serial_of
from services.cluster.certificates.credentials import Credentials

__all__ = ["Peer", "ServerTls", "certificate_of", "client_context", "joining_context", "peer_of"]


class ServerTls:
    """What a listening node encrypts with. Give `context` to the sockets, once."""

    def __init__(self, credentials: Credentials) -> None:
        """Reads the file of `credentials`. Raises `PreconditionFailed` for one that cannot be used."""
        self.context = _server_context()
        self.context.sni_callback = self._switch
        self._current = _with_credentials(_server_context(), credentials)

    def renew(self, credentials: Credentials) -> None:
        """Use `credentials`, and trust their roots only, from the next handshake on; links that are open go on.

        Reads a file; may be called from any thread. Raises `PreconditionFailed`: what was in use stays so.
        """
        self._current = _with_credentials(_server_context(), credentials)

    def _switch(self, connection: ssl.SSLObject, _name: str, _context: ssl.SSLContext) -> None:
        connection.context = self._current


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """What a node dials another with. It is made anew when `credentials` are. Reads their file.

    Raises `PreconditionFailed` for one that cannot be used.
    """
    return _with_credentials(_context(ssl.PROTOCOL_TLS_CLIENT), credentials)


def joining_context(root: str) -> ssl.SSLContext:
    """What a node without a certificate dials `names.ADMITTING` with; `root` (PEM) is what `find_root` has found.

    Raises `PreconditionFailed` for what is no certificate.
    """
    return _believing(_context(ssl.PROTOCOL_TLS_CLIENT), (root,))


class Peer(Message):
    """The checked certificate at the other end: Unix times in seconds, the serial in hexadecimal."""

    node: str
    serial: str
    issued: float
    expires: float


def peer_of(link: asyncio.BaseTransport | ssl.SSLObject | ssl.SSLSocket) -> str | None:
    """The node at the other end, by its checked certificate; None for one that has shown none."""
    peer = certificate_of(link)
    return None if peer is None else peer.node


def certificate_of(link: asyncio.BaseTransport | ssl.SSLObject | ssl.SSLSocket) -> Peer | None:
    """What `peer_of` goes by; None as well for a certificate that nobody has checked, or that is not for one node."""
    tls = link if isinstance(link, ssl.SSLObject | ssl.SSLSocket) else link.get_extra_info("ssl_object")
    if tls is None:
        return None
    shown = tls.getpeercert(binary_form=True)
    if shown is None or not tls.getpeercert():  # that is empty for one that was not checked
        return None
    certificate = x509.load_der_x509_certificate(shown)
    node = node_in(certificate)
    if node is None:
        return None
    serial = serial_of(certificate.serial_number)
    return Peer(node=node, serial=serial, issued=issued_at(certificate), expires=expires_at(certificate))


def _server_context() -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    # Without tickets no session is resumed: that would go by the certificate and the roots of an earlier time.
    context.num_tickets = 0
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)  # of a client, it checks certificates and names; it knows no roots yet
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    return context


def _with_credentials(context: ssl.SSLContext, credentials: Credentials) -> ssl.SSLContext:
    try:
        context.load_cert_chain(credentials.path, password=_no_password)
    except (OSError, ValueError) as error:
        raise _unusable(credentials.path, error) from error
    return _believing(context, credentials.roots)


def _believing(context: ssl.SSLContext, roots: Iterable[str]) -> ssl.SSLContext:
    try:
        context.load_verify_locations(cadata="".join(roots))
    except (ssl.SSLError, ValueError) as error:
        raise PreconditionFailed(f"the roots of the cluster cannot be used: {error}") from error
    return context


def _unusable(path: Path, error: Exception) -> PreconditionFailed:
    return PreconditionFailed(
        f"the certificate of this node, {path}, cannot be used: {error}",
        remedy="delete it, and join the cluster again with a new join token",
    )


def _no_password() -> str:
    """Asked for the password of a key; without this, OpenSSL would ask at the terminal."""
    raise ValueError("the key has a password")
