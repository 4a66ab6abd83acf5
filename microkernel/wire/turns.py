"""Who has had much takes turns with the others who want much: one of them in each turn of the loop. Hot: once a burst.

A client that asks for a lot at once, and reads none of it, would otherwise have the loop fill its buffers for it while
everybody else waits: with fifty of them for a tenth of a second. One that is alone has every turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

__all__ = ["BURST", "Turns"]

BURST = 64 * 1024  # bytes that a client is given at a time


class Turns:
    """A round of all clients of a node that want much; each has one place in it, however much it wants."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # by client, in the order of their turns
        self._is_due = False

    async def next(self, client: Hashable) -> None:
        """Return when it is this client's turn, and what it has asked for before has had one."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._grant)
        await turn

    def _grant(self) -> None:
        while self._waiting:
            client = next(iter(self._waiting))
            own = self._waiting.pop(client)
            turn = own.popleft()
            if own:
                self._waiting[client] = own  # at the end of the round
            if not turn.done():
                turn.set_result(None)
                self._loop.call_soon(self._grant)
                return
        self._is_due = False
