"""The other nodes of one system: how calls reach them, and which of them answers what.

An address with a node in it (`kv.get@n2`) means that node; without one, a service that is not here, or that several
nodes answer, is found where it is (`spread`). Who the nodes are, and which of them may have work, is told from outside:
membership is a service's business. A call that came from another node names this one, so it never goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from microkernel.errors import Invalid, MicrokernelError, NotFound, Unavailable, copy_of
from microkernel.gate import Gate, Passage
from microkernel.inputs import Inputs
from microkernel.message import Call, _current, current_call
from microkernel.registry import Binding
from microkernel.service import Handler, HandlerKind, handlers_of
from microkernel.spread import Spread

if TYPE_CHECKING:
    from microkernel.router import Router

__all__ = ["Dial", "Link", "Neighbour", "Nodes", "Things"]

CONCURRENCY = 4096  # calls of one handler that may be under way to another node; admission proper is there
QUEUE = 4096


class Link(Protocol):
    """One way to another node."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""

    @property
    def is_shut_out(self) -> bool:
        """Whether the other node takes this one for dead, and calls of others than membership do not go over it."""

    async def forward(self, to: str, message: Any, call: Call, result: Any) -> Any:
        """Make a call there."""

    def forward_stream(
        self, to: str, message: Any, inputs: Inputs[Any] | None, call: Call, handler: Handler
    ) -> AsyncGenerator[Any, None]:
        """Open a stream there."""

    async def aclose(self) -> None:
        """End it."""


Things: TypeAlias = Mapping[str, frozenset[str]]
"""What a node has beside its services, by kind: `{"model": frozenset({"a", "b"})}`."""

Dial = Callable[[], Awaitable[Link]]
"""Opens a link to a node. Raises `Unavailable`, `Unauthenticated`."""


class Described(msgspec.Struct, frozen=True):
    """What `kernel.describe` tells of a handler, as far as a caller needs it."""

    address: str
    kind: HandlerKind
    deadline: float | None
    credit: int
    idempotent: bool
    inputs: Any = None


