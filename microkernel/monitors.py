"""Who watches whom: a monitor of a service hears `Up` and `Down` in turn, beginning with how things are.

After Erlang's monitors (https://www.erlang.org/doc/system/ref_man_processes.html#monitors). A monitor that reads slowly
misses pairs of a `Down` and the `Up` after it, the oldest first, never the present state.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import TypeAlias

from microkernel.errors import Overloaded, PreconditionFailed
from microkernel.message import Message

__all__ = ["Change", "Down", "Monitor", "Monitors", "Up"]

LONGEST = 64  # changes that wait for one reader
MOST = 4096  # monitors of one service


class Up(Message):
    """A service answers; `incarnation` counts its starts from 1."""

    service: str
    incarnation: int


class Down(Message):
    """A service answers no longer, for `reason`; incarnation 0 has never answered."""

    service: str
    incarnation: int
    reason: str


Change: TypeAlias = Up | Down


class Monitor:
    """An async iterator of changes, for one reader; `aclose` or `async with` ends it."""

    def __init__(self, monitors: Monitors, service: str, present: Change) -> None:
        self.service = service
        self._monitors = monitors
        self._changes: deque[Change] = deque([present])
        self._last = present
        self._wake: asyncio.Future[None] | None = None
        self._closed = False

    def __aiter__(self) -> Monitor:
        return self

    async def __anext__(self) -> Change:
        if self._wake is not None:
            raise PreconditionFailed(
                f"somebody reads this monitor of {self.service} already", remedy="make one for each reader"
            )
        while not self._changes:
            if self._closed:
                raise StopAsyncIteration
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return self._changes.popleft()

    async def __aenter__(self) -> Monitor:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Hear no more."""
        self.close()

    def close(self) -> None:
        """`aclose` for owners that cannot wait."""
        self._closed = True
        self._monitors.forget(self)
        self._rouse()

    def tell(self, change: Change) -> None:
        """Called by `Monitors`; two of a kind in a row are one, unless another incarnation is up."""
        if type(change) is type(self._last) and (
            isinstance(change, Down) or change.incarnation == self._last.incarnation
        ):
            return
        self._last = change
        self._changes.append(change)
        if len(self._changes) > LONGEST:
            self._changes.popleft()
            self._changes.popleft()
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Monitors:
    """All monitors of a node by service."""

    def __init__(self) -> None:
        self._monitors: dict[str, dict[Monitor, None]] = {}

    def add(self, service: str, present: Change) -> Monitor:
        """Watch `service`, which is as `present` says. Raises `Overloaded`."""
        watching = self._monitors.setdefault(service, {})
        if len(watching) >= MOST:
            raise Overloaded(f"{MOST} monitors watch service '{service}', which is its limit", service=service)
        monitor = Monitor(self, service, present)
        watching[monitor] = None
        return monitor

    def forget(self, monitor: Monitor) -> None:
        """It has been closed."""
        watching = self._monitors.get(monitor.service, {})
        watching.pop(monitor, None)
        if not watching:
            self._monitors.pop(monitor.service, None)

    def tell(self, change: Change) -> None:
        """A service has come or gone."""
        for monitor in self._monitors.get(change.service, ()):
            monitor.tell(change)
