"""Saved contexts as files: a name of an owner's to each, whole or not there, under a limit of bytes.

They are the owner's to keep and to delete: unlike pages in `SavedPages`, none is dropped to make room for another.
Every call works on the disk, and belongs on a thread.
"""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from pathlib import Path

import msgspec

from microkernel.errors import Invalid, NotFound, Overloaded, Unavailable
from services.inference.messages import Grammar

__all__ = ["ContextFiles", "SavedAnswer"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ENDING = ".context"


class SavedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer at rest: its context's bytes, and what the service has to know of it beside."""

    model: str
    kind: str
    title: str
    stop: list[str]
    continues: bool
    grammar: Grammar | None = None
    prompt_tokens: int
    context: bytes


class ContextFiles:
    """The saved contexts of all owners, in one folder."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """`limit_bytes` for each owner; 0 saves nothing."""
        self._folder = folder
        self._limit = limit_bytes

    def save(self, owner: str, name: str, answer: SavedAnswer) -> int:
        """Write it, in place of one of that name; returns its bytes.

        Raises `Invalid`, `Overloaded` with the numbers where it does not fit, `Unavailable` where the disk fails.
        """
        path = self._path(owner, name)
        content = msgspec.msgpack.encode(answer)
        others = sum(size for other, size in self.list(owner) if other != name)
        if others + len(content) > self._limit:
            raise Overloaded(
                f"the context takes {len(content)} bytes, and {max(0, self._limit - others)} of the {self._limit} "
                "bytes for contexts are free",
                remedy="forget one that is not needed, or raise contexts_bytes",
            )
        fresh = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(fresh, "wb", opener=_private) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise Unavailable(f"the context cannot be saved: {error.strerror}", may_have_run=False) from error
        return len(content)

    def load(self, owner: str, name: str) -> SavedAnswer:
        """The answer of that name; raises `NotFound`, and `Invalid` for a file that is none."""
        try:
            content = self._path(owner, name).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"no context is named '{name}'", field="name", remedy="see inference.contexts") from error
        except OSError as error:
            raise Unavailable(f"the context cannot be read: {error.strerror}", may_have_run=False) from error
        try:
            return msgspec.msgpack.decode(content, type=SavedAnswer)
        except msgspec.DecodeError as error:
            raise Invalid(f"the context '{name}' is damaged, or of another version: {error}", field="name") from error

    def list(self, owner: str) -> list[tuple[str, int]]:
        """Names and bytes of an owner's contexts, by name."""
        folder = self._folder / _folder_of(owner)
        if not folder.is_dir():
            return []
        return sorted((path.name.removesuffix(ENDING), path.stat().st_size) for path in folder.glob(f"*{ENDING}"))

    def forget(self, owner: str, name: str) -> None:
        """Delete one; raises `NotFound`."""
        try:
            self._path(owner, name).unlink()
        except FileNotFoundError as error:
            raise NotFound(f"no context is named '{name}'", field="name") from error

    def _path(self, owner: str, name: str) -> Path:
        if NAME.fullmatch(name) is None:
            raise Invalid(
                f"'{name[:100]}' is no name for a context: letters, digits, '.', '_' and '-', at most 100", field="name"
            )
        return self._folder / _folder_of(owner) / (name + ENDING)


def _folder_of(owner: str) -> str:
    """An owner's folder: what it is called may hold any character."""
    return blake2b(owner.encode(), digest_size=16).hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
