"""The newest version that was ever acknowledged, beside the database: what a damaged log loses, is known by it.

SQLite takes a log up to the first frame that is not what it was, and says nothing of those behind it. The mark is not
synced: after a power cut it may be older than the database, which is no harm; it is never newer than what was synced.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path

import xxhash

__all__ = ["Mark"]

_FORM = struct.Struct("<QQ")  # a version, and its checksum


class Mark:
    """A number in a file; without a path, nowhere."""

    def __init__(self, path: Path | None) -> None:
        self._handle = None if path is None else os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self) -> int:
        """The number; 0 where there is none, or where it is damaged itself."""
        body = b"" if self._handle is None else os.pread(self._handle, _FORM.size, 0)
        if len(body) != _FORM.size:
            return 0
        version, seal = _FORM.unpack(body)
        return int(version) if seal == _seal(version) else 0

    def write(self, version: int) -> None:
        """Keep a number, if that can be done: what it stands for is durable already, and is not to fail for it."""
        if self._handle is not None:
            with suppress(OSError):
                os.pwrite(self._handle, _FORM.pack(version, _seal(version)), 0)

    def close(self) -> None:
        """No more is kept."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _seal(version: int) -> int:
    return xxhash.xxh3_64_intdigest(version.to_bytes(8, "little"))
