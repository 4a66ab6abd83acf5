"""Puts the pieces together: one node, its boot and its shutdown."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from microkernel.authentication import Tokens
from microkernel.capability import Revoked, TokenFile
from microkernel.config import KERNEL, Config, place, settings_of
from microkernel.errors import Invalid
from microkernel.executors import Executors
from microkernel.instance import Instance
from microkernel.introspection import Introspection
from microkernel.lag import Lag, LoopBlocked
from microkernel.lifecycle import Lifecycle
from microkernel.nursery import contained
from microkernel.plugins import Plugin
from microkernel.port import Port
from microkernel.portable import as_before_start
from microkernel.rings import with_defaults
from microkernel.root import Root
from microkernel.router import Router
from microkernel.service import Service

__all__ = ["Kernel"]

log = logging.getLogger("microkernel.kernel")


class Kernel:
    """One node. Made, booted and shut down on one running loop."""

    def __init__(
        self,
        config: Config,
        root: Path,
        plugins: Sequence[Plugin],
        *,
        executors: Executors | None = None,
        restoring: bool = False,
    ) -> None:
        """`executors` are other ones than those of real threads: a simulation has none.

        With `restoring`, services are as before their start: their handlers take in what is restored to a new `root`.
        """
        self.config = config
        self.restoring = restoring
        self.root = Root(root)
        self.epoch = secrets.token_hex(8)
        self.router = Router(asyncio.get_running_loop(), with_defaults(config.rings), node=config.node)
        self.executors = executors or Executors()
        self.started_at = self.router.clock.wall()
        self.port = Port(self.router, caller="kernel", reserved=True)
        self.shutdown_requested = asyncio.Event()
        self.token: TokenFile  # the node's own
        self.tokens: Tokens
        self._plugins = [_before_start(plugin) for plugin in plugins] if restoring else list(plugins)
        self._lifecycle = Lifecycle(config, self.root.path, self.router, self.executors, self.port)
        self._slots = self._lifecycle.slots
        self.lag = Lag(config.lag_threshold, self._kinds, self._tell_blocked)

    # Life of the node

    async def boot(self) -> None:
        """Take the state folder and start every service; returns when each has started or failed to.

        A service that fails is named in the registry and stops nobody, unless it is `essential`: then its error is
        raised, and `shutdown` is still to be called. Raises `PreconditionFailed` and `Invalid` for a state folder or
        configuration that cannot be used, and `Unavailable` when the node shuts down meanwhile.
        """
        self.root.acquire()
        self.lag.start()
        self.token = TokenFile(self.root.token_path, given=os.environ.get("MICROKERNEL_TOKEN"))
        self.tokens = Tokens(self.root.path, self.token, self.router.clock.wall)
        self.tokens.listeners.append(self._tell_revoked)
        kernel = self

        class KernelService(Introspection):
            restoring = kernel.restoring

            def __init__(self) -> None:
                super().__init__(kernel)

        self._lifecycle.install(Plugin("kernel", "microkernel.introspection", kind=KernelService))
        for plugin in self._plugins:
            self._lifecycle.install(plugin)
        self._check_settings()
        await self._lifecycle.start_all()

    async def wait_ready(self, *, everyone: bool = False) -> None:
        """Return when the `essential` services (or all that have started) are ready.

        Raises the error of an essential one that will not be, and `Unavailable` when the node shuts down meanwhile.
        """
        await self._lifecycle.wait_ready(everyone=everyone)

    async def shutdown(self, reason: str = "the node shuts down") -> None:
        """Stop all services, users before the used, then the threads, and give the state folder back.

        Never raises: what goes wrong is logged, and the rest is done all the same. What does not end in its time (a
        start, a drain, a stop, a task, a thread: seconds each) is left, so the end comes whatever the services do.
        """
        async with AsyncExitStack() as steps:  # the last first; each is done whatever becomes of the others
            for step in (self._release, self.lag.close, self.executors.close, self.router.close, self._lifecycle.close):
                steps.push_async_callback(_logged, step)
            await _logged(self._stop_all, reason)

    def _tell_revoked(self, revoked: Revoked) -> None:
        self.port.publish("kernel.token.revoked", revoked)

    def _kinds(self) -> dict[str, type[Service] | None]:
        """The class of each service; None for one that is broken. Another thread may ask."""
        return {name: slot.kind for name, slot in tuple(self._slots.items())}

    def _tell_blocked(self, blocked: LoopBlocked) -> None:
        self.port.publish("kernel.lag", blocked)

    async def _stop_all(self, reason: str) -> None:
        self.port.publish("kernel.shutdown", reason=reason)
        await self._lifecycle.stop_all(reason)

    async def _release(self) -> None:
        self.root.release()

    # Changing services while calls run

    async def restart(self, name: str) -> None:
        """Drain and start `name` and all that need it; returns when they have started. Raises why it has not."""
        await self._lifecycle.restart(name)

    async def replace(self, plugin: Plugin) -> None:
        """Have another version of a service take over; raises why it cannot, and the old one answers on."""
        await self._lifecycle.replace(plugin)

    async def bring(self, name: str) -> None:
        """Have this node answer service `name`, which was for others to answer; raises why it has not started."""
        await self._lifecycle.bring(name)

    async def leave_to_others(self, name: str, why: str) -> None:
        """Drain and stop service `name` here: other nodes answer it from now on."""
        await self._lifecycle.leave_to_others(name, why)

    async def add(self, plugin: Plugin) -> None:
        """Start one more service; raises why it cannot start, and it is not there then."""
        await self._lifecycle.add(plugin)

    async def remove(self, name: str) -> None:
        """Stop `name` for good. Raises `PreconditionFailed` while others need it."""
        await self._lifecycle.remove(name)

    def plugin(self, name: str) -> Plugin:
        """Where `name` comes from. Raises `NotFound`."""
        return self._lifecycle.slot(name).plugin

    def instance(self, name: str) -> Instance | None:
        """The present incarnation of `name`, None while there is none. Raises `NotFound`."""
        return self._lifecycle.slot(name).instance

    def _check_settings(self) -> None:
        for section, names in _sections(self.config):
            for name in names:
                if name not in self._slots and name not in self.config.disable:
                    known = ", ".join(sorted(self._slots))
                    where = place(self.config, (section, name))
                    raise Invalid(f"{where}: no service is named '{name}'", remedy=f"services here: {known}")
        if KERNEL in self.config.isolation:
            raise Invalid(f"{place(self.config, ('isolation', KERNEL))}: the kernel itself is always inline")
        for name, slot in self._slots.items():
            if slot.plugin.kind is not None:
                settings_of(self.config, name, slot.plugin.kind.Settings)


def _sections(config: Config) -> tuple[tuple[str, Iterable[str]], ...]:
    """The sections that name services, and which."""
    return (
        ("services", config.services),
        ("isolation", config.isolation),
        ("instances", config.instances),
        ("placement", config.placement),
        ("replicas", config.replicas),
    )


def _before_start(plugin: Plugin) -> Plugin:
    """The service of a plugin, for a node that is being restored."""
    return plugin if plugin.kind is None else msgspec.structs.replace(plugin, kind=as_before_start(plugin.kind))


async def _logged(step: Callable[..., Awaitable[None]], *arguments: str) -> None:
    """Run a step of the shutdown; one that raises does not keep the others from being done."""
    try:
        await contained(step(*arguments))
    except Exception:
        log.exception("the shutdown goes on without %s", step.__qualname__)
