"""Which tokens are not valid any more: a set of ids in memory, and a file that outlives the node.

The file has one JSON object a line and is only added to. A last line that a crash has cut off was never confirmed to
anybody and is dropped; any other line that cannot be read ends the boot, because a token that was revoked must not come
back. What is revoked is kept as long as it could be shown: until its expiry and a day more, for clocks that are turned
back; for ever where the expiry is not known.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from microkernel import durable
from microkernel.errors import PreconditionFailed
from microkernel.message import Message

__all__ = ["Revocation", "Revocations", "check_lines"]

MAX_REVOCATIONS = 65_536  # about 100 bytes each, in memory and on disk
GRACE = 86_400.0  # seconds


class Revocation(Message, kw_only=True):
    """One block of a token, and all narrowed from it, are not valid any more.

    `at` is when and `by` who revoked it; `expires` is when the token would have ended by itself, None is unknown. Times
    are Unix times in seconds.
    """

    id: str
    at: float
    by: str
    expires: float | None = None


class Revocations:
    """All revocations of a state folder. `add` is at once; `write`, for a thread, returns when the disk has them."""

    def __init__(self, path: Path, now: float) -> None:
        """Read the file; `now` is Unix time. Raises `PreconditionFailed` for one that cannot be read or trusted."""
        self._path = path
        self._writing = threading.Lock()
        self._kept: dict[str, Revocation] = {}
        self._unwritten: list[Revocation] = []
        self._torn = False  # the last write broke off: the file may end in a part of a line
        try:
            self._read(now)
        except OSError as error:
            raise PreconditionFailed(
                f"cannot use {path}, which says which tokens are revoked: {error.strerror}",
                remedy="check its owner and mode",
            ) from error

    def __len__(self) -> int:
        return len(self._kept)

    def all(self) -> list[Revocation]:
        """Oldest first."""
        return list(self._kept.values())

    def text(self) -> bytes:
        """What the file says once all is written."""
        return b"".join(map(_line, self.all()))

    def of(self, number: str) -> Revocation:
        """The revocation of the id `number`, which is there."""
        return self._kept[number]

    def has_any(self, ids: Iterable[str]) -> bool:
        """Whether one of `ids` is revoked."""
        return not self._kept.keys().isdisjoint(ids)

    def add(self, revocation: Revocation) -> bool:
        """Revoke, from now on; False if it was already. Raises `PreconditionFailed` when no more can be kept."""
        if revocation.id in self._kept:
            return False
        if len(self._kept) >= MAX_REVOCATIONS:
            self._prune(revocation.at)
        if len(self._kept) >= MAX_REVOCATIONS:
            raise PreconditionFailed(
                f"{len(self._kept)} tokens are revoked, and no more can be kept",
                remedy="mk token rotate ends all tokens at once, and the list with them",
            )
        self._kept[revocation.id] = revocation
        self._unwritten.append(revocation)
        return True

    def clear(self) -> None:
        """Forget all, from now on: nothing that they name is valid any more."""
        self._kept.clear()

    def write(self) -> None:
        """Make all that were added durable; one sync serves those that came at once. Raises `OSError`."""
        with self._writing:
            if self._torn:
                self._rewrite()
                return
            count = len(self._unwritten)
            if not count:
                return
            self._torn = True
            durable.append(self._path, b"".join(map(_line, self._unwritten[:count])))
            self._torn = False
            del self._unwritten[:count]

    def rewrite(self) -> None:
        """Make the file what is in memory. Raises `OSError`."""
        with self._writing:
            self._rewrite()

    def _rewrite(self) -> None:
        count = len(self._unwritten)
        durable.replace(self._path, self.text())
        del self._unwritten[:count]
        self._torn = False

    def _read(self, now: float) -> None:
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return
        *lines, torn = text.split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                revocation = msgspec.json.decode(line, type=Revocation)
            except msgspec.DecodeError as error:
                raise PreconditionFailed(
                    f"line {number} of {self._path} cannot be read, so a revoked token might come back: {error}",
                    remedy="mend the line; or delete this file and token.key: all signed tokens end",
                ) from error
            self._kept[revocation.id] = revocation
        self._prune(now)
        if torn or len(self._kept) < len(lines):
            self.rewrite()

    def _prune(self, now: float) -> None:
        over = [each.id for each in self._kept.values() if each.expires is not None and each.expires + GRACE < now]
        for each in over:
            del self._kept[each]


def check_lines(text: bytes) -> None:
    """Raises `ValueError` for what is no file of revocations."""
    *lines, torn = text.split(b"\n")
    if torn:
        raise ValueError("its last line is cut off")
    for line in lines:
        msgspec.json.decode(line, type=Revocation)


def _line(revocation: Revocation) -> bytes:
    return msgspec.json.encode(revocation) + b"\n"
