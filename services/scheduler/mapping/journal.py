"""What of a map is done, on disk: results that were committed are never computed again. It blocks: for threads.

One file a job, to which a record is added for each task: its length and its checksum, then MessagePack. A record that
was cut off by a crash is the last one, and is dropped.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from microkernel.errors import PreconditionFailed
from services.scheduler.mapping.work import Outcome

__all__ = ["Journal", "Record", "journal_path", "whole_length"]

HEAD = struct.Struct("<II")
STEP = 1 << 20  # bytes of a record that are read at once, where it is only checked
MAGIC = b"mkmap\x01\n"


def journal_path(folder: Path, owner: str, name: str) -> Path:
    """Where the journal of an owner's map is, in the folder of the service."""
    return folder / "maps" / owner.encode().hex() / f"{name}.journal"


def whole_length(file: IO[bytes], size: int) -> int:
    """How many of the first `size` bytes of a journal are whole records; 0 for what is no journal."""
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        return 0
    end = len(MAGIC)
    while size - end >= HEAD.size:
        length, checksum = HEAD.unpack(file.read(HEAD.size))
        following = end + HEAD.size + length
        if following > size or _checksum_of(file, length) != checksum:
            break
        end = following
    return end


def _checksum_of(file: IO[bytes], length: int) -> int:
    checksum = 0
    while length and (piece := file.read(min(length, STEP))):
        checksum = zlib.crc32(piece, checksum)
        length -= len(piece)
    return checksum


class Record(msgspec.Struct, frozen=True, array_like=True):
    """The items from `start` up to `stop` gave this."""

    start: int
    stop: int
    outcome: Outcome


class _Begin(msgspec.Struct, frozen=True):
    """The first record: what is mapped."""

    job: bytes
    partition: dict[str, Any]


class Journal:
    """The journal of one job."""

    def __init__(self, path: Path, job: bytes, partition: dict[str, Any]) -> None:
        """Open it, or begin it; `job` is what its function, items and arguments make up, `partition` how it is cut.

        Raises `PreconditionFailed` where another job was begun under that name.
        """
        self._encoder = msgspec.msgpack.Encoder()
        self._path = path
        self._end = 0
        self.partition = partition
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        try:
            self._open(job)
        except BaseException:
            self._file.close()
            raise

    def records(self) -> Iterator[Record]:
        """All that were committed, in no order."""
        for body in self._read(self._begins):
            yield msgspec.msgpack.decode(body, type=Record)

    def commit(self, records: Sequence[Record]) -> None:
        """Add these; they are on the disk when this returns."""
        self._append(*(self._encoder.encode(record) for record in records))

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def forget(self) -> None:
        """Delete it: the job has ended, and its result was handed over."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _open(self, job: bytes) -> None:
        self._file.seek(0)
        magic = self._file.read(len(MAGIC))
        self._end = len(MAGIC)
        found = list(self._read(self._end, 1)) if magic == MAGIC else []
        if found:
            begin = msgspec.msgpack.decode(found[0], type=_Begin)
            if begin.job != job:
                raise PreconditionFailed(
                    f"another job was begun as '{self._path.stem}'", remedy="give this one another name"
                )
            self.partition = begin.partition
            self._begins = self._end
            for _ in self._read(self._begins):
                pass  # to the end of the last whole record
            self._file.truncate(self._end)
            return
        if magic and magic != MAGIC and not MAGIC.startswith(magic):
            raise PreconditionFailed(f"'{self._path}' is no journal of this version", remedy="delete it")
        self._file.truncate(0)
        self._file.seek(0)
        self._file.write(MAGIC)
        self._end = len(MAGIC)
        self._append(self._encoder.encode(_Begin(job, self.partition)))
        self._begins = self._end

    def _read(self, start: int, most: int | None = None) -> Iterator[bytes]:
        """The records from `start` on; `_end` is behind the last one that was whole."""
        self._file.seek(start)
        self._end = start
        while most is None or most > 0:
            head = self._file.read(HEAD.size)
            if len(head) < HEAD.size:
                return
            length, checksum = HEAD.unpack(head)
            body = self._file.read(length)
            if len(body) < length or zlib.crc32(body) != checksum:
                return
            self._end += HEAD.size + length
            most = None if most is None else most - 1
            yield body
            self._file.seek(self._end)

    def _append(self, *bodies: bytes) -> None:
        added = b"".join(HEAD.pack(len(body), zlib.crc32(body)) + body for body in bodies)
        self._file.seek(self._end)
        self._file.write(added)
        self._file.flush()
        os.fdatasync(self._file.fileno())
        self._end += len(added)
