"""Who may call what, and publish and subscribe to what: rights as patterns, and the node's own token.

What is called and what is told are two kinds of rights: calls follow `allow` and `deny` (`kv.*`, `kv.get`), events
follow patterns of subjects as in a subscription (`kv.*`, `kv.>`). The node's token is compared in constant time and
kept in a file that only its user can read; those that it gives to others are in `token.py`.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from pathlib import Path

from microkernel.errors import PreconditionFailed
from microkernel.message import Message

__all__ = [
    "ADMIN",
    "ALL",
    "LONGEST_TOKEN",
    "PREFIX",
    "ROOT",
    "Identity",
    "Rate",
    "Revoked",
    "Rights",
    "TokenFile",
    "checked_token",
    "covers",
]

# What changes the node itself or who may come in; `kernel.add` runs any code, and `kernel.export` gives the key that
# signs tokens. Given by name or with everything, never with `kernel.*`.
ADMIN = frozenset({
    "kernel.add",
    "kernel.bring",
    "kernel.export",
    "kernel.import",
    "kernel.leave_to_others",
    "kernel.remove",
    "kernel.replace",
    "kernel.restart",
    "kernel.shutdown",
    "kernel.token_create",
    "kernel.token_revoke",
    "kernel.token_rotate",
})  # fmt: skip
ROOT = "root"  # the user of the node's own token, and of no other

PREFIX = "mk1."  # of signed tokens; the node's own is none
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
    `publish` and `subscribe` are patterns of subjects (`kv.*` is one name more, `kv.>` one or more, `>` everything);
    None is what `allow` and `deny` say, read as subjects.
    """

    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    publish: tuple[str, ...] | None = None
    subscribe: tuple[str, ...] | None = None

    def permits(self, target: str) -> bool:
        """Whether `target` (`service.method`) may be called."""
        if any(_matches(pattern, target) for pattern in self.deny):
            return False
        if target in ADMIN:
            return "*" in self.allow or target in self.allow
        return any(_matches(pattern, target) for pattern in self.allow)

    def permits_publish(self, subject: str) -> bool:
        """Whether events of `subject` may be published."""
        return _permits_subject(self, self.publish, subject)

    def permits_subscribe(self, pattern: str) -> bool:
        """Whether `pattern`, or one subject, may be heard: all of it, by one of the patterns given."""
        return _permits_subject(self, self.subscribe, pattern)


def _permits_subject(rights: Rights, patterns: tuple[str, ...] | None, subject: str) -> bool:
    if patterns is None:
        return rights.permits(subject)
    return any(covers(pattern, subject) for pattern in patterns)


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject that fits the pattern `narrow` fits `wide` too."""
    ours, theirs = wide.split("."), narrow.split(".")
    for place, name in enumerate(ours):
        if name == ">":
            return len(theirs) > place
        if place == len(theirs):
            return False
        if name != theirs[place] and (name != "*" or theirs[place] == ">"):
            return False
    return len(ours) == len(theirs)


ALL = Rights()


class Rate(Message):
    """`rate` messages a second with bursts of `burst`, for all that is done under block `id` of a token together."""

    id: str
    rate: float
    burst: int


class Identity(Message):
    """Who a token stands for, and within which bounds.

    `top_priority` is the most urgent priority that a call may have: 0 is no bound, 9 the least urgent. `rates` are all
    to be kept (`rates.py`). `token_ids` are what revokes the token: any one of them is enough. `expires` is Unix time
    in seconds, None is never. The node's own token has no ids and no bounds.

    `node` is the name of another node of this system, whose link it is: it says itself on whose behalf each call is.
    """

    user: str
    rights: Rights
    top_priority: int = 0
    rates: tuple[Rate, ...] = ()
    token_ids: tuple[str, ...] = ()
    expires: float | None = None
    node: str | None = None

    @property
    def rate(self) -> float | None:
        """The least of `rates`, in messages a second; None is no bound."""
        return min((each.rate for each in self.rates), default=None)

    @property
    def burst(self) -> int | None:
        """The least burst of `rates`, in messages; None is no bound."""
        return min((each.burst for each in self.rates), default=None)


class Revoked(Message):
    """The tokens that are not valid any more: by the ids of their blocks, or all that the node has signed."""

    ids: tuple[str, ...] = ()
    everything: bool = False

    def ends(self, token_ids: tuple[str, ...]) -> bool:
        """Whether a token with these ids is one of them; the node's own, which has none, never is."""
        return bool(token_ids) and (self.everything or not set(self.ids).isdisjoint(token_ids))


class TokenFile:
    """The root token of a node: made at the first boot, mode 0600, so that the same user's commands just work."""

    def __init__(self, path: Path, *, given: str | None = None) -> None:
        """`given` (`MICROKERNEL_TOKEN`) is used instead of the file's and is not written to it.

        Raises `PreconditionFailed` for a token that is too short to be safe or that no client could send, and for a
        signed one: whoever holds that, or another one narrowed from it, is not to have all rights by a slip.
        """
        self.path = path
        self.token = checked_token(given) if given else self._read_or_create()
        if self.token.startswith(PREFIX):
            raise PreconditionFailed(
                "a signed token cannot be the node's own, which may do everything",
                remedy="boot without MICROKERNEL_TOKEN: a token is made and kept in the state folder",
            )

    def authenticate(self, token: str) -> Identity | None:
        """Who `token` stands for, None if nobody; takes the same time wherever the two differ."""
        if hmac.compare_digest(token.encode(errors="replace"), self.token.encode(errors="replace")):
            return Identity(ROOT, ALL)
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
