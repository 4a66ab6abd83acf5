"""The join secret: one line that all machines of a cluster have before its first node has ever run.

A join token needs a node that makes it. Where machines are described in files (containers, Kubernetes), there is none
yet, so the first node and those that join it are given the same random line. It is good for two things, each by a key
of its own (HMAC-SHA256):

- The first node has a name in its certificate that only who has the secret can make, and only for this root:
  `vouched_host`. A node that joins takes the root from the handshake for which that name is right. It tells nothing by
  that, and what it sends goes over a second link, which OpenSSL checks by root and name.
- The node that joins shows a signed token (`microkernel.token`) that was made with the secret, and permits to join.

The name is public, so whoever can reach the port could try secrets against it at leisure. That is why a short one is
refused. The secret has no expiry and names nobody: a join token is better wherever a person can carry one.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from pathlib import Path

from microkernel.capability import Identity
from microkernel.errors import Invalid, PreconditionFailed
from microkernel.token import identity_of, issue, make_block, verify
from services.cluster.certificates.names import DOMAIN

__all__ = ["JoinSecret", "read_join_secret"]

SHORTEST, LONGEST = 32, 1024  # characters
DISTINCT = 10  # of 64 random hexadecimal digits, fewer are different once in 10^13 times
_TEXT = re.compile(rf"[!-~]{{{SHORTEST},{LONGEST}}}")
_VOUCHING = b"microkernel join secret, version 1: to vouch for a root"
_JOINING = b"microkernel join secret, version 1: to join"


class JoinSecret:
    """A join secret. It is not to come into a log: no text is made of it."""

    def __init__(self, text: str) -> None:
        """Raises `Invalid` for what could be guessed."""
        if not _TEXT.fullmatch(text) or len(set(text)) < DISTINCT:
            raise Invalid(
                f"a join secret has {SHORTEST} to {LONGEST:,} random characters, without blanks",
                remedy="make one with: openssl rand -hex 32",
                field="join_secret",
            )
        self._vouching = hmac.digest(text.encode(), _VOUCHING, hashlib.sha256)
        self._joining = hmac.digest(text.encode(), _JOINING, hashlib.sha256)

    def vouched_host(self, fingerprint: bytes) -> str:
        """The name in a certificate that vouches for the root with this SHA-256, 32 bytes."""
        proof = hmac.digest(self._vouching, fingerprint, hashlib.sha256)
        return f"{base64.b32encode(proof).rstrip(b'=').decode('ascii').lower()}.vouched.{DOMAIN}"

    def token(self) -> str:
        """A signed token that permits to join; for a link that is checked, or one of this machine."""
        return issue(self._joining, make_block(user="node", allow=("cluster.join",)))

    def identity(self, token: str) -> Identity | None:
        """Who shows what `token` makes; None for anything else, by a comparison in constant time."""
        blocks = verify(self._joining, token)
        return None if blocks is None else identity_of(blocks)


def read_join_secret(path: Path) -> JoinSecret:
    """The secret in a file, blanks around it aside. Raises `PreconditionFailed`, and `Invalid` for a weak one."""
    try:
        with path.expanduser().open("rb") as file:
            body = file.read(4 * LONGEST)
    except OSError as error:
        raise PreconditionFailed(
            f"cannot read the join secret {path}: {error.strerror}", remedy="name another file with --join-secret"
        ) from error
    return JoinSecret(body.decode("ascii", errors="replace").strip())
