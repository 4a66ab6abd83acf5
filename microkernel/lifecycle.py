"""The lives of a node's services: installed, started, made ready, stopped, restarted, taken out.

What happens is decided by the supervisor and done here. A slot's lock is held over every change of its service, so a
stop and a start of one service never interleave; who holds several takes them in one order.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from microkernel.config import Config, instances_of, isolation_of, placement_of, replicas_of, settings_of
from microkernel.dependencies import circles, missing, start_order
from microkernel.errors import AlreadyExists, Invalid, MicrokernelError, PreconditionFailed, Unavailable, from_exception
from microkernel.executors import Executors
from microkernel.instance import Instance, Surroundings
from microkernel.isolation.spare import Spare
from microkernel.nursery import Nursery, contained
from microkernel.plugins import Plugin, checked, reloaded
from microkernel.port import Port
from microkernel.registry import ServiceState
from microkernel.router import Router
from microkernel.service import Placement, Restart, handlers_of
from microkernel.slot import Slot
from microkernel.supervisor import Child, Decision, Ignore, Quarantine, RestartAll, Supervisor

__all__ = ["Lifecycle"]

log = logging.getLogger("microkernel.kernel")


class Lifecycle:
    """All services of a node by name. `port` publishes what becomes of them."""

    def __init__(self, config: Config, root: Path, router: Router, executors: Executors, port: Port) -> None:
        self.slots: dict[str, Slot] = {}
        self._config = config
        self._spare = Spare()
        self._surroundings = Surroundings(router, executors, config.node, root, self._spare)
        self._router = router
        self._port = port
        self._supervisor = Supervisor(
            strategy=config.supervision.strategy,
            intensity=config.supervision.intensity,
            period=config.supervision.period,
        )
        self._nursery = Nursery("kernel", self._task_failed)
        self._booted = False  # from then on an essential service that fails is restarted, not the end
        self._stopping = False

    async def start_all(self) -> None:
        """Start all that are installed; returns when each has started or failed to.

        Raises the error of an essential one that has not, and `Unavailable` when the node shuts down meanwhile.
        """
        self._check_needs()
        starts = [self._nursery.spawn(self._first_start(name), f"start {name}") for name in self._order()]
        await asyncio.wait(starts)
        self._raise_failures()

    async def wait_ready(self, *, everyone: bool = False) -> None:
        """Return when the `essential` services (or all that have started) are ready.

        Raises the error of an essential one that will not be, and `Unavailable` when the node shuts down meanwhile.
        """
        async with self._port.subscribe("service.*.*") as changes:
            while any(self._is_coming(name, everyone) for name in self.slots):
                self._raise_failures()
                await anext(changes)
        self._raise_failures()
        self._booted = True

    async def stop_all(self, reason: str) -> None:
        """Stop all, users before the used; none is started any more. What raises is logged."""
        self._stopping = True
        for name in reversed(self._order()):
            slot = self.slots.get(name)
            if slot is None:
                continue  # removed meanwhile
            try:
                async with slot.lock:
                    await self._stop(name, reason, state=ServiceState.STOPPED)
            except Exception:
                log.exception("service '%s' did not stop as it should", name)

    async def close(self) -> None:
        """End all tasks: starts, restarts and waits that are still under way; and the spare process."""
        self._stopping = True
        await self._nursery.close()
        await self._spare.close()

    # Changing services while calls run

    async def restart(self, name: str) -> None:
        """Drain and start `name` and all that need it; returns when they have started. Raises why it has not.

        A service from a file is read anew; while the file cannot be used, what runs goes on as it is.
        """
        slot = self.slot(name)
        plugin = checked(await reloaded(slot.plugin))
        if plugin.broken is not None:
            raise PreconditionFailed(f"service '{name}' is broken: {plugin.broken}", service=name)
        failure = await self._restart_as(plugin, "is being restarted")
        if failure is not None:
            raise failure

    async def replace(self, plugin: Plugin) -> None:
        """Have another version of a service take over; it is restarted with all that need it.

        Raises why the new version cannot be used or does not start; then the old one answers on.
        """
        plugin = checked(plugin)
        if plugin.broken is not None:
            raise Invalid(f"{plugin.source}: {plugin.broken}")
        settings_of(self._config, plugin.name, plugin.kind.Settings)
        before = self.slot(plugin.name).plugin
        failure = await self._restart_as(plugin, "is being replaced")
        if failure is not None and before.broken is None:
            log.error("service '%s' of %s did not start; %s comes back", plugin.name, plugin.source, before.source)
            await self._restart_as(before, "comes back")
        if failure is not None:
            raise failure

    async def _restart_as(self, plugin: Plugin, why: str) -> MicrokernelError | None:
        """Drain and start a service, from now on that of `plugin`, and all that need it; why it has not started."""
        name, slot = plugin.name, self.slot(plugin.name)
        if plugin is not slot.plugin:
            slot.plugin = plugin
            self._supervisor.add(Child(name, tuple(plugin.kind.needs), Restart(plugin.kind.restart_policy)))
        names = self._supervisor.revive(name)
        await self._apart(self._replace(names, why, 0.0, drain=None, unless=lambda: False), f"restart {name}")
        return slot.failure if slot.instance is None else None

    async def add(self, plugin: Plugin) -> None:
        """Start one more service; raises why it cannot start, and it is not there then."""
        plugin = checked(plugin)
        if plugin.broken is not None:
            raise Invalid(f"{plugin.source}: {plugin.broken}")
        if plugin.name in self.slots:
            raise AlreadyExists(f"a service is named '{plugin.name}' already", remedy="restart or remove it")
        settings_of(self._config, plugin.name, plugin.kind.Settings)
        self.install(plugin)
        self._check_needs()
        slot = self.slots[plugin.name]
        await self._apart(self._first_start(plugin.name), f"start {plugin.name}")
        if slot.failure is not None and slot.instance is None:
            await self._apart(self._take_out(plugin.name, slot), f"remove {plugin.name}")
            raise slot.failure

    async def bring(self, name: str) -> None:
        """Have this node answer `name`, which was for others to answer. Raises why it has not started."""
        slot = self.slot(name)
        if self._state(name) is ServiceState.ELSEWHERE:
            self._set(name, ServiceState.WAITING, "comes to this node")
            await self._apart(self._start_waiting(name, slot), f"start {name}")
        if slot.failure is not None and slot.instance is None:
            raise slot.failure

    async def leave_to_others(self, name: str, why: str) -> None:
        """Drain and stop `name` here: others answer it."""
        slot = self.slot(name)

        async def leave() -> None:
            async with slot.lock:
                await self._stop(name, why, state=ServiceState.ELSEWHERE)

        await self._apart(leave(), f"stop {name}")

    async def remove(self, name: str) -> None:
        """Stop `name` for good. Raises `PreconditionFailed` while others need it."""
        await self._apart(self._take_out(name, self.slot(name)), f"remove {name}")

    def slot(self, name: str) -> Slot:
        """Raises `NotFound` that lists the names there are."""
        self._router.registry.entry(name)
        return self.slots[name]

    def install(self, plugin: Plugin) -> None:
        """Make `plugin` known; a name is given once, to the first."""
        plugin = checked(plugin)
        if plugin.name in self.slots:
            other = self.slots[plugin.name].plugin.source
            log.error("service '%s' of %s is left out: %s has the name", plugin.name, plugin.source, other)
            return
        self.slots[plugin.name] = Slot(plugin)
        entry = self._router.registry.add(plugin.name)
        if plugin.broken is not None:
            self._give_up(plugin.name, plugin.broken)
            return
        entry.kind = plugin.kind
        self._supervisor.add(Child(plugin.name, tuple(plugin.kind.needs), Restart(plugin.kind.restart_policy)))
        placement, replicas = (of(self._config, plugin.name, plugin.kind) for of in (placement_of, replicas_of))
        anywhere = {handler.name for handler in handlers_of(plugin.kind) if replicas or handler.anywhere}
        self._router.nodes.share(plugin.name, frozenset(anywhere))
        if self._config.joins and placement is Placement.HOME:
            self.slots[plugin.name].settled.set()
            self._set(plugin.name, ServiceState.ELSEWHERE, "another node of the cluster has it")

    async def _take_out(self, name: str, slot: Slot) -> None:
        async with slot.lock:
            if self.slots.get(name) is not slot:
                return  # somebody else was quicker
            dependents = [other for other in self._supervisor.with_dependents(name) if other != name]
            if dependents:
                raise PreconditionFailed(f"'{name}' is needed by {', '.join(dependents)}", remedy="remove those first")
            await self._stop(name, "was removed", state=ServiceState.STOPPED)
            del self.slots[name]
            self._supervisor.remove(name)
            self._router.registry.remove(name)
            self._router.changed(name)

    async def _apart(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Await `work` in a task of the kernel's: the call that asked may be one that this very work ends."""
        task = self._nursery.spawn(work, name)
        await asyncio.wait([task])
        if task.cancelled():
            raise Unavailable("the node shuts down", service="kernel")
        task.result()

    # Order

    def _check_needs(self) -> None:
        """Name services whose needs are not there or go in a circle."""
        for name, need in missing(self._needs()).items():
            self._give_up(name, f"needs '{need}', which is not installed")
        for name, why in circles(self._needs()).items():
            self._give_up(name, why)

    def _needs(self) -> dict[str, tuple[str, ...]]:
        return {name: slot.needs for name, slot in self.slots.items()}

    def _order(self) -> tuple[str, ...]:
        """All services, each after what it needs and uses."""
        return start_order(self._needs(), {name: slot.uses for name, slot in self.slots.items()})

    # Start and stop

    async def _first_start(self, name: str) -> None:
        slot = self.slots[name]
        order = self._order()
        before = [other for other in order[: order.index(name)] if other in (*slot.needs, *slot.uses)]
        try:
            for settled in [self.slots[other].settled for other in before]:
                await settled.wait()
            await self._start_waiting(name, slot)
        finally:
            slot.settled.set()

    async def _start_waiting(self, name: str, slot: Slot) -> None:
        async with slot.lock:
            if self.slots.get(name) is slot and self._state(name) is ServiceState.WAITING:
                await self._start(name)

    async def _start(self, name: str) -> None:
        """Start a new incarnation; a failure is handed to the supervisor. The slot's lock is held."""
        slot = self.slots[name]
        if self._stopping or slot.instance is not None or slot.plugin.broken is not None:
            return
        lacking = next((need for need in slot.needs if not self._is_there(need)), None)
        if lacking is not None:
            self._lack(name, lacking)
            return
        entry = self._router.registry.entry(name)
        entry.incarnation += 1
        slot.failure = None
        self._set(name, ServiceState.STARTING, "")
        try:
            settings = settings_of(self._config, name, slot.plugin.kind.Settings)
            crashed = functools.partial(self._crashed, name)
            isolation = isolation_of(self._config, name, slot.plugin.kind)
            count = instances_of(self._config, name, slot.plugin.kind)
            instance = await contained(
                slot.incarnate(settings, self._surroundings, crashed, entry.incarnation, isolation, count)
            )
        except Exception as error:  # noqa: BLE001 - whatever a service raises, the others start
            self._failed(name, from_exception(error, service=name), starting=True)
            return
        slot.instance, slot.restart = instance, None
        entry.bindings, entry.kind = instance.bindings, instance.kind
        self._set(name, ServiceState.RUNNING, "")
        slot.ready = self._nursery.spawn(self._await_ready(name, instance), f"ready {name}")

    def _is_there(self, need: str) -> bool:
        """Whether a service is answered: here, or by another node, for which calls wait."""
        state = self._state(need)
        return state.answers or state is ServiceState.ELSEWHERE

    def _lack(self, name: str, need: str) -> None:
        """`name` cannot start now: it waits for `need` if that is coming, and is left stopped if not."""
        state = self._state(need)
        why = f"needs '{need}', which is {state}"
        if state.passing:
            self.slots[name].failure = None
            self._set(name, ServiceState.WAITING, why)
            return
        self.slots[name].failure = PreconditionFailed(f"service '{name}' {why}", service=name)
        self._supervisor.hold(name, need)
        self._set(name, ServiceState.QUARANTINED, why)

    async def _await_ready(self, name: str, instance: Instance) -> None:
        try:
            await contained(instance.ready())
        except Exception as error:  # noqa: BLE001 - handed to the supervisor
            instance.crash(from_exception(error, service=name))
            return
        slot = self.slots.get(name)
        if slot is not None and slot.instance is instance and self._state(name) is ServiceState.RUNNING:
            self._supervisor.started(name)
            self._set(name, ServiceState.READY, "")

    async def _stop(self, name: str, why: str, *, state: ServiceState, drain: float | None = None) -> None:
        """End the present incarnation. The slot's lock is held."""
        slot = self.slots[name]
        if slot.plugin.broken is not None:
            return
        slot.restart = None
        if slot.instance is not None:
            self._set(name, ServiceState.DRAINING, why)
            await slot.end(slot.instance, why, drain)
            self._router.registry.entry(name).bindings = {}
        self._set(name, state, why)

    async def _replace(
        self, names: Sequence[str], why: str, delay: float, *, drain: float | None, unless: Callable[[], bool]
    ) -> None:
        """Stop `names` from last to first, wait, start them from first to last."""
        this = asyncio.current_task()
        async with AsyncExitStack() as locks:
            await self._lock(locks, names)
            if unless():
                return
            for name in reversed(self._up(names)):
                await self._stop(name, why, state=ServiceState.RESTARTING, drain=drain)
                self.slots[name].restart = this
        await self._router.clock.sleep(delay)
        async with AsyncExitStack() as locks:
            await self._lock(locks, names)
            for name in self._up(names):
                if self.slots[name].restart is this:
                    await self._start(name)

    async def _halt(self, names: Sequence[str], why: str, state: ServiceState) -> None:
        """Stop `names` and leave them in `state`, unless somebody restarts them meanwhile."""
        async with AsyncExitStack() as locks:
            await self._lock(locks, names)
            for name in reversed(names):
                if name in self.slots and self._supervisor.is_down(name):
                    slot = self.slots[name]
                    slot.failure = slot.failure or PreconditionFailed(f"service '{name}' is {state}: {why}")
                    await self._stop(name, why, state=state, drain=0.0)

    def _up(self, names: Sequence[str]) -> list[str]:
        """Those of `names` that are still here and are not left stopped."""
        return [name for name in names if name in self.slots and not self._supervisor.is_down(name)]

    async def _lock(self, locks: AsyncExitStack, names: Iterable[str]) -> None:
        for name in sorted(names):  # always in the same order: two groups that overlap cannot block each other
            if name in self.slots:
                await locks.enter_async_context(self.slots[name].lock)

    # Supervision

    def _crashed(self, name: str, instance: Instance, error: Exception) -> None:
        slot = self.slots.get(name)
        if self._stopping or slot is None or slot.instance is not instance or self._supervisor.is_down(name):
            return
        failure = from_exception(error, service=name)
        instance.close(f"crashed: {failure.message}")
        self._failed(name, failure, starting=self._state(name) is not ServiceState.READY)

    def _failed(self, name: str, error: MicrokernelError, *, starting: bool) -> None:
        slot = self.slots[name]
        slot.failure = error
        instance, restart = slot.instance, slot.restart
        if instance is None:
            log.error("service '%s' did not start: %s", name, error)
        why = error.message if instance is None else f"crashed: {error.message}"
        if starting and slot.essential and not self._booted:
            decision: Decision = self._supervisor.quarantine(name, str(error))  # the boot ends with this error
        else:
            decision = self._supervisor.crashed(name, error.message, now=self._router.clock.now(), starting=starting)
        match decision:
            case RestartAll(names, delay):
                log.warning("service '%s' %s; restarting %s in %.1f s", name, why, ", ".join(names), delay)
                self._leave(name, ServiceState.RESTARTING, why)
                work = self._replace(
                    names,
                    why,
                    delay,
                    drain=0.0,
                    # somebody has restarted it by hand before this could begin, or has removed it
                    unless=lambda: (
                        self.slots.get(name) is not slot or (slot.instance, slot.restart) != (instance, restart)
                    ),
                )
                self._nursery.spawn(work, f"restart {name}")
            case Quarantine(names, reason):
                log.error("service '%s' is quarantined: %s", name, reason)
                self._leave(name, ServiceState.QUARANTINED, reason)
                self._nursery.spawn(self._halt(names, reason, ServiceState.QUARANTINED), f"quarantine {name}")
            case Ignore():
                log.warning("service '%s' %s; it is %s", name, why, slot.plugin.kind.restart_policy)
                self._leave(name, ServiceState.STOPPED, why)
                self._nursery.spawn(self._halt((name,), why, ServiceState.STOPPED), f"stop {name}")

    def _leave(self, name: str, state: ServiceState, why: str) -> None:
        """`name` is on its way to `state`; it gets there once nothing is left of its incarnation."""
        self._set(name, state if self.slots[name].instance is None else ServiceState.DRAINING, why)

    def _give_up(self, name: str, why: str) -> None:
        slot = self.slots[name]
        slot.plugin = msgspec.structs.replace(slot.plugin, broken=why)
        slot.failure = PreconditionFailed(f"service '{name}' is broken: {why}", service=name)
        slot.settled.set()
        self._supervisor.remove(name)
        log.error("service '%s' is broken: %s", name, why)
        self._set(name, ServiceState.BROKEN, why)

    # States

    def _is_coming(self, name: str, everyone: bool) -> bool:
        """Whether `name` is to be waited for: it has started and is not ready, or it is essential and not here yet."""
        state = self._state(name)
        essential = self.slots[name].essential
        return (state is ServiceState.RUNNING and (everyone or essential)) or (essential and state.passing)

    def _raise_failures(self) -> None:
        if self._stopping:
            raise Unavailable("the node shuts down", service="kernel")
        for slot in self.slots.values():
            if slot.failure is not None and slot.essential:
                raise slot.failure

    def _set(self, name: str, state: ServiceState, why: str) -> None:
        entry = self._router.registry.entry(name)
        if (entry.state, entry.why) == (state, why):
            return
        entry.state, entry.why = state, why
        self._router.changed(name)
        self._port.publish(
            f"service.{name}.{state}", name=name, state=state.value, why=why, incarnation=entry.incarnation
        )
        if not state.passing and not self._stopping:
            self._start_those_waiting_for(name)

    def _start_those_waiting_for(self, need: str) -> None:
        """`need` is up, or will not be: those whose start it put off look again."""
        for name, slot in self.slots.items():
            waits = slot.settled.is_set() and self._state(name) is ServiceState.WAITING
            if waits and need in slot.needs:
                self._nursery.spawn(self._start_waiting(name, slot), f"start {name}")

    def _state(self, name: str) -> ServiceState:
        registry = self._router.registry
        return registry.entry(name).state if name in registry else ServiceState.STOPPED  # removed a moment ago

    def _task_failed(self, name: str, error: Exception) -> None:
        log.error("kernel task '%s' raised %s: %s", name, type(error).__name__, error, exc_info=error)