class Neighbour:
    """Another node: one link, made when it is needed, and a gate for each handler that is called there."""

    def __init__(self, node: str, dial: Dial, router: Router) -> None:
        self.node = node
        self.services: frozenset[str] = frozenset()  # those that answer there
        self.is_open = True  # to new work
        self.is_last_resort = False  # for what no other node takes
        self.load = 0.0
        self.weight = 1.0
        self.things: Things = {}
        self._dial = dial
        self._router = router
        self._link: Link | None = None
        self._dials = asyncio.Lock()  # held while it dials, on purpose: of many that call at once, one does
        self._gates: dict[str, dict[str, Gate]] = {}  # by service and handler
        self._closed: MicrokernelError | None = None

    @property
    def is_linked(self) -> bool:
        """Whether there is a link now over which calls go."""
        return self._link is not None and not self._link.is_over and not self._link.is_shut_out

    async def link(self) -> Link:
        """The link, opened if there is none. Raises `Unavailable` and what the dialling does."""
        link = self._link
        if link is not None and not link.is_over:
            return link
        async with self._dials:
            if self._link is None or self._link.is_over:
                self._refuse_closed()
                old, self._link = self._link, None
                if old is not None:
                    await old.aclose()
                self._link = await self._dial()
                if self._closed is not None:
                    await self.aclose()
                    self._refuse_closed()
        assert self._link is not None
        return self._link

    async def bind(self, service: str, method: str) -> Binding:
        """The gate to a handler there. Raises `NotFound` where there is none, and as `link`."""
        handler = await self._find(service, method)
        return Binding(handler, self.gate(service, handler))

    async def describe(self, service: str) -> dict[str, Handler]:
        """The handlers of a service there, by name, with types where the service is known here too."""
        known = self._router.registry.kind(service)
        if known is not None:
            return {handler.name: handler for handler in handlers_of(known)}
        link = await self.link()
        asked = Call(caller="kernel", deadline=self._router.clock.now() + 10.0)
        found = await link.forward(f"kernel.describe@{self.node}", {"name": service}, asked, list[_Service])
        return {each.address.partition(".")[2].partition("@")[0]: _handler(each) for each in found[0].handlers}

    def gate(self, service: str, handler: Handler) -> Gate:
        """The gate to `handler` of a service there."""
        gates = self._gates.setdefault(service, {})
        gate = gates.get(handler.name)
        if gate is None:
            to = f"{service}.{handler.name}@{self.node}"
            gate = gates[handler.name] = Passage(
                to,
                self._forwarding(to, handler),
                concurrency=CONCURRENCY,
                queue=QUEUE,
                deadlines=self._router.deadlines,
                waits=self._router.waits,
                budget=self._router.budget,
            )
            if self._closed is not None:
                gate.close(self._closed)
        return gate

    def close(self, reason: MicrokernelError, *, at_once: bool = True) -> None:
        """The node is gone: nothing more goes there. What is under way ends with `reason`, `at_once` or in `ended`."""
        self._closed = reason
        for gate in self._all_gates():
            gate.close(reason)
            if at_once:
                gate.kill(reason)

    async def ended(self, within: float) -> None:
        """After `close`: return when nothing is under way any more; what still is after `within` seconds, is ended."""
        assert self._closed is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                for gate in self._all_gates():
                    await gate.drained()
        for gate in self._all_gates():
            gate.kill(self._closed)

    async def aclose(self) -> None:
        """End the link."""
        link, self._link = self._link, None
        if link is not None:
            await link.aclose()

    def _all_gates(self) -> list[Gate]:
        return [gate for gates in self._gates.values() for gate in gates.values()]

    async def _find(self, service: str, method: str) -> Handler:
        handlers = await self.describe(service)
        handler = handlers.get(method)
        if handler is None:
            known = ", ".join(sorted(handlers)) or "none"
            raise NotFound(
                f"service '{service}' of node '{self.node}' has no handler '{method}'",
                service=service,
                remedy=f"it has: {known}",
            )
        return handler

    def _forwarding(self, to: str, handler: Handler) -> Callable[..., Any]:
        """What the gate runs in place of the handler."""
        result = None if handler.result is Any else handler.result

        async def call(*message: Any) -> Any:
            # As it is: a deadline that nobody has set is the handler's own, which counts it there as here.
            link, answered = self._link, _current.get()
            if link is None or link.is_over:
                link = await self.link()
            assert answered is not None
            return await link.forward(to, message[0] if message else None, answered, result)

        async def stream(*message: Any) -> AsyncGenerator[Any, None]:
            link, answered = await self.link(), current_call()
            assert answered is not None
            inputs = None if handler.inputs is None else message[-1]
            given = message[0] if handler.takes_message else None
            async with aclosing(link.forward_stream(to, given, inputs, answered, handler)) as items:
                async for item in items:
                    yield item

        return stream if handler.kind is HandlerKind.STREAM else call

    def _refuse_closed(self) -> None:
        if self._closed is not None:
            raise copy_of(self._closed, Unavailable)


