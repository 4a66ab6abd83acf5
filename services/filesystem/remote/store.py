"""What a store is: files and folders of somewhere else, by names below the root of a mount."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import blake3
import msgspec

from microkernel.errors import Invalid, Unavailable
from services.filesystem.paths import parse

__all__ = ["PARTIAL", "Found", "Names", "NoParts", "Store", "WritableStore", "digest_of", "is_name", "mark_of", "shown"]

PARTIAL = ".partial-"  # how what is being written begins, in the folder that it is for; nobody is shown it

Names = tuple[str, ...]

# What stores call their own mark of a version, in small letters and without what is between the words.
_MARKS = frozenset({
    "etag", "sha", "blobid", "checksum", "md5", "md5hash", "contentmd5", "crc32c", "crc", "digest",
    "generation", "versionid", "mtime", "modified", "modify", "lastmodified", "created", "ctime", "updated",
    "datetime", "timemodified", "xethash"
})  # fmt: skip


class NoParts(Unavailable):
    """A store that said it sends parts of a file, and does not: it is to be read as a stream."""


class Found(msgspec.Struct, frozen=True):
    """What names lead to. `mark` differs when the content does; None is where the store has none.

    Where it has no `ranges`, a part of it costs what everything before costs. `since` is when the mount has found it,
    for what has no mark. A `link` is removed without what it leads to.
    """

    name: str
    folder: bool
    size: int | None = None
    modified: float | None = None
    mark: str | None = None
    ranges: bool = True
    since: float = 0.0
    link: bool = False


@runtime_checkable
class Store(Protocol):
    """It raises errors of ours, and does not hold the loop."""

    @property
    def place(self) -> str:
        """Where it is mounted, for errors."""
        ...

    async def find(self, names: Names) -> Found:
        """What is there now. Raises `NotFound`."""
        ...

    async def list(self, names: Names) -> list[Found]:
        """What is in a folder, without names that are none here. Raises `NotFound`, and `Invalid` for a file."""
        ...

    async def fetch(self, names: Names, found: Found, start: int, stop: int) -> bytes:
        """Bytes of a file that is still what was found. Raises `Aborted` for one that is not."""
        ...

    def stream(self, names: Names, found: Found, start: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` to the end, in pieces. Raises as `fetch`."""
        ...

    async def close(self) -> None:
        """Let go of all that is open."""
        ...


@runtime_checkable
class WritableStore(Store, Protocol):
    """A store that can be changed. It says with `atomic` whether a reader may find a half of what is being put."""

    @property
    def atomic(self) -> bool:
        """Whether a file is there whole or not at all."""
        ...

    async def put(self, names: Names, content: Path) -> None:
        """Put a file of this machine in place of what is there. The folder is there."""
        ...

    async def make_folder(self, names: Names) -> None:
        """Make a folder, and those on the way."""
        ...

    async def remove(self, names: Names, *, folder: bool) -> None:
        """Remove a file or an empty folder."""
        ...

    @property
    def moves_folders(self) -> bool:
        """Whether `move` is for folders too."""
        ...

    async def move(self, names: Names, to: Names) -> None:
        """Give a file another name, in place of what is there."""
        ...

    async def copy(self, names: Names, to: Names) -> None:
        """Have a file under another name too, in place of what is there."""
        ...


def is_name(name: str) -> bool:
    """Whether a name of a store is one that leads here and back."""
    if name.startswith(PARTIAL):
        return False
    try:
        return parse("/" + name).names == (name,)
    except Invalid:
        return False


def mark_of(told: dict[str, Any]) -> str | None:
    """What a store tells of a file, as a mark; None where nothing of it changes with the content."""
    known = {
        _key(name): value for name, value in told.items() if value not in (None, "") and _key(name) in {*_MARKS, "size"}
    }
    if not known.keys() & _MARKS:
        return None
    return digest_of(f"{name}={value!r}" for name, value in sorted(known.items()))


def digest_of(parts: Iterable[str]) -> str:
    """Of what belongs together, in this order."""
    return blake3.blake3("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest(length=16)


def shown(place: str, names: Names) -> str:
    """Names as an error tells them: by their whole path."""
    return "/".join((place, *names))


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
