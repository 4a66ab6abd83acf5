"""The join token: one line that an operator pastes on the machine that is to join.

    mkjoin1.<the fingerprint of the cluster's root, base64url>.<a signed token with the right to join>

The fingerprint tells the machine whom to believe before it says anything, the signed token tells the cluster to let it
in. Where there is no TLS, on loopback, a `-` stands for the fingerprint. After the join tokens of Docker Swarm.
"""

from __future__ import annotations

import base64
import hashlib
import re

from microkernel.capability import LONGEST_TOKEN
from microkernel.errors import Invalid
from microkernel.message import Message
from microkernel.token import blocks_of

__all__ = ["JoinToken", "format_join_token", "parse_join_token"]

PREFIX = "mkjoin1."
NO_TLS = "-"
LONGEST = len(PREFIX) + 43 + 1 + LONGEST_TOKEN  # characters
FINGERPRINT = hashlib.sha256().digest_size
_FINGERPRINT = re.compile(r"[A-Za-z0-9_-]{43}")


class JoinToken(Message):
    """What a join token says: the SHA-256 of the root, 32 bytes, None without TLS; and the signed token, a secret."""

    fingerprint: bytes | None
    token: str

    def __repr__(self) -> str:
        return "JoinToken(…)"  # it is not to come into a log by a slip


def format_join_token(join: JoinToken) -> str:
    """The line for `join`. Raises `Invalid` for what is no fingerprint or no signed token."""
    if join.fingerprint is not None and len(join.fingerprint) != FINGERPRINT:
        raise Invalid(f"a fingerprint has {FINGERPRINT} bytes, not {len(join.fingerprint)}", field="fingerprint")
    blocks_of(join.token)
    return f"{PREFIX}{NO_TLS if join.fingerprint is None else _text(join.fingerprint)}.{join.token}"


def parse_join_token(line: str) -> JoinToken:
    """What the line says, blanks around it aside. Raises `Invalid`; whether the token is valid, the cluster knows.

    A fingerprint cannot be told from another one: a damaged one finds no cluster.
    """
    line = line.strip()
    shown, dot, token = line.removeprefix(PREFIX).partition(".")
    if not line.startswith(PREFIX) or len(line) > LONGEST or not dot:
        raise Invalid(
            f"this is no join token: one begins with {PREFIX} and has at most {LONGEST:,} characters",
            remedy="copy the whole line",
        )
    fingerprint = None if shown == NO_TLS else _bytes(shown)
    blocks_of(token)
    return JoinToken(fingerprint, token)


def _text(fingerprint: bytes) -> str:
    return base64.urlsafe_b64encode(fingerprint).rstrip(b"=").decode("ascii")


def _bytes(text: str) -> bytes:
    if _FINGERPRINT.fullmatch(text):
        fingerprint = base64.urlsafe_b64decode(text + "=")
        if _text(fingerprint) == text:  # there is one way only to write it
            return fingerprint
    raise Invalid("this join token is damaged: its fingerprint is not one", remedy="copy the whole line")
