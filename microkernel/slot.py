"""The place of one supervised service: where it comes from, its present incarnation, and why there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from microkernel.ensemble import Ensemble
from microkernel.errors import MicrokernelError
from microkernel.instance import KILL_TIMEOUT, Instance, Resident, Surroundings
from microkernel.isolation.host import in_process, in_thread
from microkernel.plugins import Plugin
from microkernel.service import Isolation, Service

__all__ = ["Slot"]


class Slot:
    """What outlives the incarnations of a service."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.instance: Instance | None = None
        self.failure: MicrokernelError | None = None
        self.ready: asyncio.Task[None] | None = None
        # The task that will start it again; when several want to, the latest does.
        self.restart: asyncio.Task[Any] | None = None
        # Set once the first start has come to an end, well or not: those who use this service wait no longer.
        self.settled = asyncio.Event()
        # Held over awaits on purpose: a stop and a start of one service must not interleave; both have time limits.
        self.lock = asyncio.Lock()

    @property
    def kind(self) -> type[Service] | None:
        """The class of the service; a broken one has none. Any thread may ask."""
        instance = self.instance
        kind = self.plugin.kind if instance is None else instance.kind
        return kind if isinstance(kind, type) else None

    @property
    def needs(self) -> tuple[str, ...]:
        """What the service needs; a broken one needs nothing."""
        return () if self.plugin.broken is not None else tuple(self.plugin.kind.needs)

    @property
    def uses(self) -> tuple[str, ...]:
        """What the service uses; a broken one uses nothing."""
        return () if self.plugin.broken is not None else tuple(self.plugin.kind.uses)

    @property
    def essential(self) -> bool:
        """Whether the boot fails without it."""
        return bool(getattr(self.plugin.kind, "essential", False))

    async def incarnate(
        self,
        settings: Any,
        surroundings: Surroundings,
        crashed: Callable[[Instance, Exception], None],
        incarnation: int,
        isolation: Isolation,
        count: int = 1,
    ) -> Instance:
        """A new incarnation that has started, where `isolation` says. Raises whatever the service raises."""

        def failed(error: Exception) -> None:
            crashed(instance, error)

        def make(surroundings: Surroundings, failed: Callable[[Exception], None]) -> Instance:
            kind = self.plugin.kind
            if isolation is Isolation.THREAD:
                return in_thread(kind, settings, surroundings, failed, incarnation)
            if isolation is Isolation.PROCESS:
                return in_process(kind, settings, surroundings, failed, incarnation)
            in_own_task = isolation is Isolation.TASK
            return Resident(kind(), settings, surroundings, failed, incarnation=incarnation, in_own_task=in_own_task)

        def make_one_of_many(number: int, failed: Callable[[Exception], None]) -> Instance:
            return make(msgspec.structs.replace(surroundings, instance=number), failed)

        if count == 1:
            instance = make(surroundings, failed)
        else:
            instance = Ensemble(
                self.plugin.kind, surroundings.router, failed, incarnation, make_one_of_many, count=count
            )
        await instance.start()
        return instance

    async def end(self, instance: Instance, why: str, drain: float | None) -> None:
        """End the present incarnation; its `ready` has ended before its `stop` begins."""
        self.instance = None
        instance.close(why)
        ready, self.ready = self.ready, None
        if ready is not None:
            ready.cancel()
            await asyncio.wait([ready], timeout=KILL_TIMEOUT)
        await instance.stop(why, drain=drain)
