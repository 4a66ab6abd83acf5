"""A large file: written with its checksum and synced, and read; `cp` with a sync, and `cat`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from benchmarks.filesystem.node import TreeNode
from benchmarks.filesystem.place import Place

__all__ = ["Coreutils", "LargeFiles"]

PIECE = 1 << 20  # bytes


def make_source(folder: Path, mib: int) -> Path:
    """A file that is in the page cache, as what is copied mostly is."""
    path = folder / f"source-{mib}"
    if not path.exists():
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    return path


def touch_memory(folder: Path, mib: int) -> None:
    """Have the memory at hand that the file is going to take.

    The host of a virtual machine takes back what has been free for two seconds, and who touches it first then pays four
    times what the file costs: whoever comes second would win.
    """
    path, piece = folder / "touched", bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(mib + mib // 2):
            file.write(piece)
    path.unlink()


class LargeFiles(TreeNode):
    """Ours; what memory it takes more is told too."""

    async def large(self, mib: int) -> dict[str, float]:
        """Seconds to write and to read so many MiB, and the bytes of memory more meanwhile."""
        source = make_source(self.folder, mib)
        touch_memory(self.folder, mib)
        process = psutil.Process()
        before = process.memory_info().rss
        peak = before

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, process.memory_info().rss)
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        began = time.perf_counter()
        await self.write_stream("/data/large", pieces_of(source))
        written = time.perf_counter()
        size = 0
        async for piece in self.system.stream("filesystem.read", path="/data/large"):
            size += len(piece)
        read = time.perf_counter()
        watching.cancel()
        assert size == mib << 20
        await self.system.call("filesystem.remove", path="/data/large")
        await self.system.call("filesystem.collect", older_than=0.0)
        return {"write": written - began, "read": read - written, "memory": float(peak - before)}


async def pieces_of(path: Path) -> AsyncIterator[bytes]:
    """A file, read on a thread."""
    with path.open("rb", buffering=0) as file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


class Coreutils(Place):
    """The commands that everybody has."""

    async def large(self, mib: int) -> dict[str, float]:
        """Seconds that `cp` with a `sync` of the file, and `cat`, take."""
        source, target = make_source(self.folder, mib), self.folder / "target"
        touch_memory(self.folder, mib)
        began = time.perf_counter()
        subprocess.run(["cp", str(source), str(target)], check=True)  # noqa: ASYNC221 # nothing else runs here
        subprocess.run(["sync", str(target)], check=True)  # noqa: ASYNC221
        written = time.perf_counter()
        subprocess.run(["cat", str(target)], stdout=subprocess.DEVNULL, check=True)  # noqa: ASYNC221
        read = time.perf_counter()
        target.unlink()
        return {"write": written - began, "read": read - written}
