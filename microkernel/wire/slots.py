"""How many calls may be in flight on a link: a semaphore whose usual way is two look-ups. Hot: once a call."""

from __future__ import annotations

import asyncio
from collections import deque

__all__ = ["Slots"]


class Slots:
    """At most `limit` are taken at a time; who waits gets one in order of arrival."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take a slot that is free, if nobody waits for one."""
        if self._taken >= self.limit or self._waiting:
            return False
        self._taken += 1
        return True

    async def wait(self) -> None:
        """Take a slot, when it is our turn."""
        if self.take():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter  # what it is woken with is a slot
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.free()
            else:
                self._waiting.remove(waiter)
            raise

    def free(self) -> None:
        """Give a slot back."""
        self._taken -= 1
        if self._waiting:
            self._pass_on()

    def resize(self, limit: int) -> None:
        """From now on so many; those that are taken stay so."""
        self.limit = limit
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting and self._taken < self.limit:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._taken += 1
                waiter.set_result(None)
