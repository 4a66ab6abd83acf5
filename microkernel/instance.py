"""One incarnation of a service: its gates from start to stop, and its object, tasks, timers and subscriptions.

A `Resident` lives on the loop of its gates. One that lives elsewhere, in a thread or a process of its own, is a
`microkernel.isolation.host.Remote`.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from microkernel.backlog import Overflow
from microkernel.capability import ADMIN, Rights
from microkernel.errors import DeadlineExceeded, MicrokernelError, Unavailable, from_exception
from microkernel.events import Subscription
from microkernel.executors import Executors
from microkernel.gate import Gate
from microkernel.isolation.own_task import in_own_task
from microkernel.isolation.spare import Spare
from microkernel.nursery import Nursery, contained, within
from microkernel.port import Port
from microkernel.registry import Binding
from microkernel.router import Router
from microkernel.service import Handler, Service, handlers_of, subscribers_of, timers_of

if TYPE_CHECKING:
    from microkernel.ensemble import Balanced

__all__ = ["Instance", "Resident", "Surroundings", "port_of"]

KILL_TIMEOUT = 2.0  # seconds for killed calls to run their `finally` blocks
STOP_TIMEOUT = 5.0  # seconds
TELL_INTERVAL = 1.0  # seconds between two words on dropped events, while a subscription stays behind


class Surroundings(msgspec.Struct, frozen=True):
    """What the kernel gives to every service; `port` makes one, where that is not a plain `Port`.

    `instance` counts from 0 where a service has several, each with a folder of its own.
    """

    router: Router
    executors: Executors
    node: str
    root: Path
    spare: Spare | None = None  # for a service with a process of its own
    port: Callable[[str, Rights], Port] | None = None
    instance: int | None = None

    def state_dir(self, name: str) -> Path:
        """The folder of service `name`."""
        folder = self.root / name
        return folder if self.instance is None else folder / str(self.instance)


class Instance(ABC):
    """The gates of a service, and what ends them.

    `crashed(error)` is called once, when the first of its tasks raises after `start`; an incarnation ends only once.
    """

    service: Service  # its object, where that lives in this process

    def __init__(
        self, kind: type[Service], router: Router, crashed: Callable[[Exception], None], incarnation: int
    ) -> None:
        self.kind = kind
        self.name = kind.name
        self.incarnation = incarnation
        self.log = logging.getLogger(f"microkernel.{kind.name}")
        self._router = router
        self._crashed = crashed
        self._started = False
        self._failure: Exception | None = None
        self._nursery = Nursery(self.name, self._task_failed)
        self.bindings = {handler.name: Binding(handler, self._door(handler)) for handler in handlers_of(kind)}

    @property
    def in_flight(self) -> int:
        """Calls and streams that were admitted and have not ended."""
        return sum(binding.gate.in_flight for binding in self.bindings.values())

    @property
    def tasks(self) -> int:
        """Tasks that belong to this incarnation."""
        return len(self._nursery)

    @abstractmethod
    async def start(self) -> None:
        """Run the service's `start` and set its timers and subscriptions going.

        Raises what went wrong in it or in a task that it has spawned; nothing of the service is left then.
        """

    @abstractmethod
    async def ready(self) -> None:
        """Run the service's `ready`."""

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
        drained = await self._drained(self.kind.drain_timeout if drain is None else drain)
        if not drained:
            reason = Unavailable(f"service '{self.name}' {why}", service=self.name, retry_after=1.0, may_have_run=True)
            for binding in self.bindings.values():
                binding.gate.kill(reason)
            if not await self._drained(KILL_TIMEOUT):
                self.log.warning("%d calls hold on after they were ended", self.in_flight)
        await self._end()
        for binding in self.bindings.values():
            binding.gate.retire()

    @abstractmethod
    def _door(self, handler: Handler) -> Gate | Balanced:
        """What calls of `handler` go through."""

    @abstractmethod
    async def _end(self) -> None:
        """End what the incarnation owns, and have the service let go of what its `start` took."""

    def _gate(self, handler: Handler, function: Callable[..., Any]) -> Gate:
        """The gate of `handler`, which runs `function`."""
        return Gate(
            f"{self.name}.{handler.name}",
            function,
            concurrency=handler.concurrency,
            queue=handler.queue,
            deadlines=self._router.deadlines,
            waits=self._router.waits,
            budget=self._router.budget,
        )

    async def _drained(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                for binding in self.bindings.values():
                    await binding.gate.drained()
        except TimeoutError:
            return False
        return True

    def _task_failed(self, name: str, error: Exception) -> None:
        self.log.error("task '%s' raised %s: %s", name, type(error).__name__, error, exc_info=error)
        self.crash(from_exception(error, service=self.name))


class Resident(Instance):
    """A service object on the loop of its gates, and everything it owns."""

    def __init__(
        self,
        service: Service,
        settings: Any,
        surroundings: Surroundings,
        crashed: Callable[[Exception], None],
        *,
        incarnation: int = 1,
        in_own_task: bool = False,
    ) -> None:
        """With `in_own_task` a handler runs in a task of the service's instead of its caller's."""
        self.service = service
        self._in_own_task = in_own_task
        self._subscriptions: list[Subscription] = []
        super().__init__(type(service), surroundings.router, crashed, incarnation)
        self._outfit(settings, surroundings)

    async def start(self) -> None:
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

    async def ready(self) -> None:
        await self.service.ready()

    async def _start_service(self) -> None:
        limit = self.service.start_timeout
        late = DeadlineExceeded(f"did not start within {limit:g} s", service=self.name)
        await within(limit, self.service.start(), f"{self.name}:start", late)
        self._started = True

    async def _end(self) -> None:
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
                subscriber.subject, group=subscriber.group, limit=subscriber.queue, overflow=subscriber.overflow
            )
            self._subscriptions.append(subscription)
            self._nursery.spawn(self._follow(subscription, subscriber.attribute), f"on {subscriber.subject}")

    def _door(self, handler: Handler) -> Gate:
        function: Callable[..., Any] = getattr(self.service, handler.attribute)
        return self._gate(handler, in_own_task(handler, function) if self._in_own_task else function)

    def _outfit(self, settings: Any, surroundings: Surroundings) -> None:
        service = self.service
        service.settings = settings
        service.port = port_of(self.kind, self._router, surroundings.port)
        service.clock = self._router.clock
        service.incarnation = self.incarnation
        service.node = surroundings.node
        service.log = self.log
        service.state_dir = surroundings.state_dir(self.name)
        service.instance = surroundings.instance or 0
        service.executors = surroundings.executors
        service.nodes = self._router.nodes
        service._spawn = self._nursery.spawn  # noqa: SLF001 - the kernel's side of Service.spawn

    async def _follow(self, subscription: Subscription, attribute: str) -> None:
        """Have a method handle events until the service stops; a subscription that is cut is a crash."""
        handle, to = getattr(self.service, attribute), f"{self.name}.{attribute}"
        letters, clock = self._router.dead_letters, self._router.clock
        told, next_word = 0, 0.0
        try:
            async for event in subscription:
                lost = subscription.dropped - told
                if lost and (not subscription.pending or clock.now() >= next_word):
                    told, next_word = subscription.dropped, clock.now() + TELL_INTERVAL
                    self._tell_dropped(subscription, to, lost)
                try:
                    await contained(handle(event))
                except MicrokernelError as error:
                    # As with a call: one event that cannot be handled is no reason to lose the service.
                    self.service.log.warning("could not handle %s: %s", event.subject, error)
                    letters.event(to, str(error), event.subject, event.body)
                except Exception as error:
                    self.service.log.exception("handling %s raised %s", event.subject, type(error).__name__)
                    letters.event(to, f"{type(error).__name__}: {error}", event.subject, event.body)
                except asyncio.CancelledError:
                    letters.event(to, "the service stopped while it was being handled", event.subject, event.body)
                    raise
        finally:
            if subscription.pending:
                letters.dropped(
                    to, "the service stopped before they were read", subscription.pattern, subscription.pending
                )

    def _tell_dropped(self, subscription: Subscription, to: str, lost: int) -> None:
        if subscription.overflow is Overflow.LATEST:
            return  # as it asked for
        self.service.log.warning("fell behind on %s: %d events dropped", subscription.pattern, lost)
        self._router.dead_letters.dropped(to, "fell behind", subscription.pattern, lost)

    async def _tick(self, seconds: float, handle: Callable[[], Any]) -> None:
        clock = self._router.clock
        due = clock.now() + seconds
        while True:
            await clock.sleep(max(0.0, due - clock.now()))
            await handle()
            due = max(due + seconds, clock.now())


def port_of(kind: type[Service], router: Router, make: Callable[[str, Rights], Port] | None = None) -> Port:
    """The port of a service, with the rights to call itself, what it needs and what it uses."""
    allowed = {kind.name, *kind.needs, *kind.uses}
    patterns = [f"{name}.*" for name in sorted(allowed)]
    if "kernel" in allowed:  # a service's author, unlike a token's holder, is trusted with the node
        patterns += sorted(ADMIN)
    rights = Rights() if "*" in allowed else Rights(allow=tuple(patterns))
    return Port(router, caller=kind.name, rights=rights) if make is None else make(kind.name, rights)
