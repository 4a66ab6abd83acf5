"""Puts the pieces together: boot, supervision, restart, shutdown."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from microkernel.capability import TokenFile
from microkernel.config import Config, place, settings_of
from microkernel.errors import AlreadyExists, Invalid, MicrokernelError, PreconditionFailed, from_exception
from microkernel.executor import Executors
from microkernel.instance import Instance, Surroundings
from microkernel.introspection import Introspection
from microkernel.nursery import Nursery
from microkernel.plugins import Plugin
from microkernel.port import Port
from microkernel.registry import ServiceState
from microkernel.root import Root
from microkernel.router import Router
from microkernel.service import Restart, Service
from microkernel.supervisor import Child, Ignore, Quarantine, RestartAll, Supervisor, start_order

__all__ = ["Kernel"]

log = logging.getLogger("microkernel.kernel")


class _Slot:
    """A supervised service: where it comes from and its present incarnation."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.instance: Instance | None = None
        self.ready: asyncio.Task[None] | None = None
        self.failure: MicrokernelError | None = None
        # Set once the first start has come to an end, well or not: those who use this service wait no longer.
        self.settled = asyncio.Event()
        # Held over awaits on purpose: a stop and a start of one service must not interleave; both have time limits.
        self.lock = asyncio.Lock()


