"""Files of the tree as local ones: a job's processes read them at leisure, and they are one content as long as they do.

Each is fetched once by its content: another job over the same files finds them there.
"""

from __future__ import annotations

import asyncio
import fnmatch
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import blake3

from microkernel.errors import Denied, Invalid, NotFound, PreconditionFailed
from microkernel.message import convert
from microkernel.port import Port
from services.filesystem.messages import FileKind, Stat

__all__ = ["TreeFiles"]

MOST_FILES = 100_000
LOCAL = "file://"
PIECE = 8 << 20  # bytes that are written at a time


class TreeFiles:
    """Fetches what a user may read."""

    def __init__(self, port: Port, folder: Path, *, names_local_files: bool) -> None:
        """`port` is narrowed to the user, who may name local files or not; `folder` keeps what was fetched."""
        self._port = port
        self._folder = folder
        self._names_local_files = names_local_files

    async def fetch(self, patterns: tuple[str, ...]) -> list[tuple[str, str]]:
        """Each file that a pattern means: where it lies here, and its name in the tree; in the order of their names.

        Raises `NotFound` for a pattern that means none, `Invalid` for what is no path, and `Denied` for a file of this
        machine that was not named by root.
        """
        found: dict[str, str] = {}
        for pattern in patterns:
            before = len(found)
            if pattern.startswith(LOCAL):
                found |= await asyncio.to_thread(_local, pattern, allowed=self._names_local_files)
            else:
                async for stat in self._matching(pattern):
                    found[stat.path] = found.get(stat.path) or await self._fetched(stat)
            if len(found) == before:
                raise NotFound(f"no file is '{pattern}'", field="data.train", remedy="see `mk fs ls`")
        return [(path, name) for name, path in sorted(found.items())]

    async def _matching(self, pattern: str) -> AsyncIterator[Stat]:
        if not pattern.startswith("/"):
            raise Invalid(f"'{pattern}' is no path of the tree: these begin with /", field="data.train")
        if not any(sign in pattern for sign in "*?["):
            stat = convert(await self._port.call("filesystem.stat", path=pattern), Stat)
            if stat.kind is FileKind.FOLDER:
                async for each in self._below(pattern.rstrip("/"), "*"):
                    yield each
            else:
                yield stat
            return
        folder, _, name = pattern.rpartition("/")
        if any(sign in folder for sign in "*?["):
            raise Invalid(f"'{pattern}': only the last part of a path may be a pattern", field="data.train")
        async for each in self._below(folder, name):
            yield each

    async def _below(self, folder: str, pattern: str) -> AsyncIterator[Stat]:
        after = ""
        while True:
            listed = convert(
                await self._port.call("filesystem.list", path=folder or "/", after=after, limit=1000), list[Stat]
            )
            for stat in listed:
                name = stat.path.rpartition("/")[2]
                if stat.kind is FileKind.FILE and fnmatch.fnmatchcase(name, pattern):
                    yield stat
            if len(listed) < 1000:
                return
            after = listed[-1].path.rpartition("/")[2]

    async def _fetched(self, stat: Stat) -> str:
        """The local file with a content of the tree."""
        if stat.kind is not FileKind.FILE:
            raise Invalid(f"{stat.path} is no file", field="data.train")
        kept = self._folder / stat.digest if stat.digest else None
        if kept is not None and await asyncio.to_thread(kept.exists):
            return str(kept)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._folder / f"{os.getpid()}-{id(stat):x}.part"
        try:
            digest = await self._write(stat, fresh)
            if stat.digest and digest != stat.digest:
                raise PreconditionFailed(f"{stat.path} was changed while it was fetched", remedy="start the job again")
            target = self._folder / digest
            await asyncio.to_thread(fresh.replace, target)
            return str(target)
        except BaseException:
            await asyncio.to_thread(fresh.unlink, missing_ok=True)
            raise

    async def _write(self, stat: Stat, path: Path) -> str:
        digest, waiting, size = blake3.blake3(), list[bytes](), 0
        ask: dict[str, Any] = {"path": stat.path}
        if stat.version is not None:
            ask["version"] = stat.version
        with await asyncio.to_thread(path.open, "wb") as file:
            async with aclosing(self._port.stream("filesystem.read", **ask)) as pieces:
                async for piece in pieces:
                    part = bytes(piece)
                    digest.update(part)
                    waiting.append(part)
                    size += len(part)
                    if size >= PIECE:
                        await asyncio.to_thread(file.writelines, waiting)
                        waiting, size = [], 0
            await asyncio.to_thread(file.writelines, waiting)
        return digest.hexdigest()


def _local(pattern: str, *, allowed: bool) -> dict[str, str]:
    """Files of this machine."""
    if not allowed:
        raise Denied(
            f"{pattern}: only root names files of the node's machine", remedy="put them into the tree: mk fs put"
        )
    path = Path(pattern.removeprefix(LOCAL))
    if not path.is_absolute():
        raise Invalid(f"{pattern} is not an absolute path", field="data.train")
    found = sorted(path.parent.glob(path.name)) if any(sign in path.name for sign in "*?[") else [path]
    if len(found) > MOST_FILES:
        raise Invalid(f"{pattern} means {len(found)} files, and {MOST_FILES} are taken", field="data.train")
    return {f"{LOCAL}{each}": str(each) for each in found if each.is_file()}
