"""Archives that tests make and read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import blake3

from microkernel.portable import EntryPiece
from services.backup.header import Header, encode, padding
from services.backup.manifest import END, NOTES, Digests, Manifest
from services.backup.reader import ArchiveReader
from services.backup.writer import ArchiveWriter

AT = 1_700_000_000


def manifest(*parts: str, **fields) -> Manifest:
    """What an archive of these parts says first."""
    said = {"at": AT, "node": "n1", "made_by": "0.1.0", "parts": parts, "secrets": False, "models": False}
    return Manifest(**(said | fields))


def archive(parts: Mapping[str, Iterable[EntryPiece]], **fields) -> bytes:
    """An archive as the writer makes it."""
    writer = ArchiveWriter(manifest(*sorted(parts), **fields))
    written = [writer.begin()]
    for name in sorted(parts):
        writer.begin_part(name)
        written.append(writer.add(list(parts[name])))
        writer.end_part()
    return b"".join([*written, writer.end()])


def entry(name: str, content: bytes = b"", **fields) -> bytes:
    """One entry, whatever it is called."""
    header = encode(Header(**({"name": name, "size": len(content), "at": AT} | fields)))
    return header + content + bytes(padding(len(content)))


def by_hand(entries: Iterable[tuple[str, bytes]], first: bytes | None = None, behind: bytes = bytes(1024)) -> bytes:
    """An archive whose digests are right, of entries that the writer would not write."""
    digests = Digests()
    written = []

    def put(name: str, content: bytes) -> None:
        written.append(entry(name, content))
        digests.add(name, len(content), blake3.blake3(content).hexdigest())

    put("manifest.json", manifest("kv").encoded() if first is None else first)
    for name, content in entries:
        put(name, content)
    put(NOTES, b"[]\n")
    written.append(entry(digests.next_name, digests.list()))
    written.append(entry(END, digests.end()))
    return b"".join(written) + behind


def read(path: Path) -> tuple[ArchiveReader, dict[str, bytes]]:
    """All entries of the parts in an archive, checked."""
    with path.open("rb") as file:
        reader = ArchiveReader(file)
        found: dict[str, bytearray] = {}
        name = ""
        while batch := reader.take():
            for piece in batch:
                name = piece.name or name
                found.setdefault(name, bytearray()).extend(piece.content)
    return reader, {name: bytes(content) for name, content in found.items()}


def file_of(content: bytes, folder: Path) -> Path:
    """A file with that content."""
    path = folder / "archive.tar"
    path.write_bytes(content)
    return path
