"""Who a token stands for: the node's own, and the signed ones that the node has made and has not revoked.

Revoking takes effect in memory first and at once, is told to all who listen (open sessions end), and is confirmed when
it is on the disk. The key that signs is 32 random bytes in the state folder, mode 0600; a new key ends all tokens that
the old one has signed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from microkernel import durable
from microkernel.capability import Identity, Revoked, TokenFile, checked_token
from microkernel.errors import Internal, Invalid, PreconditionFailed, Unauthenticated
from microkernel.revocation import Revocation, Revocations, check_lines
from microkernel.token import PREFIX, Block, identity_of, issue, verify

__all__ = ["KEY_NAME", "REVOKED", "Tokens", "check_kept", "when"]

OWN, KEY_NAME, REVOKED = "token", "token.key", "revoked.jsonl"  # in the state folder
KEY = 32  # bytes

log = logging.getLogger("microkernel.tokens")


class Tokens:
    """All that a node knows of tokens.

    `listeners` are called with each `Revoked`, on the loop and without waiting.
    """

    def __init__(self, folder: Path, own: TokenFile, wall: Callable[[], float]) -> None:
        """`wall` gives Unix time. Reads and makes files; raises `PreconditionFailed` for what cannot be used."""
        self.listeners: list[Callable[[Revoked], None]] = []
        self._own = own
        self._wall = wall
        self._key_path = folder / KEY_NAME
        self._writing = threading.Lock()
        self._key = _read_or_create(self._key_path)
        self._revocations = Revocations(folder / REVOKED, wall())

    def authenticate(self, token: str) -> Identity | None:
        """Who `token` stands for, None if nobody. Raises `Unauthenticated` for one that was good once."""
        identity, why = self.look_up(token)
        if identity is not None and why:
            raise Unauthenticated(why, remedy="ask for a new one where it came from")
        return identity

    def look_up(self, token: str) -> tuple[Identity | None, str]:
        """Who `token` stands for, None if nobody; and why it is not valid, empty if it is."""
        identity = self._own.authenticate(token)
        if identity is not None:
            return identity, ""
        identity = self._signed(token)
        if identity is None:
            return None, "the token is not valid here"
        if self.is_revoked(identity.token_ids):
            return identity, "the token was revoked"
        if identity.expires is not None and identity.expires <= self._wall():
            return identity, f"the token expired on {when(identity.expires)}"
        return identity, ""

    def is_revoked(self, ids: Iterable[str]) -> bool:
        """Whether a token with these ids is revoked: one of them is enough."""
        return self._revocations.has_any(ids)

    @property
    def revocations(self) -> list[Revocation]:
        """All that are kept, oldest first."""
        return self._revocations.all()

    def kept(self) -> dict[str, bytes]:
        """What its files say, as it is in force, by their names: for a backup. Any thread may ask. It blocks."""
        revoked = self._revocations.text()  # before the key: of those that a key has signed none may be missing
        kept = {REVOKED: revoked, KEY_NAME: _text(self._key)}
        with suppress(FileNotFoundError):  # it may be one of the environment, which is written nowhere
            kept[OWN] = self._own.path.read_bytes()
        return kept

    def issue(self, block: Block) -> str:
        """A new token. Raises `Invalid` for one without a user or too long to be sent."""
        token = issue(self._key, block)
        log.info("token %s was made for %s", block.id, block.user)
        return token

    def id_and_expiry(self, token: str) -> tuple[str, float | None]:
        """The last id of a signed token, and when the token ends. Raises `Invalid` for one that is not of this node."""
        identity = self._signed(token)
        if identity is None:
            raise Invalid("this is no signed token of this node", field="token")
        return identity.token_ids[-1], identity.expires

    async def revoke(self, number: str, *, by: str, expires: float | None = None) -> Revocation:
        """End the block `number` and all narrowed from it, at once; returns when the disk has it.

        `expires` is when it would have ended, in Unix time, if that is known. Raises `PreconditionFailed` when no more
        can be kept, and `Internal` when the disk does not take it: the token is revoked then as long as the node runs.
        """
        revocation = Revocation(id=number, at=self._wall(), by=by, expires=expires)
        if self._revocations.add(revocation):
            log.info("token %s was revoked by %s", number, by)
            self._tell(Revoked((number,)))
        # Also if it was there already: the disk may not have taken it the last time.
        await self._on_disk(self._revocations.write, f"the revocation of {number} is")
        return self._revocations.of(number)

    async def rotate(self, *, by: str) -> None:
        """End all signed tokens with a new key, at once; returns when the disk has it. Raises `Internal` likewise."""
        self._key = secrets.token_bytes(KEY)
        log.warning("all signed tokens were ended by %s: the key is a new one", by)
        self._revocations.clear()
        self._tell(Revoked(everything=True))
        await self._on_disk(self._write_key, "the new key is")

    def _signed(self, token: str) -> Identity | None:
        blocks = verify(self._key, token) if token.startswith(PREFIX) else None
        try:
            return None if blocks is None else identity_of(blocks)
        except Invalid:
            return None

    def _tell(self, revoked: Revoked) -> None:
        for listener in tuple(self.listeners):
            listener(revoked)

    def _write_key(self) -> None:
        with self._writing:  # the key that is in use when it is written: of two rotations, the last one stays
            durable.replace(self._key_path, _text(self._key))
            self._revocations.rewrite()

    async def _on_disk(self, write: Callable[[], None], what: str) -> None:
        try:
            await asyncio.to_thread(write)
        except OSError as error:
            raise Internal(
                f"{what} in force, but not on the disk ({error.strerror}): a restart undoes it",
                remedy="make room in the state folder and do it once more",
                service="kernel",
            ) from error


def check_kept(name: str, content: bytes) -> None:
    """Raises `Invalid` where a file of that name with that content is none of those that `Tokens` reads."""
    try:
        if name == OWN:
            checked_token(content.decode("ascii"))
        elif name == KEY_NAME:
            if len(bytes.fromhex(content.decode("ascii"))) != KEY:
                raise Invalid(f"a key has {KEY} bytes")
        elif name == REVOKED:
            check_lines(content)
        else:
            raise Invalid("no such file is kept")
    except (ValueError, PreconditionFailed) as error:
        raise Invalid(f"it cannot be read: {error}") from error


def when(moment: float) -> str:
    """A Unix time as people write it, in UTC."""
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{moment:g}"


def _read_or_create(path: Path) -> bytes:
    try:
        try:
            return _read(path)
        except FileNotFoundError:
            key = secrets.token_bytes(KEY)
            try:
                durable.create(path, _text(key))
            except FileExistsError:  # as with the node's own token
                return _read(path)
            return key
    except OSError as error:
        raise PreconditionFailed(
            f"cannot use the key that signs tokens, {path}: {error.strerror}", remedy="check its owner and mode"
        ) from error


def _read(path: Path) -> bytes:
    text = path.read_bytes().strip()
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:  # of text that is not ASCII as well
        key = b""
    if len(key) != KEY:
        raise PreconditionFailed(
            f"the key that signs tokens, {path}, is damaged",
            remedy="delete the file; a new one is made, and all signed tokens end",
        )
    return key


def _text(key: bytes) -> bytes:
    return key.hex().encode("ascii") + b"\n"