class Kernel:
    """One node. Made, booted and shut down on one running loop."""

    def __init__(self, config: Config, root: Path, plugins: Sequence[Plugin]) -> None:
        loop = asyncio.get_running_loop()
        self.config = config
        self.root = Root(root)
        self.epoch = secrets.token_hex(8)
        self.router = Router(loop)
        self.executors = Executors()
        self.started_at = self.router.clock.wall()
        self.port = Port(self.router, caller="kernel")
        self.shutdown_requested = asyncio.Event()
        self._plugins = list(plugins)
        self._slots: dict[str, _Slot] = {}
        self._supervisor = Supervisor(
            strategy=config.supervision.strategy,
            intensity=config.supervision.intensity,
            period=config.supervision.period,
        )
        self._nursery = Nursery("kernel", self._task_failed)
        self._booted = False  # from then on an essential service that fails is restarted, not the end
        self._stopping = False
        self.token: TokenFile

    # Life of the node

    async def boot(self) -> None:
        """Take the state folder and start every service; returns when each has started or failed to.

        A service that fails is named in the registry and stops nobody, unless it is `essential`: then its error is
        raised, and `shutdown` is still to be called. Raises `PreconditionFailed` and `Invalid` for a state folder or
        configuration that cannot be used.
        """
        self.root.acquire()
        self.token = TokenFile(self.root.token_path, given=os.environ.get("MICROKERNEL_TOKEN"))
        kernel = self

        class KernelService(Introspection):
            def __init__(self) -> None:
                super().__init__(kernel)

        self._install(Plugin("kernel", "microkernel.introspection", kind=KernelService))
        for plugin in self._plugins:
            self._install(plugin)
        self._check_settings()
        self._check_needs()
        names = self._order()
        for name in names:
            self._nursery.spawn(self._first_start(name), f"start {name}")
        for name in names:
            await self._slots[name].settled.wait()
        self._raise_essential()

    async def wait_ready(self, *, everyone: bool = False) -> None:
        """Return when the `essential` services (or all that have started) are ready.

        Raises the error of an essential one that will not be.
        """
        waiting = {
            slot.ready
            for slot in self._slots.values()
            if slot.ready is not None and (everyone or slot.plugin.kind.essential)
        }
        while waiting:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            self._raise_essential()
        self._booted = True

    async def shutdown(self, reason: str = "the node shuts down") -> None:
        """Stop all services, users before the used, then the threads; never raises, and is bounded in time."""
        self._stopping = True
        self.port.publish("kernel.shutdown", reason=reason)
        order = [name for name in self._order() if self._slots[name].plugin.broken is None]
        for name in reversed(order):
            async with self._slots[name].lock:
                await self._stop(name, reason, state=ServiceState.STOPPED)
        await self._nursery.close()
        await self.router.close()
        await self.executors.close()
        self.root.release()

    # Changing services while calls run

    async def restart(self, name: str) -> None:
        """Drain and start `name` and all that need it; returns when they have started. Raises why one has not."""
        slot = self._slot(name)
        if slot.plugin.broken is not None:
            raise PreconditionFailed(f"service '{name}' is broken: {slot.plugin.broken}", service=name)
        self._supervisor.forgive(name)
        names = self._supervisor.with_dependents(name)
        # In a task of the kernel's: the call that asked may be one that this very restart ends.
        work = self._nursery.spawn(self._replace(names, "is being restarted", 0.0, drain=None), f"restart {name}")
        await asyncio.shield(work)
        if slot.failure is not None and slot.instance is None:
            raise slot.failure

    async def add(self, plugin: Plugin) -> None:
        """Start one more service."""
        if plugin.broken is not None:
            raise Invalid(f"{plugin.source}: {plugin.broken}")
        if plugin.name in self._slots:
            raise AlreadyExists(f"a service is named '{plugin.name}' already", remedy="restart or remove it")
        self._install(plugin)
        self._check_needs()
        await asyncio.shield(self._nursery.spawn(self._first_start(plugin.name), f"start {plugin.name}"))
        failure = self._slots[plugin.name].failure
        if failure is not None:
            raise failure

    async def remove(self, name: str) -> None:
        """Stop `name` for good. Raises `PreconditionFailed` while others need it."""
        self._slot(name)
        dependents = [other for other in self._supervisor.with_dependents(name) if other != name]
        if dependents:
            raise PreconditionFailed(f"'{name}' is needed by {', '.join(dependents)}", remedy="remove those first")

        async def work() -> None:
            async with self._slots[name].lock:
                await self._stop(name, "was removed", state=ServiceState.STOPPED)
            del self._slots[name]
            self._supervisor.remove(name)
            self.router.registry.remove(name)
            self.router.changed(name)

        await asyncio.shield(self._nursery.spawn(work(), f"remove {name}"))

    def plugin(self, name: str) -> Plugin:
        """Where `name` comes from. Raises `NotFound`."""
        return self._slot(name).plugin

    def instance(self, name: str) -> Instance | None:
        """The present incarnation of `name`, None while there is none. Raises `NotFound`."""
        return self._slot(name).instance

    # How a service is started and stopped

    def _install(self, plugin: Plugin) -> None:
        if plugin.name in self._slots:
            other = self._slots[plugin.name].plugin.source
            log.error("service '%s' of %s is left out: %s has the name", plugin.name, plugin.source, other)
            return
        slot = self._slots[plugin.name] = _Slot(plugin)
        self.router.registry.add(plugin.name)
        if plugin.broken is not None:
            self._give_up(plugin.name, ServiceState.BROKEN, plugin.broken)
            return
        slot.settled.clear()
        self._supervisor.add(Child(plugin.name, tuple(plugin.kind.needs), Restart(plugin.kind.restart_policy)))

    def _check_settings(self) -> None:
        for name in self.config.services:
            if name not in self._slots and name not in self.config.disable:
                known = ", ".join(sorted(self._slots))
                where = place(self.config, ("services", name))
                raise Invalid(f"{where}: no service is named '{name}'", remedy=f"services here: {known}")
        for name, slot in self._slots.items():
            if slot.plugin.kind is not None:
                settings_of(self.config, name, slot.plugin.kind.Settings)

    def _check_needs(self) -> None:
        """Name services whose needs are not there or go in a circle."""
        for name, slot in self._slots.items():
            if slot.plugin.kind is None:
                continue
            missing = [need for need in slot.plugin.kind.needs if need not in self._slots]
            if missing:
                self._give_up(name, ServiceState.BROKEN, f"needs '{missing[0]}', which is not installed")
        circles: dict[str, str] = {}
        for name in self._slots:
            try:
                start_order({each: self._needs(each) for each in self._closure(name)})
            except Invalid as error:
                circles[name] = error.message
        for name, why in circles.items():
            self._give_up(name, ServiceState.BROKEN, why)

    def _closure(self, name: str) -> set[str]:
        found, fresh = {name}, [name]
        while fresh:
            fresh = [need for need in self._needs(fresh.pop()) if need not in found] + fresh
            found.update(fresh)
        return found

    def _needs(self, name: str) -> tuple[str, ...]:
        slot = self._slots.get(name)
        if slot is None or slot.plugin.kind is None or slot.plugin.broken is not None:
            return ()
        return tuple(slot.plugin.kind.needs)

    def _uses(self, name: str) -> tuple[str, ...]:
        slot = self._slots[name]
        if slot.plugin.kind is None or slot.plugin.broken is not None:
            return ()
        return tuple(use for use in slot.plugin.kind.uses if use in self._slots)

    def _order(self) -> tuple[str, ...]:
        """All services, each after what it needs and, where no circle forbids it, after what it uses."""
        edges: dict[str, set[str]] = {
            name: set() if slot.plugin.broken else set(self._needs(name)) for name, slot in self._slots.items()
        }
        for name in sorted(edges):
            for use in self._uses(name):
                if not _reaches(edges, use, name):
                    edges[name].add(use)
        # Who uses everything comes after all but those who use it, so that it stops before what it calls.
        for name in sorted(edges):
            if "*" in getattr(self._slots[name].plugin.kind, "uses", ()):
                edges[name].update(other for other in edges if not _reaches(edges, other, name))
        return start_order(edges)

    async def _first_start(self, name: str) -> None:
        slot = self._slots[name]
        if slot.plugin.broken is not None:
            return
        order = self._order()
        before = set(order[: order.index(name)])
        for other in (*self._needs(name), *(use for use in self._uses(name) if use in before)):
            await self._slots[other].settled.wait()
        async with slot.lock:
            if not self._stopping:
                await self._start(name)
        slot.settled.set()

    async def _start(self, name: str) -> None:
        """Start a new incarnation; a failure is handed to the supervisor. The slot's lock is held."""
        slot = self._slots[name]
        if slot.instance is not None or slot.plugin.broken is not None:
            return
        for need in self._needs(name):
            if not self.router.registry.entry(need).state.answers:
                why = f"needs '{need}', which is {self.router.registry.entry(need).state}"
                slot.failure = PreconditionFailed(f"service '{name}' {why}", service=name)
                self._set(name, ServiceState.QUARANTINED, why)
                return
        self._set(name, ServiceState.STARTING, "")
        slot.failure = None
        try:
            service: Service = slot.plugin.kind()
            settings = settings_of(self.config, name, slot.plugin.kind.Settings)
            surroundings = Surroundings(self.router, self.executors, self.config.node, self.root.path)
            instance = Instance(service, settings, surroundings, lambda error: self._crashed(name, instance, error))
            await instance.start()
        except Exception as error:  # noqa: BLE001 - whatever a service raises, the others start
            self._start_failed(name, error)
            return
        slot.instance = instance
        self._supervisor.started(name)
        entry = self.router.registry.entry(name)
        entry.incarnation += 1
        entry.bindings = instance.bindings
        self._set(name, ServiceState.RUNNING, "")
        slot.ready = self._nursery.spawn(self._await_ready(name, instance), f"ready {name}")

    async def _await_ready(self, name: str, instance: Instance) -> None:
        slot = self._slots[name]
        try:
            await instance.service.ready()
        except Exception as error:  # noqa: BLE001 - handed to the supervisor
            if slot.instance is instance:
                slot.failure = from_exception(error, service=name)
                if self._booted or not instance.service.essential:
                    self._crashed(name, instance, slot.failure)
            return
        if slot.instance is instance and self.router.registry.entry(name).state is ServiceState.RUNNING:
            self._set(name, ServiceState.READY, "")

    async def _stop(self, name: str, why: str, *, state: ServiceState, drain: float | None = None) -> None:
        """End the present incarnation. The slot's lock is held."""
        slot = self._slots[name]
        instance, slot.instance = slot.instance, None
        if slot.ready is not None:
            slot.ready.cancel()
            slot.ready = None
        if instance is not None:
            self._set(name, ServiceState.DRAINING, why)
            await instance.stop(why, drain=drain)
        self._set(name, state, why)

    async def _replace(self, names: Sequence[str], why: str, delay: float, *, drain: float | None) -> None:
        """Stop `names` from last to first, wait, start them from first to last."""
        async with AsyncExitStack() as locks:
            await self._lock(locks, names)
            for name in reversed(names):
                if name in self._slots:
                    await self._stop(name, why, state=ServiceState.RESTARTING, drain=drain)
        await self.router.clock.sleep(delay)
        async with AsyncExitStack() as locks:
            await self._lock(locks, names)
            for name in names:
                if name in self._slots and not self._stopping:
                    await self._start(name)

    async def _halt(self, names: Sequence[str], why: str, state: ServiceState) -> None:
        """Stop `names` and leave them in `state`."""
        async with AsyncExitStack() as locks:
            await self._lock(locks, names)
            for name in reversed(names):
                await self._stop(name, why, state=state, drain=0.0)

    async def _lock(self, locks: AsyncExitStack, names: Iterable[str]) -> None:
        for name in sorted(names):  # always in the same order: two groups that overlap cannot block each other
            if name in self._slots:
                await locks.enter_async_context(self._slots[name].lock)

    # Supervision

    def _start_failed(self, name: str, error: Exception) -> None:
        slot = self._slots[name]
        slot.failure = from_exception(error, service=name)
        log.error("service '%s' did not start: %s", name, slot.failure)
        if slot.plugin.kind.essential and not self._booted:
            self._set(name, ServiceState.QUARANTINED, str(slot.failure))  # the boot ends with this error
            return
        self._decide(name, slot.failure, starting=True)

    def _crashed(self, name: str, instance: Instance, error: Exception) -> None:
        if self._stopping or self._slots[name].instance is not instance:
            return
        failure = self._slots[name].failure = from_exception(error, service=name)
        instance.close(f"crashed: {failure.message}")
        self._decide(name, failure, starting=False)

    def _decide(self, name: str, error: MicrokernelError, *, starting: bool) -> None:
        why = f"crashed: {error.message}"
        if starting:
            why = error.message
        decision = self._supervisor.crashed(name, error.message, now=self.router.clock.now(), starting=starting)
        match decision:
            case RestartAll(names, delay):
                log.warning("service '%s' %s; restarting %s in %.1f s", name, why, ", ".join(names), delay)
                self._set(name, ServiceState.RESTARTING, why)
                self._nursery.spawn(self._replace(names, why, delay, drain=0.0), f"restart {name}")
            case Quarantine(names, reason):
                log.error("service '%s' is quarantined: %s", name, reason)
                self._set(name, ServiceState.QUARANTINED, reason)
                self._nursery.spawn(self._halt(names, reason, ServiceState.QUARANTINED), f"quarantine {name}")
            case Ignore():
                log.warning("service '%s' %s; it is %s", name, why, self._slots[name].plugin.kind.restart_policy)
                self._nursery.spawn(self._halt((name,), why, ServiceState.STOPPED), f"stop {name}")

    def _give_up(self, name: str, state: ServiceState, why: str) -> None:
        slot = self._slots[name]
        if slot.plugin.broken is None:
            slot.plugin = msgspec.structs.replace(slot.plugin, broken=why)
        slot.failure = PreconditionFailed(f"service '{name}' is {state}: {why}", service=name)
        slot.settled.set()
        log.error("service '%s' is %s: %s", name, state, why)
        self._set(name, state, why)

    def _raise_essential(self) -> None:
        for slot in self._slots.values():
            if slot.failure is not None and getattr(slot.plugin.kind, "essential", False):
                raise slot.failure

    def _set(self, name: str, state: ServiceState, why: str) -> None:
        entry = self.router.registry.add(name)
        entry.state, entry.why = state, why
        self.router.changed(name)
        self.port.publish(
            f"service.{name}.{state}", name=name, state=state.value, why=why, incarnation=entry.incarnation
        )

    def _slot(self, name: str) -> _Slot:
        self.router.registry.entry(name)  # raises NotFound with the names that there are
        return self._slots[name]

    def _task_failed(self, name: str, error: Exception) -> None:
        log.error("kernel task '%s' raised %s: %s", name, type(error).__name__, error, exc_info=error)


def _reaches(edges: dict[str, set[str]], start: str, goal: str) -> bool:
    found, fresh = {start}, [start]
    while fresh:
        name = fresh.pop()
        if name == goal:
            return True
        more = edges.get(name, set()) - found
        found |= more
        fresh.extend(more)
    return False
