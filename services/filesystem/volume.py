"""What a volume is: a tree of its own, mounted into the one of the node."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from microkernel.errors import Invalid, NotFound
from services.filesystem.messages import Stat
from services.filesystem.paths import TreePath

__all__ = ["CHUNK", "Volume", "not_a_folder", "not_there", "part_of"]

CHUNK = 64 << 10  # bytes that a reader gets at once


class Volume(Protocol):
    """Paths are those from the volume's own root, and in its answers those in the whole tree, `at`."""

    @property
    def about(self) -> str:
        """What is in it, in a few words."""
        ...

    async def stat(self, path: TreePath, at: TreePath) -> Stat:
        """What a path leads to. Raises `NotFound`."""
        ...

    async def list(self, path: TreePath, at: TreePath) -> list[Stat]:
        """What is in a folder, by name. Raises `NotFound`, and `Invalid` for a file."""
        ...

    def read(self, path: TreePath, at: TreePath, start: int, stop: int | None) -> AsyncGenerator[bytes, None]:
        """A file's bytes, in pieces of `CHUNK` at the most. Raises `NotFound`, and `Invalid` for a folder."""
        ...


def not_there(at: TreePath, remedy: str | None = None) -> NotFound:
    """A path that leads nowhere."""
    return NotFound(f"there is no {at}", field="path", remedy=remedy or f"see what is in {at.parent}: mk fs ls")


def not_a_folder(at: TreePath) -> Invalid:
    """A file, where a folder was asked for."""
    return Invalid(f"{at} is a file", field="path", remedy=f"mk fs cat {at}")


def part_of(content: bytes, start: int, stop: int | None) -> list[bytes]:
    """From `start` up to `stop`, in pieces."""
    wanted = memoryview(content)[start:stop]
    return [bytes(wanted[place : place + CHUNK]) for place in range(0, len(wanted), CHUNK)]
