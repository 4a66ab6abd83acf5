"""What is to be put into other storage, on this machine's disk until it is whole."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from microkernel.errors import PreconditionFailed
from microkernel.threads import to_its_end

__all__ = ["Spool"]

STEP = 1 << 20  # bytes that cross to a thread at once


class Spool:
    """A file that is removed at the end of its block."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._path = folder / secrets.token_hex(8)
        self._place = 0
        self._waiting: list[bytes] = []
        self._held = 0
        self._file: BinaryIO | None = None

    async def __aenter__(self) -> Spool:
        self._file = await to_its_end(_new, self._path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.shield(asyncio.to_thread(self._end))

    async def write(self, piece: bytes) -> None:
        """Add bytes."""
        self._waiting.append(piece)
        self._held += len(piece)
        self._place += len(piece)
        self.size = max(self.size, self._place)
        if self._held >= STEP:
            await self._flush()

    async def finish(self) -> Path:
        """Where the whole is."""
        await self._flush()
        return self._path

    async def go_to(self, place: int) -> None:
        """What comes next is put in place of what is there from `place` on."""
        await self._flush()
        assert self._file is not None
        self._file.seek(place)
        self._place = place

    async def _flush(self) -> None:
        waiting, self._waiting, self._held = self._waiting, [], 0
        await to_its_end(self._write, waiting)

    def _write(self, pieces: list[bytes]) -> None:
        assert self._file is not None
        try:
            self._file.writelines(pieces)
            self._file.flush()
        except OSError as error:
            raise PreconditionFailed(
                f"nothing more can be written to {self._path.parent}: {error.strerror}",
                remedy="free space on its disk",
                may_have_run=False,
            ) from error

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path.unlink(missing_ok=True)


def _new(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
