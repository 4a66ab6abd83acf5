"""What an archive says of itself: in its first entry what it is, in its last ones what was told, and that it is whole.

    manifest.json          what was backed up, when, of which node
    parts/SERVICE/…        what each service gave, in the order of the names
    digests/NUMBER         BLAKE3 and name of each entry since the last one of these, as `b3sum --check` reads them
    notes.json             what could not come along
    end.json               how many entries and bytes there were, and the digest of all digests

Between two lists of digests are at most 4,096 entries, so that neither end remembers more.
"""

from __future__ import annotations

from typing import Annotated

import blake3
import msgspec

from microkernel.errors import DataLoss

__all__ = ["DIGESTS", "END", "LIST", "MANIFEST", "NOTES", "PARTS", "Digests", "Manifest", "part_of"]

FORMAT = "microkernel backup"
VERSION = 1
MANIFEST, NOTES, END = "manifest.json", "notes.json", "end.json"
PARTS, DIGESTS = "parts/", "digests/"
LIST = 4096  # entries

_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,100}\Z")]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What was backed up. `at` is Unix time in seconds; `left_out` are services with why.

    Fields that are not known here are those of a later version, which may say more, and not something else.
    """

    format: str = FORMAT
    version: int = VERSION
    at: int
    node: str
    made_by: str
    parts: tuple[_Name, ...]
    secrets: bool
    models: bool
    left_out: dict[str, str] = {}

    def encoded(self) -> bytes:
        """As it stands in an archive."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> Manifest:
        """Raises `DataLoss` for what is none, or one of a later version."""
        try:
            manifest = msgspec.json.decode(content, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataLoss(f"{MANIFEST} is damaged: {error}") from error
        if manifest.format != FORMAT:
            raise DataLoss(f"{MANIFEST} is not that of a backup")
        if manifest.version != VERSION:
            raise DataLoss(
                f"the backup has version {manifest.version}, known is {VERSION}",
                remedy=f"restore it with the version that made it: {manifest.made_by}",
            )
        if list(manifest.parts) != sorted(set(manifest.parts)):
            raise DataLoss(f"{MANIFEST} names parts twice, or in another order")
        return manifest


class Digests:
    """The digests of entries, list by list, and that of all lists."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []
        self._all = blake3.blake3()
        self._lists = 0
        self.entries = 0
        self.bytes = 0

    @property
    def waiting(self) -> int:
        """Entries since the last list."""
        return len(self._lines)

    @property
    def next_name(self) -> str:
        """What the next list is called."""
        return f"{DIGESTS}{self._lists:06}"

    def add(self, name: str, size: int, digest: str) -> None:
        """One more entry; `digest` in hex."""
        self._lines.append((digest, name))
        self.entries += 1
        self.bytes += size

    def list(self) -> bytes:
        """The list of all entries since the last one."""
        content = "".join(f"{digest}  {name}\n" for digest, name in self._lines).encode("ascii")
        self._lines.clear()
        self._lists += 1
        self._all.update(content)
        return content

    def check(self, content: bytes) -> None:
        """Compare a list with what was read. Raises `DataLoss` that names the first entry that differs."""
        there = content.decode("ascii", "replace").splitlines()
        name = self.next_name
        for place, (digest, entry) in enumerate(self._lines):
            if place >= len(there) or there[place] != f"{digest}  {entry}":
                raise DataLoss(f"'{entry}' is damaged: it has another digest than {name} says")
        if self.list() != content:
            raise DataLoss(f"'{name}' is damaged: it has {len(there)} lines")

    def end(self) -> bytes:
        """What stands in the last entry."""
        said = {"entries": self.entries, "bytes": self.bytes, "digests": self._all.hexdigest()}
        return msgspec.json.encode(said) + b"\n"


def part_of(name: str) -> tuple[str, str]:
    """The service that an entry is of, and what it calls it; nothing for the archive's own."""
    if not name.startswith(PARTS):
        return "", ""
    part, _, rest = name.removeprefix(PARTS).partition("/")
    return part, rest
