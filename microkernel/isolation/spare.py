"""A spare child process, kept warm: a service that has lost its process need not wait for a new interpreter."""

from __future__ import annotations

import logging

from microkernel.isolation.child_process import Child

__all__ = ["Spare"]

log = logging.getLogger("microkernel.isolation")


class Spare:
    """One process that has imported what every service needs; at most one a node, from its first use on."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._closed = False

    async def take(self) -> Child:
        """The spare process, or a new one where there is none; the next one is started. Raises `OSError`."""
        child, self._child = self._child, None
        if child is not None and child.exited.done():
            await child.end()
            child = None
        child = child or Child()
        self._refill()
        return child

    async def close(self) -> None:
        """End the spare; there is none from now on."""
        self._closed = True
        child, self._child = self._child, None
        if child is not None:
            child.kill()  # it has nothing to let go of
            await child.end()

    def _refill(self) -> None:
        if self._closed or self._child is not None:
            return
        try:
            self._child = Child()
        except OSError as error:
            log.warning("no spare process could be started: %s", error)
