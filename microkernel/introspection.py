"""The kernel's own service: what runs here, what it answers, and how to change it."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from microkernel.audit import Act
from microkernel.balance import Balance
from microkernel.capability import ROOT, Identity
from microkernel.config import instances_of, isolation_of, placement_of, replicas_of
from microkernel.errors import Denied, Invalid, PreconditionFailed, Unauthenticated
from microkernel.inputs import Inputs
from microkernel.message import Message, current_call, schema_of
from microkernel.own_state import LARGEST, exported, imported
from microkernel.plugins import load_file
from microkernel.portable import (
    AHEAD,
    EXPORT,
    EntryPiece,
    Export,
    Import,
    Imported,
    check_restoring,
    only_root,
    read_entries,
)
from microkernel.registry import Entry
from microkernel.revocation import Revocation
from microkernel.service import Isolation, Placement, Service, handlers_of, handles, streams
from microkernel.token import ID, Block, Patterns, make_block, within

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
    """What somebody shows at the door; `peer` is the address they come from, for the audit."""

    token: str
    peer: str | None = None


class CreateToken(Message, kw_only=True):
    """What a new token is to permit. Nothing that is not named is given.

    `allow` and `deny` are patterns of calls, `publish` and `subscribe` of subjects; `top_priority` is the most urgent
    priority (0 to 9); `rate` is in messages a second, `burst` in messages (by default those of two seconds);
    `expires_in` is in seconds, None is never. `authority` is the token of who asks, unless that is the node's own: what
    is made permits nothing beyond it and ends with it.
    """

    user: str
    allow: Patterns = ()
    deny: Patterns = ()
    publish: Patterns = ()
    subscribe: Patterns = ()
    top_priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 0
    rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1)] | None = None
    expires_in: Annotated[float, msgspec.Meta(gt=0)] | None = None
    authority: str | None = None


class CreatedToken(Message, kw_only=True):
    """A new token. It is kept nowhere: `id` is what it can be revoked by. `expires` is Unix time in seconds."""

    token: str
    id: str
    expires: float | None


class RevokeToken(Message):
    """Which token to end, with all narrowed from it: the `id` of one of its blocks, or a signed token itself."""

    id: str | None = None
    token: str | None = None


class ServiceStatus(Message, kw_only=True):
    """One line of `services`. On so many nodes as `replicas` says the cluster keeps it; 0 leaves it where it is.

    `exports` says that it has something to be backed up; a broken one is not asked.
    """

    name: str
    state: str
    why: str
    incarnation: int
    in_flight: int
    tasks: int
    source: str
    summary: str
    essential: bool
    placement: Placement | None = None
    replicas: int = 0
    exports: bool = False


class HandlerDescription(Message, kw_only=True):
    """What a handler takes and gives. Schemas are JSON Schema, draft 2020-12; `deadline` is in seconds.

    `result` is that of each item of a stream, `inputs` that of what its reader may send, None if it takes nothing.
    `credit` is how many items a reader asks for ahead, and 0 for a call. Limits are those of one instance.
    """

    address: str
    kind: str
    summary: str
    message: Mapping[str, Any]
    result: Mapping[str, Any]
    inputs: Mapping[str, Any] | None
    concurrency: int
    queue: int
    deadline: float | None
    credit: int
    idempotent: bool
    calls: int
    failures: int


class ServiceDescription(Message, kw_only=True):
    """A service and all that it answers.

    `isolation` is where it runs on this node, `instances` how many of it; `balance` says which of them gets a call.
    A broken one has none of the three.
    """

    name: str
    state: str
    why: str
    summary: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    isolation: Isolation | None
    instances: int
    balance: Balance | None
    handlers: tuple[HandlerDescription, ...]


class NodeStatus(Message, kw_only=True):
    """The node as a whole. `ready` is true once all essential services are; `unready` says of each that is not why.

    `loop_lag_…` is how late the loop was in the last minute, in milliseconds; zeros where it is not watched.
    """

    node: str
    epoch: str
    version: str
    pid: int
    root: str
    uptime_seconds: float
    ready: bool
    unready: dict[str, str]
    loop_lag_p50_ms: float
    loop_lag_p99_ms: float
    loop_lag_max_ms: float


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
        lag = kernel.lag.timing()
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
            loop_lag_p50_ms=round(1000 * lag.median, 3),
            loop_lag_p99_ms=round(1000 * lag.p99, 3),
            loop_lag_max_ms=round(1000 * lag.worst, 3),
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
    async def replace(self, message: AddService) -> list[ServiceStatus]:
        """Have the services of a Python file take over from those of the same names; what they cannot is undone."""
        plugins = await load_file(Path(message.path))
        for plugin in plugins:
            self._refuse_self(plugin.name)
        for plugin in plugins:
            await self._kernel.replace(plugin)
        return [self._status(self._kernel.router.registry.entry(plugin.name)) for plugin in plugins]

    @handles(deadline=120.0)
    async def remove(self, message: ServiceName) -> None:
        """Stop a service for good."""
        self._refuse_self(message.name)
        await self._kernel.remove(message.name)

    @handles(deadline=120.0)
    async def bring(self, message: ServiceName) -> ServiceStatus:
        """Have this node answer a service that was for others to answer."""
        await self._kernel.bring(message.name)
        return self._status(self._kernel.router.registry.entry(message.name))

    @handles(deadline=120.0)
    async def leave_to_others(self, message: ServiceName) -> ServiceStatus:
        """Drain and stop a service here: other nodes answer it from now on."""
        self._refuse_self(message.name)
        await self._kernel.leave_to_others(message.name, "other nodes of the cluster have it")
        return self._status(self._kernel.router.registry.entry(message.name))

    @handles
    async def authenticate(self, message: Token) -> Identity | None:
        """Who a token stands for; None if nobody. One that was good once is refused with the reason."""
        identity, why = self._kernel.tokens.look_up(message.token)
        if not why:
            return identity
        call = current_call()
        self._kernel.router.audit.denied(
            Act.AUTHENTICATE,
            "token",
            why,
            who="kernel" if call is None else call.caller,
            user=None if identity is None else identity.user,
            peer=message.peer,
        )
        if identity is None:
            return None
        raise Unauthenticated(why, remedy="ask for a new one where it came from")

    @handles
    async def token_create(self, message: CreateToken) -> CreatedToken:
        """Make a token that permits no more than the asker's own."""
        block = self._block(message)
        return CreatedToken(token=self._kernel.tokens.issue(block), id=block.id, expires=block.expires)

    @handles(idempotent=True)
    async def token_revoke(self, message: RevokeToken) -> Revocation:
        """End a token and all narrowed from it, at once; sessions that are open with one of them are closed."""
        tokens, number, expires = self._kernel.tokens, message.id, None
        if (message.token is None) == (number is None):
            raise Invalid("which token? give its id, or the token", field="id")
        if message.token is not None:
            number, expires = tokens.id_and_expiry(message.token)
        if number is None or not ID.fullmatch(number):
            raise Invalid(f"'{str(number)[:64]}' is no id of a token", field="id")
        return await tokens.revoke(number, by=_asker(), expires=expires)

    @handles
    async def token_rotate(self) -> None:
        """End all signed tokens at once, with a new key; the node's own token stays."""
        await self._kernel.tokens.rotate(by=_asker())

    @handles(idempotent=True)
    async def token_revoked(self) -> list[Revocation]:
        """The tokens that are revoked, oldest first, as long as they could be shown."""
        return self._kernel.tokens.revocations

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
        """The configuration and, among secrets, tokens, the key that signs them, and which are revoked."""
        only_root("exports what the node keeps")
        kernel = self._kernel
        for piece in await asyncio.to_thread(exported, kernel.config.text, kernel.tokens, secrets=message.secrets):
            yield piece

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:  # noqa: ARG002
        """Put what was exported into the state folder; it counts from the next boot on."""
        check_restoring(self)
        entries = await read_entries(inputs, self.name, most=LARGEST)
        yield Imported(notes=await asyncio.to_thread(imported, self._kernel.root, entries))

    @handles
    async def shutdown(self) -> None:
        """Have the node end in good order."""
        self._kernel.shutdown_requested.set()

    def _block(self, message: CreateToken) -> Block:
        """The block that `message` asks for. Raises `Invalid`, `Denied` and `Unauthenticated`."""
        wall = self._kernel.router.clock.wall()
        burst = message.burst
        if burst is None and message.rate is not None:
            burst = math.ceil(2 * message.rate)
        asked = make_block(
            user=message.user,
            allow=message.allow,
            deny=message.deny,
            publish=message.publish,
            subscribe=message.subscribe,
            top_priority=message.top_priority,
            rate=message.rate,
            burst=burst,
            expires=None if message.expires_in is None else wall + message.expires_in,
        )
        authority = self._authority(message.authority)
        return asked if authority is None else within(authority, asked)

    def _authority(self, token: str | None) -> Identity | None:
        """Who asks, by the token shown; None is the node itself, a service of it, or its own token."""
        call = current_call()
        if token is None and (call is None or call.user in {None, ROOT}):
            return None
        identity = None if token is None else self._kernel.tokens.authenticate(token)
        if identity is None or (call is not None and call.user not in {None, ROOT, identity.user}):
            raise Denied(
                "a token is made on the authority of the asker's own",
                remedy="give it as 'authority'",
                service=self.name,
                field="authority",
            )
        return None if identity.user == ROOT else identity

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
            placement=None if plugin.kind is None else placement_of(self._kernel.config, entry.name, plugin.kind),
            replicas=0 if plugin.kind is None else replicas_of(self._kernel.config, entry.name, plugin.kind),
            exports=EXPORT in entry.bindings or _has_handler(plugin.kind, EXPORT),
        )

    def _description(self, entry: Entry) -> ServiceDescription:
        kind, config = self._kernel.plugin(entry.name).kind, self._kernel.config
        return ServiceDescription(
            name=entry.name,
            state=entry.state,
            why=entry.why,
            summary=_summary(kind),
            needs=tuple(getattr(kind, "needs", ())),
            uses=tuple(getattr(kind, "uses", ())),
            isolation=None if kind is None else isolation_of(config, entry.name, kind),
            instances=0 if kind is None else instances_of(config, entry.name, kind),
            balance=None if kind is None else Balance(kind.balance),
            handlers=tuple(
                HandlerDescription(
                    address=binding.gate.target,
                    kind=binding.handler.kind,
                    summary=binding.handler.summary,
                    message=schema_of(binding.handler.message),
                    result=schema_of(binding.handler.result),
                    inputs=None if binding.handler.inputs is None else schema_of(binding.handler.inputs),
                    concurrency=binding.handler.concurrency,
                    queue=binding.handler.queue,
                    deadline=binding.handler.deadline,
                    credit=binding.handler.credit,
                    idempotent=binding.handler.idempotent,
                    calls=binding.gate.calls,
                    failures=binding.gate.failures,
                )
                for binding in entry.bindings.values()
            ),
        )


def _asker() -> str:
    """For whom a change is made: a user, or the service that acts on its own."""
    call = current_call()
    return "kernel" if call is None else call.user or call.caller


def _has_handler(kind: Any, name: str) -> bool:
    """Whether a service that may not be up has a handler; a broken one has none."""
    is_class = isinstance(kind, type) and issubclass(kind, Service)
    return is_class and any(handler.name == name for handler in handlers_of(kind))


def _summary(kind: Any) -> str:
    """The first sentence of a service's docstring; empty for a broken plugin."""
    return ("" if kind is None else inspect.getdoc(kind) or "").partition("\n")[0]
