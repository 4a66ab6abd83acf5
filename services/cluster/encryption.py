"""What a node encrypts its links with: its certificate, how that is renewed, and for the first node the authority.

Imported only where there is TLS: `cryptography` takes a tenth of a second to come in.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

from microkernel.errors import PreconditionFailed
from microkernel.message import convert
from microkernel.wire.trust import Expected
from services.cluster.certificates.authority import Authority
from services.cluster.certificates.certificate import Certificate
from services.cluster.certificates.contexts import (
    Peer,
    ServerTls,
    certificate_of,
    client_context,
    joining_context,
)
from services.cluster.certificates.credentials import Credentials, load, store
from services.cluster.certificates.first_contact import find_root, find_vouched_root
from services.cluster.certificates.join_secret import JoinSecret
from services.cluster.certificates.names import ADMITTING, host_of
from services.cluster.certificates.refusals import Refusal, Refusals
from services.cluster.certificates.request import NodeKey
from services.cluster.messages import Removed, Signed

__all__ = ["Encryption", "expected_at", "request_of", "vouched_at"]


class Encryption:
    """The certificate of one node, in use. Made by `founding` or `joined`."""

    def __init__(
        self,
        folder: Path,
        credentials: Credentials,
        *,
        authority: Authority | None,
        now: float,
        secret: JoinSecret | None = None,
    ) -> None:
        """Reads files, so it is called on a thread, as all that is not `async` here and takes a time."""
        self.authority = authority
        self._secret = secret
        self.refusals = Refusals(folder / "refused.json", now=now)
        self.tls = ServerTls(credentials)
        self._credentials = credentials
        self._context = client_context(credentials)

    @staticmethod
    def founding(
        folder: Path, node: str, lifetime: float, *, now: float, secret: JoinSecret | None = None
    ) -> Encryption:
        """That of the node with which a cluster begins: it signs for itself, and for those that it lets in."""
        authority = Authority(folder / "authority", now=now)
        credentials = load(folder / "node.pem", node)
        if credentials is None or credentials.is_due(now) or secret is not None:  # the secret may be another one now
            credentials = _sign_own(authority, folder, node, lifetime, now, secret)
        return Encryption(folder, credentials, authority=authority, now=now, secret=secret)

    @staticmethod
    def joined(folder: Path, node: str, *, now: float) -> Encryption | None:
        """That of a node that has joined before; None where it has no certificate. Raises `PreconditionFailed`."""
        credentials = load(folder / "node.pem", node)
        if credentials is None:
            return None
        credentials.check(now)
        return Encryption(folder, credentials, authority=None, now=now)

    @staticmethod
    def admitted(folder: Path, node: str, key: NodeKey, signed: Signed, *, now: float) -> Encryption:
        """That of a node that was let in a moment ago."""
        credentials = store(folder / "node.pem", key, convert(signed, Certificate), node, now=now)
        return Encryption(folder, credentials, authority=None, now=now)

    @property
    def renewal(self) -> float:
        """The Unix time at which to ask for the next certificate."""
        return self._credentials.renewal

    def expected(self, node: str | None) -> Expected:
        """That the other end is to be `node`; None is the one that lets others in."""
        return Expected(self._context, ADMITTING if node is None else host_of(node))

    def peer(self, transport: asyncio.BaseTransport) -> Peer | None:
        """Whose certificate the other end has shown; None for none."""
        return certificate_of(transport)

    def fingerprint(self, now: float) -> bytes:
        """What a node that joins is to know the cluster by. Raises `PreconditionFailed` where others are let in."""
        return self._signing().fingerprint(now)

    def sign(self, request: str, node: str, lifetime: float, *, now: float) -> Signed:
        """A certificate for another node. Raises `Invalid`, and `PreconditionFailed` where others do that."""
        certificate = self._signing().sign(request.encode(), node, lifetime, now=now)
        return convert(certificate, Signed)

    def refuse(self, *removed: Removed, now: float) -> None:
        """Refuse the certificates of nodes that were removed; on a thread. Raises `PreconditionFailed`."""
        self.refusals.add(*(Refusal(node=each.node, at=each.at) for each in removed), now=now)

    def removed(self) -> tuple[Removed, ...]:
        """The nodes that are refused here."""
        return tuple(Removed(each.node, each.at) for each in self.refusals.all() if each.node is not None)

    async def renew(
        self,
        folder: Path,
        node: str,
        lifetime: float,
        ask: Callable[[str], Awaitable[Signed]],
        now: Callable[[], float],
    ) -> None:
        """Have the next certificate, and use it from the next handshake on. Raises what `ask` raises."""
        if self.authority is not None:
            fresh = await asyncio.to_thread(_sign_own, self.authority, folder, node, lifetime, now(), self._secret)
        else:
            key = await asyncio.to_thread(NodeKey)
            signed = await ask(key.request(node).decode())
            certificate = convert(signed, Certificate)
            fresh = await asyncio.to_thread(store, folder / "node.pem", key, certificate, node, now=now())
        context = await asyncio.to_thread(client_context, fresh)
        await asyncio.to_thread(self.tls.renew, fresh)
        self._credentials, self._context = fresh, context

    def _signing(self) -> Authority:
        if self.authority is None:
            raise PreconditionFailed("this node lets no others in", remedy="ask the node with which the cluster began")
        return self.authority


def _sign_own(
    authority: Authority, folder: Path, node: str, lifetime: float, now: float, secret: JoinSecret | None
) -> Credentials:
    key = NodeKey()
    certificate = authority.sign(key.request(node), node, lifetime, now=now, admits=True, secret=secret)
    return store(folder / "node.pem", key, certificate, node, now=now)


def request_of(node: str) -> tuple[NodeKey, str]:
    """A new key, and the request for its certificate; on a thread."""
    key = NodeKey()
    return key, key.request(node).decode()


async def expected_at(host: str, port: int, fingerprint: bytes) -> Expected:
    """What to expect of the node that lets others in, of which only the root's fingerprint is known.

    Raises `Unauthenticated` where it is another cluster, `Unavailable` where no node answers.
    """
    root = await find_root(host, port, fingerprint)
    context: ssl.SSLContext = await asyncio.to_thread(joining_context, root)
    return Expected(context, ADMITTING)


async def vouched_at(host: str, port: int, secret: JoinSecret) -> Expected:
    """What to expect of the node that lets others in, of which only the join secret is known. Raises likewise."""
    root, name = await find_vouched_root(host, port, secret)
    context: ssl.SSLContext = await asyncio.to_thread(joining_context, root)
    return Expected(context, name)
