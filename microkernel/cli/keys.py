"""Keys of a terminal, one at a time, while the loop goes on."""

from __future__ import annotations

import asyncio
import os
import sys
from types import TracebackType
from typing import Self

__all__ = ["DOWN", "UP", "Keys", "parse_keys"]

UP, DOWN = "up", "down"

_ESCAPES = {"\x1b[A": UP, "\x1bOA": UP, "\x1b[B": DOWN, "\x1bOB": DOWN}


class Keys:
    """What is typed into stdin from `with` on: characters, and names of keys that have none.

    The terminal does not show them meanwhile, and waits for no Enter; it is as it was afterwards.
    """

    def __init__(self) -> None:
        self._typed: asyncio.Queue[str] = asyncio.Queue()
        self._fileno = sys.stdin.fileno()

    async def next(self, timeout: float) -> str | None:
        """The next key; None if none is typed within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._typed.get()
        except TimeoutError:
            return None

    def __enter__(self) -> Self:
        import termios
        import tty

        self._before = termios.tcgetattr(self._fileno)
        tty.setcbreak(self._fileno)
        asyncio.get_running_loop().add_reader(self._fileno, self._read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import termios

        asyncio.get_running_loop().remove_reader(self._fileno)
        termios.tcsetattr(self._fileno, termios.TCSADRAIN, self._before)

    def _read(self) -> None:
        for key in parse_keys(os.read(self._fileno, 1024).decode(errors="replace")):
            self._typed.put_nowait(key)


def parse_keys(typed: str) -> list[str]:
    """The keys in what a terminal has sent at once; a sequence that is not known is no key."""
    keys: list[str] = []
    place = 0
    while place < len(typed):
        if typed[place] != "\x1b":
            keys.append(typed[place])
            place += 1
            continue
        end = place + 1
        if typed[end : end + 1] in {"[", "O"}:
            end += 1
            while end < len(typed) and not typed[end].isalpha() and typed[end] != "~":
                end += 1
            end += 1
        escape, place = typed[place:end], end
        keys += [_ESCAPES[escape]] if escape in _ESCAPES else []
    return keys
