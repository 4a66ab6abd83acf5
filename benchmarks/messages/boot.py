"""The boot of a node with twenty services, in a process that has imported everything."""

from __future__ import annotations

import time

from microkernel.message import Message
from microkernel.service import Service, handles, on
from microkernel.testing import TestKernel

__all__ = ["Boot"]

SERVICES = 20


class Question(Message):
    """What the services are asked."""

    number: int = 0


def _service(number: int) -> type[Service]:
    """Two handlers, a subscription, and a need for another one: five levels in all."""

    class Small(Service):
        name = f"small{number}"
        needs = (f"small{(number - 1) // 2}",) if number else ()

        @handles
        async def ask(self, message: Question) -> Question:
            return message

        @handles(idempotent=True)
        async def look(self) -> int:
            return number

        @on("small.>")
        async def hear(self, event: object) -> None:
            pass

    return Small


class Boot:
    """Boots once: what comes first in a process is what its user waits for."""

    async def start(self) -> None:
        """Make the classes; importing is over."""
        self._kinds = [_service(number) for number in range(SERVICES)]

    async def stop(self) -> None:
        """Nothing to do."""

    async def boot(self) -> dict[str, float]:
        """Seconds until all are ready."""
        system = TestKernel(*self._kinds)
        began = time.perf_counter()
        async with system:
            took = time.perf_counter() - began
            assert await system.call(f"small{SERVICES - 1}.look") == SERVICES - 1
        return {"boot": took}
