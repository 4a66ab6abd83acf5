"""The kernel's own service: what runs here, what it answers, and how to change it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microkernel.capability import Identity
from microkernel.errors import Invalid, PreconditionFailed
from microkernel.message import Message, schema_of
from microkernel.plugins import load_file
from microkernel.registry import Entry
from microkernel.service import Service, handles

if TYPE_CHECKING:
    from microkernel.kernel import Kernel

__all__ = ["Introspection", "HandlerDescription", "NodeStatus", "ServiceDescription", "ServiceStatus"]


class ServiceName(Message):
    """A service by name."""

    name: str


class Describe(Message):
    """Which service to describe; None is all."""

    name: str | None = None


class AddService(Message):
    """A Python file on the node's disk that defines services."""

    path: str


class Token(Message):
    """What somebody shows at the door."""

    token: str


class ServiceStatus(Message, kw_only=True):
    """One line of `services`."""

    name: str
    state: str
    why: str
    incarnation: int
    in_flight: int
    tasks: int
    source: str
    summary: str
    essential: bool


class HandlerDescription(Message, kw_only=True):
    """What a handler takes and gives. Schemas are JSON Schema, draft 2020-12; `deadline` is in seconds."""

    address: str
    kind: str
    summary: str
    message: Mapping[str, Any]
    result: Mapping[str, Any]
    concurrency: int
    queue: int
    deadline: float | None
    idempotent: bool
    calls: int
    failures: int


class ServiceDescription(Message, kw_only=True):
    """A service and all that it answers."""

    name: str
    state: str
    why: str
    summary: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    handlers: tuple[HandlerDescription, ...]


class NodeStatus(Message, kw_only=True):
    """The node as a whole. `ready` is true once all essential services are; `unready` says of each that is not why."""

    node: str
    epoch: str
    version: str
    pid: int
    root: str
    uptime_seconds: float
    ready: bool
    unready: dict[str, str]


class Introspection(Service):
    """What runs on this node, what it answers, and how to change it."""

    name = "kernel"
    uses = ("*",)

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @handles(idempotent=True)
    async def status(self) -> NodeStatus:
        """The node as a whole."""
        from microkernel import __version__  # noqa: PLC0415 - the package imports this module

        kernel = self._kernel
        unready = {
            entry.name: f"{entry.state}: {entry.why}" if entry.why else str(entry.state)
            for entry in kernel.router.registry
            if entry.state != "ready"
        }
        essential = {name for name in unready if getattr(kernel.plugin(name).kind, "essential", False)}
        return NodeStatus(
            node=kernel.config.node,
            epoch=kernel.epoch,
            version=__version__,
            pid=os.getpid(),
            root=str(kernel.root.path),
            uptime_seconds=kernel.router.clock.wall() - kernel.started_at,
            ready=not essential,
            unready=unready,
        )

    @handles(idempotent=True)
    async def services(self) -> list[ServiceStatus]:
        """All services and how they are."""
        return [self._status(entry) for entry in self._kernel.router.registry]

    @handles(idempotent=True)
    async def describe(self, message: Describe) -> list[ServiceDescription]:
        """Handlers, schemas and limits of one service or of all."""
        registry = self._kernel.router.registry
        entries = list(registry) if message.name is None else [registry.entry(message.name)]
        return [self._description(entry) for entry in entries]

    @handles(deadline=120.0)
    async def restart(self, message: ServiceName) -> ServiceStatus:
        """Drain a service and those that need it, and start them anew."""
        self._refuse_self(message.name)
        await self._kernel.restart(message.name)
        return self._status(self._kernel.router.registry.entry(message.name))

    @handles(deadline=120.0)
    async def add(self, message: AddService) -> list[ServiceStatus]:
        """Start the services of a Python file on this node's disk."""
        plugins = await load_file(Path(message.path))
        for plugin in plugins:
            await self._kernel.add(plugin)
        return [self._status(self._kernel.router.registry.entry(plugin.name)) for plugin in plugins]

    @handles(deadline=120.0)
    async def remove(self, message: ServiceName) -> None:
        """Stop a service for good."""
        self._refuse_self(message.name)
        await self._kernel.remove(message.name)

    @handles
    async def authenticate(self, message: Token) -> Identity | None:
        """Who a token stands for; None if nobody."""
        return self._kernel.token.authenticate(message.token)

    @handles
    async def shutdown(self) -> None:
        """Have the node end in good order."""
        self._kernel.shutdown_requested.set()

    def _refuse_self(self, name: str) -> None:
        if name == self.name:
            raise PreconditionFailed("the kernel's own service ends with the node", remedy="use kernel.shutdown")
        if not name:
            raise Invalid("which service? its name is empty", field="name")

    def _status(self, entry: Entry) -> ServiceStatus:
        plugin = self._kernel.plugin(entry.name)
        instance = self._kernel.instance(entry.name)
        return ServiceStatus(
            name=entry.name,
            state=entry.state,
            why=entry.why,
            incarnation=entry.incarnation,
            in_flight=0 if instance is None else instance.in_flight,
            tasks=0 if instance is None else instance.tasks,
            source=plugin.source,
            summary=_summary(plugin.kind),
            essential=getattr(plugin.kind, "essential", False),
        )

    def _description(self, entry: Entry) -> ServiceDescription:
        kind = self._kernel.plugin(entry.name).kind
        return ServiceDescription(
            name=entry.name,
            state=entry.state,
            why=entry.why,
            summary=_summary(kind),
            needs=tuple(getattr(kind, "needs", ())),
            uses=tuple(getattr(kind, "uses", ())),
            handlers=tuple(
                HandlerDescription(
                    address=binding.gate.target,
                    kind=binding.handler.kind,
                    summary=binding.handler.summary,
                    message=schema_of(binding.handler.message),
                    result=schema_of(binding.handler.result),
                    concurrency=binding.handler.concurrency,
                    queue=binding.handler.queue,
                    deadline=binding.handler.deadline,
                    idempotent=binding.handler.idempotent,
                    calls=binding.gate.calls,
                    failures=binding.gate.failures,
                )
                for binding in entry.bindings.values()
            ),
        )


def _summary(kind: Any) -> str:
    """The first sentence of a service's docstring; empty for a broken plugin."""
    return ("" if kind is None else inspect.getdoc(kind) or "").partition("\n")[0]