class Nodes:
    """All nodes that this one knows, itself by its name."""

    def __init__(self, own: str, router: Router) -> None:
        self.own = own
        self._router = router
        self._others: dict[str, Neighbour] = {}
        self._spreads: dict[str, Spread] = {}
        self._homes: dict[str, set[str]] = {}  # services, and the other nodes that answer them
        self.things: Things = {}
        self.usual: Mapping[str, str] = {}
        self._shared: dict[str, frozenset[str]] = {}  # services that are installed here: handlers that any node answers

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(tuple(self._others.values()))

    def get(self, node: str) -> Neighbour | None:
        """Another node that is known."""
        return self._others.get(node)

    def attach(self, node: str, dial: Dial) -> Neighbour:
        """Calls reach `node` from now on, over the links that `dial` opens."""
        if node == self.own or node in self._others:
            raise Invalid(f"node '{node}' is here already", field="node")
        neighbour = self._others[node] = Neighbour(node, dial, self._router)
        return neighbour

    def detach(self, node: str, why: str, *, at_once: bool = True) -> Neighbour | None:
        """`node` is gone: calls to it end with `Unavailable`. Returns what it was, to be closed by `aclose`.

        Without `at_once`, what is under way goes on until `Neighbour.ended`.
        """
        neighbour = self._others.get(node)
        if neighbour is not None:
            self.offer(neighbour, frozenset())
            del self._others[node]
            neighbour.close(Unavailable(f"node '{node}' {why}", may_have_run=True), at_once=at_once)
        return neighbour

    def offer(
        self,
        neighbour: Neighbour,
        services: frozenset[str],
        *,
        is_open: bool = True,
        is_last_resort: bool = False,
        load: float | None = None,
        weight: float | None = None,
        things: Things | None = None,
    ) -> None:
        """A node has told what answers there, and whether it takes new work."""
        neighbour.things = neighbour.things if things is None else things
        neighbour.is_last_resort = is_last_resort
        neighbour.load = neighbour.load if load is None else load
        neighbour.weight = neighbour.weight if weight is None else weight
        if neighbour.services == services and neighbour.is_open is is_open:
            return
        changed = services ^ neighbour.services
        if neighbour.is_open is not is_open:
            changed |= services
        neighbour.services, neighbour.is_open = services, is_open
        for service in changed:
            homes = self._homes.setdefault(service, set())
            (homes.add if service in services else homes.discard)(neighbour.node)
            if not homes:
                del self._homes[service]
            self._router.changed(service)

    def share(self, service: str, methods: frozenset[str]) -> None:
        """Calls of some handlers of a service that is installed here may be answered by any node that has it."""
        self._shared[service] = methods

    def have(self, things: Things, usual: Mapping[str, str]) -> None:
        """What this node has itself, and which of each kind is meant where a message names none."""
        self.things, self.usual = things, usual

    def answering(self, service: str) -> list[Neighbour]:
        """The other nodes on which a service answers and that take new work."""
        return [other for node in self._homes.get(service, ()) if (other := self._others[node]).is_open]

    def knows(self, service: str) -> bool:
        """Whether another node answers a service."""
        return service in self._homes

    def names(self) -> set[str]:
        """Services that other nodes answer."""
        return set(self._homes)

    def spread(self, service: str, method: str) -> Spread | None:
        """The service as several nodes answer it; None where the handler is this node's own, or not known elsewhere."""
        entry = self._router.registry.get(service)
        if entry is not None and method in self._shared.get(service, ()):
            pass
        elif service not in self._homes or (entry is not None and not entry.is_elsewhere):
            return None
        kind = self._router.registry.kind(service)
        spread = self._spreads.get(service)
        if spread is None or spread.kind is not kind:
            spread = self._spreads[service] = Spread(service, kind, self._router, self)
        return spread

    async def bind(self, address: str, node: str) -> Binding:
        """What answers `service.method` on another node. Raises `NotFound` and `Unavailable`."""
        neighbour = self._others.get(node)
        if neighbour is None:
            known = ", ".join(sorted({self.own, *self._others}))
            raise NotFound(f"no node is named '{node}'", remedy=f"nodes: {known}", may_have_run=False)
        service, _, method = address.partition(".")
        return await neighbour.bind(service, method)


class _Service(msgspec.Struct, frozen=True):
    """What `kernel.describe` tells of a service, as far as a caller needs it."""

    handlers: tuple[Described, ...]


def _handler(told: Described) -> Handler:
    """A handler of a service that is not installed here: what it takes and gives are plain values."""
    return Handler(
        name=told.address.partition(".")[2].partition("@")[0],
        attribute="",
        kind=told.kind,
        message=Any,
        takes_message=True,
        result=Any,
        concurrency=CONCURRENCY,
        queue=QUEUE,
        deadline=told.deadline,
        credit=told.credit,
        idempotent=told.idempotent,
        summary="",
        inputs=None if told.inputs is None else Any,
    )
