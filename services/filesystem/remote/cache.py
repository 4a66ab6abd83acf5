"""Blocks of other storage on this machine's disk: limited, checked when they are read, the same after a restart.

A block is a file `aa/KEY`; the key is a digest of what it is a block of, in which version. In front of the bytes stands
an XXH3 of 128 bits of key and bytes: what is damaged, or in another's place, is as if it were not there. It is written
beside and renamed, and not synced, because whatever a crash leaves of it is found out. When the limit is reached, the
blocks that nobody has read for longest go.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections import OrderedDict
from pathlib import Path

import xxhash

from microkernel.threads import to_its_end

__all__ = ["BLOCK", "BlockCache"]

BLOCK = 1 << 20  # bytes of a block
SUM = 16
TOUCH = 64  # reads of a block between two marks of its age on the disk


class BlockCache:
    """The blocks of one mount; its index is in memory, and belongs to the loop."""

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit` is in bytes; with 0 nothing is kept."""
        self.limit = limit
        self.bytes = 0
        self._folder = folder
        self._partial = folder / "partial"
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the one that was read last is the last
        self._reads = 0
        self._cleared = False

    async def open(self) -> None:
        """Find what is there from before, and clear away what was being written."""
        found = await asyncio.to_thread(self._scan)
        self._sizes = OrderedDict((key, size) for _, key, size in sorted(found))
        self.bytes = sum(self._sizes.values())
        await self._make_room()

    def __contains__(self, key: str) -> bool:
        return key in self._sizes

    async def get(self, key: str, size: int) -> bytes | None:
        """A block of `size` bytes as it was put; None where it is not there, or not any more what it was."""
        if key not in self._sizes:
            return None
        self._sizes.move_to_end(key)
        self._reads += 1
        content = await to_its_end(_read, self._path(key), key, self._reads % TOUCH == 0)
        if content is not None and len(content) == size:
            return content
        await self._drop([key])
        return None

    async def put(self, key: str, content: bytes) -> None:
        """Keep a block; a disk that is full keeps none."""
        size = SUM + len(content)
        if size > self.limit or key in self._sizes or self._cleared:
            return
        if await to_its_end(self._write, key, content):
            self.bytes += size - self._sizes.pop(key, 0)
            self._sizes[key] = size
            await self._make_room()

    async def clear(self) -> None:
        """Forget all, with the folder, and keep nothing any more."""
        self._cleared = True
        self._sizes.clear()
        self.bytes = 0
        await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def _make_room(self) -> None:
        old = []
        left = self.bytes
        for key, size in self._sizes.items():
            if left <= self.limit:
                break
            left -= size
            old.append(key)
        await self._drop(old)

    async def _drop(self, keys: list[str]) -> None:
        dropped = [key for key in keys if key in self._sizes]
        for key in dropped:
            self.bytes -= self._sizes.pop(key)
        if dropped:
            await to_its_end(self._unlink, dropped)

    def _unlink(self, keys: list[str]) -> None:
        for key in keys:
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def _write(self, key: str, content: bytes) -> bool:
        path, beside = self._path(key), self._partial / secrets.token_hex(8)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._partial.mkdir(exist_ok=True, mode=0o700)
            with beside.open("xb") as file:
                file.write(_sum(key, content))
                file.write(content)
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            return False
        return True

    def _scan(self) -> list[tuple[float, str, int]]:
        shutil.rmtree(self._partial, ignore_errors=True)
        if not self._folder.is_dir():
            return []
        found = []
        for folder in self._folder.iterdir():
            if len(folder.name) == 2 and folder.is_dir():
                for path in folder.iterdir():
                    told = path.stat()
                    found.append((told.st_mtime, path.name, told.st_size))
        return found


def _sum(key: str, content: bytes) -> bytes:
    total = xxhash.xxh3_128(key.encode())
    total.update(content)
    return total.digest()


def _read(path: Path, key: str, touch: bool) -> bytes | None:
    try:
        kept = path.read_bytes()
        if touch:
            os.utime(path)
    except OSError:
        return None
    content = kept[SUM:]
    return content if kept[:SUM] == _sum(key, content) else None
