"""One incarnation of a service: its object, gates, tasks, timers and subscriptions, from start to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from microkernel.capability import ADMIN, Rights
from microkernel.errors import DeadlineExceeded, MicrokernelError, Unavailable, from_exception
from microkernel.events import Subscription
from microkernel.executor import Executors
from microkernel.gate import Gate
from microkernel.nursery import Nursery, contained, within
from microkernel.port import Port
from microkernel.registry import Binding
from microkernel.router import Router
from microkernel.service import Service, handlers_of, subscribers_of, timers_of

__all__ = ["Instance", "Surroundings"]

KILL_TIMEOUT = 2.0  # seconds for killed calls to run their `finally` blocks
STOP_TIMEOUT = 5.0  # seconds


class Surroundings(msgspec.Struct, frozen=True):
    """What the kernel gives to every service."""

    router: Router
    executors: Executors
    node: str
    root: Path


class Instance:
    """A service object and everything it owns.

    `crashed(error)` is called once, when the first of its tasks raises after `start`; an incarnation ends only once.
    """

    def __init__(
        self,
        service: Service,
        settings: Any,
        surroundings: Surroundings,
        crashed: Callable[[Exception], None],
        *,
        incarnation: int = 1,
    ) -> None:
        self.service = service
        self.name = service.name
        self.incarnation = incarnation
        self._router = surroundings.router
        self._crashed = crashed
        self._started = False
        self._failure: Exception | None = None
        self._nursery = Nursery(self.name, self._task_failed)
        self._subscriptions: list[Subscription] = []
        self.bindings = self._bind()
        self._outfit(settings, surroundings)

    @property
    def in_flight(self) -> int:
        """Calls and streams that were admitted and have not ended."""
        return sum(binding.gate.in_flight for binding in self.bindings.values())

    @property
    def tasks(self) -> int:
        """Tasks that belong to this incarnation."""
        return len(self._nursery)

    async def start(self) -> None:
        """Run the service's `start` and set its timers and subscriptions going.

        Raises what went wrong in it or in a task that it has spawned; nothing of the service is left then.
        """
        try:
            await self._start_service()
            if self._failure is not None:
                raise self._failure
            self._follow_subjects()
        except BaseException:
            await self._end()
            raise
        for timer in timers_of(type(self.service)):
            self._nursery.spawn(
                self._tick(timer.seconds, getattr(self.service, timer.attribute)), f"every {timer.seconds:g} s"
            )

    def crash(self, error: Exception) -> None:
        """Something of this incarnation has failed; the first failure is the one that counts."""
        if self._failure is not None:
            return
        self._failure = error
        if self._started:
            self._crashed(error)

    def close(self, why: str) -> None:
        """Admit no more calls; those that wait end with `UNAVAILABLE`."""
        reason = Unavailable(f"service '{self.name}' {why}", service=self.name, retry_after=1.0, may_have_run=False)
        for binding in self.bindings.values():
            binding.gate.close(reason)

    async def stop(self, why: str, *, drain: float | None = None) -> None:
        """Close, let running calls end for `drain` seconds, end the rest with `UNAVAILABLE`, stop the service."""
        self.close(why)
        drained = await self._drained(self.service.drain_timeout if drain is None else drain)
        if not drained:
            reason = Unavailable(f"service '{self.name}' {why}", service=self.name, retry_after=1.0, may_have_run=True)
            for binding in self.bindings.values():
                binding.gate.kill(reason)
            if not await self._drained(KILL_TIMEOUT):
                self.service.log.warning("%d calls hold on after they were ended", self.in_flight)
        await self._end()
        for binding in self.bindings.values():
            binding.gate.retire()

    async def _start_service(self) -> None:
        limit = self.service.start_timeout
        late = DeadlineExceeded(f"did not start within {limit:g} s", service=self.name)
        await within(limit, self.service.start(), f"{self.name}:start", late)
        self._started = True

    async def _end(self) -> None:
        """End what the incarnation owns, and have the service let go of what its `start` took."""
        for subscription in self._subscriptions:
            subscription.close()
        await self._nursery.close()
        if not self._started:
            return
        late = DeadlineExceeded(f"stop() did not end within {STOP_TIMEOUT:g} s and was left", service=self.name)
        try:
            await within(STOP_TIMEOUT, self.service.stop(), f"{self.name}:stop", late)
        except Exception as error:
            if error is late:
                self.service.log.warning("%s", late)
            else:
                self.service.log.exception("stop() raised %s", type(error).__name__)

    def _follow_subjects(self) -> None:
        for subscriber in subscribers_of(type(self.service)):
            subscription = self._router.bus.subscribe(
                subscriber.subject, group=subscriber.group, limit=subscriber.queue
            )
            self._subscriptions.append(subscription)
            self._nursery.spawn(
                self._follow(subscription, getattr(self.service, subscriber.attribute)), f"on {subscriber.subject}"
            )

    def _bind(self) -> dict[str, Binding]:
        return {
            handler.name: Binding(
                handler,
                Gate(
                    f"{self.name}.{handler.name}",
                    getattr(self.service, handler.attribute),
                    concurrency=handler.concurrency,
                    queue=handler.queue,
                    deadlines=self._router.deadlines,
                    waits=self._router.waits,
                ),
            )
            for handler in handlers_of(type(self.service))
        }

    def _outfit(self, settings: Any, surroundings: Surroundings) -> None:
        service = self.service
        allowed = {self.name, *service.needs, *service.uses}
        patterns = [f"{name}.*" for name in sorted(allowed)]
        if "kernel" in allowed:  # a service's author, unlike a token's holder, is trusted with the node
            patterns += sorted(ADMIN)
        rights = Rights() if "*" in allowed else Rights(allow=tuple(patterns))
        service.settings = settings
        service.port = Port(self._router, caller=self.name, rights=rights)
        service.clock = self._router.clock
        service.incarnation = self.incarnation
        service.node = surroundings.node
        service.log = logging.getLogger(f"microkernel.{self.name}")
        service.state_dir = surroundings.root / self.name
        service.executors = surroundings.executors
        service._spawn = self._nursery.spawn  # noqa: SLF001 - the kernel's side of Service.spawn

    async def _drained(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                for binding in self.bindings.values():
                    await binding.gate.drained()
        except TimeoutError:
            return False
        return True

    async def _follow(self, subscription: Subscription, handle: Callable[..., Any]) -> None:
        dropped = 0
        async for event in subscription:
            if subscription.dropped > dropped:
                self.service.log.warning(
                    "fell behind on %s: %d events dropped",
                    subscription.pattern,
                    subscription.dropped - dropped,
                )
                dropped = subscription.dropped
            try:
                await contained(handle(event))
            except MicrokernelError as error:
                # As with a call: one event that cannot be handled is no reason to lose the service.
                self.service.log.warning("could not handle %s: %s", event.subject, error)
            except Exception as error:
                self.service.log.exception("handling %s raised %s", event.subject, type(error).__name__)

    async def _tick(self, seconds: float, handle: Callable[[], Any]) -> None:
        clock = self._router.clock
        due = clock.now() + seconds
        while True:
            await clock.sleep(max(0.0, due - clock.now()))
            await handle()
            due = max(due + seconds, clock.now())

    def _task_failed(self, name: str, error: Exception) -> None:
        self.service.log.error("task '%s' raised %s: %s", name, type(error).__name__, error, exc_info=error)
        self.crash(from_exception(error, service=self.name))
