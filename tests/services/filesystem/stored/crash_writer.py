"""Changes a volume until it is killed, and logs what it begins and what was acknowledged; a line of its input is a run.

Its arguments are a folder, and what the runs do: `anything`, or `roll_back` of a large folder, back and forth.

Each of four writers has a folder to itself, so that what it should find there follows from its own lines alone. A fifth
one collects. Every run is a fork: to import all that is needed takes longer than a run.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path

from microkernel.errors import MicrokernelError
from services.filesystem.paths import ROOT, TreePath
from services.filesystem.stored.settings import VolumeSettings
from services.filesystem.stored.upkeep import Upkeep
from services.filesystem.stored.versions import Versions
from services.filesystem.stored.volume import StoredVolume

WRITERS = 4
NAMES = ("a", "b", "c", "d", "e")
SIZES = (0, 100, 5_000, 64_000, 66_000, 700_000)


def content_of(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def path_of(writer: int, name: str) -> TreePath:
    return TreePath((f"w{writer}", name))


class Log:
    """Lines that a kill does not lose."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def put(self, *fields) -> None:
        os.write(self._handle, json.dumps(fields).encode() + b"\n")


async def write(volume: StoredVolume, writer: int, chance: random.Random, log: Log) -> None:
    versions = []
    while True:
        kind = chance.choice(["write", "write", "write", "stream", "patch", "rename", "copy", "remove", "roll_back"])
        path, to = (path_of(writer, chance.choice(NAMES)) for _ in range(2))
        seed, size = chance.randrange(1 << 30), chance.choice(SIZES)
        content = content_of(seed, size)
        back = chance.choice(versions) if versions else 0
        log.put("begin", writer, kind, path.name, to.name, seed, size, back)

        try:
            done = await change(volume, kind, path, to, content, back)
        except MicrokernelError as error:
            log.put("refused", writer, error.message)
        else:
            log.put("done", writer, done)
            if done:
                versions.append(done)


async def change(
    volume: StoredVolume, kind: str, path: TreePath, to: TreePath, content: bytes, back: int
) -> int | None:
    """Do one thing; the version that it made, if it says so."""
    if kind == "write":
        return (await volume.write(path, content, None)).version
    if kind == "stream":
        return (await volume.write_stream(path, pieces_of(content), None)).version
    if kind == "patch":
        return (await volume.write_stream(path, pieces_of(content), None, 0)).version
    if kind == "rename":
        return (await volume.rename(path, to, None, replace=True)).version
    if kind == "copy":
        return (await volume.copy(path, to, None)).version
    if kind == "remove":
        await volume.remove(path, None, recursive=False)
    else:
        await Versions(volume).roll_back(path.parent, back, None)
    return None


async def pieces_of(content: bytes):
    for place in range(0, len(content), 100_000):
        yield content[place : place + 100_000]
        await asyncio.sleep(0)


async def collect(volume: StoredVolume, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(chance.random() * 0.02)
        await Upkeep(volume).collect(chance.random() * 0.1, dry_run=chance.random() < 0.2)


async def run(folder: Path, seed: int) -> None:
    volume = StoredVolume(ROOT, folder / "volume", VolumeSettings())
    log = Log(folder / "log")
    await volume.open()
    log.put("opened")
    writers = [write(volume, writer, random.Random(seed * 100 + writer), log) for writer in range(WRITERS)]
    await asyncio.gather(*writers, collect(volume, random.Random(seed)))


async def roll_back(folder: Path, seed: int) -> None:
    """Have `/f` as it was at two versions by turns; the log has them, and what was acknowledged."""
    volume = StoredVolume(ROOT, folder / "volume", VolumeSettings())
    log = Log(folder / "log")
    await volume.open()
    versions = [json.loads(line)[1] for line in (folder / "versions").read_text().splitlines()]
    log.put("opened")
    turn = seed
    while True:
        await Versions(volume).roll_back(TreePath(("f",)), versions[turn % 2], None)
        log.put("done", turn % 2)
        turn += 1


RUNS = {"anything": run, "roll_back": roll_back}


def tell(what) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> None:
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(RUNS[kind](folder, int(line)))
        tell(child)
        os.waitpid(child, 0)
        tell("ended")


if __name__ == "__main__":
    main()
