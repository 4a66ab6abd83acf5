"""Writes an archive in one pass: entries go in, bytes come out (hot: once a piece). Sans-IO; it hashes: for threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import blake3
import msgspec

from microkernel.portable import Entries, EntryPiece
from services.backup.header import BLOCK, Header, encode, padding
from services.backup.manifest import END, LIST, MANIFEST, NOTES, PARTS, Digests, Manifest

__all__ = ["ArchiveWriter"]

MOST_NOTES = 100  # that are written out; more are counted


class ArchiveWriter:
    """One archive. What its methods return is to be written, in that order."""

    def __init__(self, manifest: Manifest) -> None:
        self.digests = Digests()
        self._notes: list[str] = []
        self._more_notes = 0
        self._manifest = manifest
        self._part: Entries | None = None
        self._digest = blake3.blake3()

    @property
    def entries(self) -> int:
        """Entries of the part that is being written."""
        return 0 if self._part is None else self._part.count

    @property
    def size(self) -> int:
        """Bytes of the entries of the part that is being written."""
        return 0 if self._part is None else self._part.bytes

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not come along, as far as is known by now."""
        more = (f"and {self._more_notes} things more",) if self._more_notes else ()
        return (*self._notes, *more)

    def begin(self) -> bytes:
        """The first entry."""
        return self._whole(MANIFEST, self._manifest.encoded())

    def begin_part(self, name: str) -> None:
        """From here on pieces are of that service."""
        self._part = Entries(name)

    def add(self, pieces: Sequence[EntryPiece]) -> bytes:
        """What a service gave. Raises `Invalid` and `DataLoss` where these are no entries, which it names."""
        return b"".join(self._pieces(pieces))

    def end_part(self) -> None:
        """That was all of it. Raises `DataLoss` where its last entry is not whole."""
        assert self._part is not None
        self._part.finish()

    def end(self) -> bytes:
        """The last entries, and the two blocks of zeros that end a tar archive."""
        notes = msgspec.json.format(msgspec.json.encode(self.notes), indent=1) + b"\n"
        written = self._whole(NOTES, notes) + self._list()
        last = self.digests.end()
        return written + self._header(END, len(last)) + last + bytes(padding(len(last))) + bytes(2 * BLOCK)

    def _pieces(self, pieces: Sequence[EntryPiece]) -> Iterator[bytes]:
        part = self._part
        assert part is not None
        for piece in pieces:
            if piece.note:
                self._note(f"{part.what}: {piece.note}")
            if part.add(piece):
                if self.digests.waiting >= LIST:
                    yield self._list()
                yield self._header(f"{PARTS}{part.what}/{part.name}", part.size)
                self._digest = blake3.blake3()
            if piece.content:
                self._digest.update(piece.content)
                yield piece.content
            if not part.left:
                yield bytes(padding(part.size))
                self.digests.add(f"{PARTS}{part.what}/{part.name}", part.size, self._digest.hexdigest())

    def _note(self, note: str) -> None:
        if len(self._notes) < MOST_NOTES:
            self._notes.append(note)
        else:
            self._more_notes += 1

    def _whole(self, name: str, content: bytes) -> bytes:
        self.digests.add(name, len(content), blake3.blake3(content).hexdigest())
        return self._header(name, len(content)) + content + bytes(padding(len(content)))

    def _list(self) -> bytes:
        name, content = self.digests.next_name, self.digests.list()
        return self._header(name, len(content)) + content + bytes(padding(len(content)))

    def _header(self, name: str, size: int) -> bytes:
        return encode(Header(name, size, self._manifest.at))
