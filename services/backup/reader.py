"""Reads an archive from its first byte to its last, and checks each (hot: once a piece). It blocks: for threads.

Nothing of it is believed: names are of one kind and go upwards, an entry is no longer than the file, lists are read
that have a limit, and the bytes between entries are what we would have written. What is handed over before the list of
digests behind it has been read is not checked yet: whoever takes it in makes it count only when `take` has come to the
end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import IO

import blake3
import msgspec

from microkernel.errors import DataLoss, Invalid, MicrokernelError
from microkernel.portable import MOST_TOGETHER, PIECE, STEP, EntryPiece, check_name
from services.backup.header import BLOCK, Header, decode, padding
from services.backup.manifest import DIGESTS, END, LIST, MANIFEST, NOTES, Digests, Manifest, part_of
from services.backup.messages import PartSummary

__all__ = ["ArchiveReader"]

LONGEST_OWN = 2 << 20  # bytes of an entry of the archive's own: a list of digests has at most 1.2 MB


class ArchiveReader:
    """An archive in a file that was opened for bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read what the archive is. Raises `DataLoss` and `Invalid`."""
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise Invalid("it is no plain file", field="path")
        self.size = found.st_size
        self.place = 0  # bytes that were read
        self.parts: dict[str, PartSummary] = {}
        self.notes: tuple[str, ...] = ()
        self._file = file
        self._digests = Digests()
        self._at: int | None = None
        self._name = ""  # of the entry that is being read
        self._pieces = self._read()
        header = self._header()
        if header is None or header.name != MANIFEST:
            raise DataLoss("it does not begin as a backup does")
        self.manifest = Manifest.decode(self._own(header))
        if self.manifest.at != header.at:
            raise DataLoss(f"{MANIFEST} is of another time than its header")

    def take(self) -> list[EntryPiece]:
        """The next pieces of the parts, about a MiB of them, with names from the archive's top; none at the end.

        Raises `DataLoss` and `Invalid` that name the entry.
        """
        batch: list[EntryPiece] = []
        size = 0
        try:
            for piece in self._pieces:
                batch.append(piece)
                size += len(piece.content)
                if size >= STEP or len(batch) >= MOST_TOGETHER:
                    break
        except OSError as error:
            raise DataLoss(f"'{self._name}' cannot be read: {error.strerror}", remedy="check the disk") from error
        return batch

    @property
    def entries(self) -> int:
        """Entries that were read."""
        return self._digests.entries

    @property
    def entry_bytes(self) -> int:
        """Bytes of these."""
        return self._digests.bytes

    def _read(self) -> Iterator[EntryPiece]:
        before = ("", "")
        while True:
            header = self._header()
            if header is None:
                raise DataLoss(f"it ends without '{END}': it was cut off, or was never whole")
            if header.name.startswith(DIGESTS):
                if header.name != self._digests.next_name:
                    raise DataLoss(f"'{header.name}' is in the place of '{self._digests.next_name}'")
                self._digests.check(self._own(header, listed=False))
                continue
            if header.name == NOTES:
                self._finish(header)
                return
            if self._digests.waiting >= LIST:
                raise DataLoss(f"there are more than {LIST} entries without digests before '{header.name}'")
            before = self._place_of(header, before)
            yield from self._content(header)

    def _place_of(self, header: Header, before: tuple[str, str]) -> tuple[str, str]:
        """Part and name of an entry; raises where it is of no part, or not where its name has its place."""
        place = part_of(header.name)
        if place[0] not in self.manifest.parts:
            raise DataLoss(f"{header.name[:100]!r} is of no part that {MANIFEST} names")
        check_name(place[1], place[0])
        if place <= before:
            raise DataLoss(f"'{header.name}' comes twice, or not in the order of the names")
        return place

    def _content(self, header: Header) -> Iterator[EntryPiece]:
        """The pieces of an entry."""
        digest = blake3.blake3()
        left = header.size
        name = header.name
        while True:
            content = self._bytes(min(left, PIECE))
            digest.update(content)
            left -= len(content)
            yield EntryPiece(name=name, size=header.size if name else None, content=content)
            name = ""
            if not left:
                break
        self._padding(header.size)
        self._digests.add(header.name, header.size, digest.hexdigest())
        part, _ = part_of(header.name)
        known = self.parts.get(part, PartSummary(name=part))
        self.parts[part] = PartSummary(name=part, entries=known.entries + 1, bytes=known.bytes + header.size)

    def _finish(self, header: Header) -> None:
        """The last entries, and that nothing is behind them."""
        try:
            self.notes = msgspec.json.decode(self._own(header), type=tuple[str, ...])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataLoss(f"'{NOTES}' is damaged: {error}") from error
        last = self._header()
        if last is None or last.name != self._digests.next_name:
            raise DataLoss(f"'{self._digests.next_name}' is missing behind '{NOTES}'")
        self._digests.check(self._own(last, listed=False))
        end = self._header()
        if end is None or end.name != END:
            raise DataLoss(f"'{END}' is missing")
        if self._own(end, listed=False) != self._digests.end():
            raise DataLoss(f"'{END}' is damaged: entries, bytes or digests are not those that were read")
        if self._header() is not None or self.place != self.size:
            raise DataLoss(f"something is behind '{END}'")

    def _own(self, header: Header, *, listed: bool = True) -> bytes:
        """The bytes of an entry of the archive's own."""
        if header.size > LONGEST_OWN:
            raise DataLoss(f"'{header.name}' has {header.size} bytes, more than such an entry ever has")
        content = self._bytes(header.size)
        self._padding(header.size)
        if listed:
            self._digests.add(header.name, header.size, blake3.blake3(content).hexdigest())
        return content

    def _header(self) -> Header | None:
        """The next header; None where two blocks of zeros end the archive."""
        before = self._name
        begin = self.place
        try:
            blocks = self._bytes(BLOCK)
            if not any(blocks):
                if any(self._bytes(BLOCK)):
                    raise DataLoss("there is one block of zeros where an archive has two")
                return None
            header, length = decode(blocks)
            if header is None:
                header, _ = decode(blocks + self._bytes(length - BLOCK))
                assert header is not None
        except MicrokernelError as error:
            where = f"behind '{before}'" if before else "at its begin"
            raise DataLoss(f"{error.message} ({where}, byte {begin})", remedy=error.remedy) from error
        if self._at is None:
            self._at = header.at
        elif header.at != self._at:
            raise DataLoss(f"the header of '{header.name}' is of another time than the archive")
        self._name = header.name
        if header.size > self.size - self.place:
            there = self.size - self.place
            raise DataLoss(f"it was cut off: '{header.name}' has {header.size} bytes, and {there} are there")
        return header

    def _bytes(self, count: int) -> bytes:
        content = self._file.read(count)
        if len(content) != count:
            raise DataLoss(f"it was cut off: '{self._name}' ends too early" if self._name else "it was cut off")
        self.place += count
        return content

    def _padding(self, size: int) -> None:
        if any(self._bytes(padding(size))):
            raise DataLoss(f"behind '{self._name}' are bytes that are not zero")
