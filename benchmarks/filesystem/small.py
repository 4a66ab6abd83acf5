"""Small files, each durable before the next: sixteen writers, ours and on a plain directory."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.filesystem.node import TreeNode
from benchmarks.filesystem.place import Place

__all__ = ["PlainFiles", "SmallFiles", "WholeFiles"]

WRITERS = 16
SIZE = 4096  # bytes
POOL = os.urandom(SIZE << 8)  # what is written is cut from it: to make it is not what is measured


class SmallFiles(TreeNode):
    """Ours: `filesystem.write` answers when the file is on the disk."""

    async def small(self, seconds: float) -> dict[str, float]:
        """Files a second."""
        self.turn = getattr(self, "turn", 0) + 1
        ends = time.perf_counter() + seconds
        began = time.perf_counter()

        async def write(writer: int) -> int:
            for number in itertools.count():
                if time.perf_counter() > ends:
                    return number
                path = f"/data/{self.turn}-{writer}/{number}"
                await self.system.call("filesystem.write", path=path, content=_content(number))
            raise AssertionError

        counts = await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
        return {"rate": sum(counts) / (time.perf_counter() - began)}


class PlainFiles(Place):
    """A file each: written, synced, closed. After a power cut there may be half a file, or one without a name."""

    async def small(self, seconds: float) -> dict[str, float]:
        """Files a second."""
        return {"rate": _rate(self.folder, seconds, _write_plain)}


class WholeFiles(Place):
    """What a program does that wants a file whole or not at all: beside, synced, renamed, its folder synced."""

    async def small(self, seconds: float) -> dict[str, float]:
        """Files a second."""
        return {"rate": _rate(self.folder, seconds, _write_whole)}


def _rate(folder: Path, seconds: float, write: Callable[[Path, int, int], None]) -> float:
    counts = [0] * WRITERS
    began = time.perf_counter()
    ends = began + seconds

    def run(writer: int) -> None:
        place = folder / str(writer)
        place.mkdir(exist_ok=True)
        handle = os.open(place, os.O_RDONLY)
        while time.perf_counter() < ends:
            write(place, handle, counts[writer])
            counts[writer] += 1
        os.close(handle)

    threads = [threading.Thread(target=run, args=(writer,)) for writer in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def _content(number: int) -> bytes:
    begin = number * 4099 % (len(POOL) - SIZE)
    return POOL[begin : begin + SIZE]


def _write_plain(place: Path, _: int, number: int) -> None:
    handle = os.open(place / str(number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(handle, _content(number))
    os.fsync(handle)
    os.close(handle)


def _write_whole(place: Path, folder: int, number: int) -> None:
    beside = place / f"{number}.new"
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(handle, _content(number))
    os.fsync(handle)
    os.close(handle)
    beside.rename(place / str(number))
    os.fsync(folder)
