"""Who may call what: rights as patterns, and the token that stands for them at the door.

A token is compared in constant time and kept in a file that only its user can read.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from pathlib import Path

from microkernel.errors import PreconditionFailed
from microkernel.message import Message

__all__ = ["ADMIN", "ALL", "Identity", "Rights", "TokenFile", "checked_token"]

# What changes the node itself, `kernel.add` runs any code: given by name or with everything, never with `kernel.*`.
ADMIN = frozenset({"kernel.add", "kernel.remove", "kernel.restart", "kernel.shutdown"})

LONGEST_TOKEN = 4096  # characters: what a header and the first frame of a link have room for
_TOKEN = re.compile(rf"[!-~]{{16,{LONGEST_TOKEN}}}")  # ASCII without blanks, as it travels in a header
_TOKEN_RULE = f"a token has 16 to {LONGEST_TOKEN} ASCII characters and no blanks"


def _matches(pattern: str, target: str) -> bool:
    if pattern == "*":
        return True
    if pattern.endswith(".*"):
        return target.startswith(pattern[:-1])
    return pattern == target


class Rights(Message):
    """Patterns of what may be called: `*` is everything, `kv.*` all of a service, `kv.get` one handler; deny wins.

    What is in `ADMIN` is permitted by `*` or by its own name only: `kernel.*` is the right to look, not to change.
    """

    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()

    def permits(self, target: str) -> bool:
        """Whether `target` (`service.method`) may be called."""
        if any(_matches(pattern, target) for pattern in self.deny):
            return False
        if target in ADMIN:
            return "*" in self.allow or target in self.allow
        return any(_matches(pattern, target) for pattern in self.allow)


ALL = Rights()


class Identity(Message):
    """Who a token stands for."""

    user: str
    rights: Rights


class TokenFile:
    """The root token of a node: made at the first boot, mode 0600, so that the same user's commands just work."""

    def __init__(self, path: Path, *, given: str | None = None) -> None:
        """`given` (`MICROKERNEL_TOKEN`) is used instead of the file's and is not written to it.

        Raises `PreconditionFailed` for a token that is too short to be safe or that no client could send.
        """
        self.path = path
        self.token = checked_token(given) if given else self._read_or_create()

    def authenticate(self, token: str) -> Identity | None:
        """Who `token` stands for, None if nobody; takes the same time wherever the two differ."""
        if hmac.compare_digest(token.encode(errors="replace"), self.token.encode(errors="replace")):
            return Identity("root", ALL)
        return None

    def _read_or_create(self) -> str:
        try:
            return self._read()
        except FileNotFoundError:
            return self._create()
        except OSError as error:
            raise PreconditionFailed(
                f"cannot read the token file {self.path}: {error.strerror}", remedy="check its owner and mode"
            ) from error

    def _read(self) -> str:
        token = self.path.read_text(encoding="utf-8", errors="replace").strip()
        if not _TOKEN.fullmatch(token):
            raise PreconditionFailed(
                f"the token in {self.path} is not safe or cannot be sent: {_TOKEN_RULE}",
                remedy="delete the file; a new one is made",
            )
        return token

    def _create(self) -> str:
        token = "mk-" + secrets.token_urlsafe(32)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # O_EXCL: of two nodes that boot at once on one state folder, one makes the token and both use it.
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return self._read()
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token + "\n")
        return token


def checked_token(given: str) -> str:
    """A token from the environment, without the blanks around it. Raises `PreconditionFailed`."""
    token = given.strip()
    if not _TOKEN.fullmatch(token):
        raise PreconditionFailed(
            f"the token in MICROKERNEL_TOKEN is not safe or cannot be sent: {_TOKEN_RULE}",
            remedy="set a better one, or unset it: one is made and kept in the state folder",
        )
    return token
