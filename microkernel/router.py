"""From an address to the gate that answers it, waiting where a service is about to come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable

from microkernel.audit import Audit, Denial
from microkernel.clock import Clock
from microkernel.dead_letters import DeadLetters
from microkernel.deadlines import Deadlines
from microkernel.errors import DeadlineExceeded, NotFound, Overloaded
from microkernel.events import Bus
from microkernel.gate import BUDGET, Waits
from microkernel.handlers import Handler
from microkernel.idempotency import Outcomes
from microkernel.monitors import Down, Monitors, Up
from microkernel.nodes import Nodes
from microkernel.nursery import Nursery
from microkernel.registry import Binding, Entry, Registry, ServiceState
from microkernel.rings import DEFAULT_RINGS, RingLimits
from microkernel.run import Budget
from microkernel.spans import Spans

__all__ = ["Router"]

PATIENCE = 30.0  # seconds that a call waits for a service to come back, when it names no deadline
MAX_WAITING = 1024  # calls that wait for one service

log = logging.getLogger("microkernel.router")


class Router:
    """What all ports of a node share."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rings: Iterable[RingLimits] = DEFAULT_RINGS,
        *,
        bus: Bus | None = None,
        node: str = "",
    ) -> None:
        """`rings` say which events are kept for replay; a service away from the kernel's loop brings its own `bus`.

        `node` is the name of this one.
        """
        self.registry = Registry()
        self.clock = Clock(loop)
        self.bus = bus or Bus(rings, self.clock.now)
        self.dead_letters = DeadLetters(self.bus)
        self.audit = Audit(loop, self.clock.wall, self._tell_denial)
        self.deadlines = Deadlines(loop)
        self.spans = Spans(self.bus, self.clock)
        self.monitors = Monitors()
        self.waits: Waits = {}
        self.budget = Budget(loop, BUDGET)
        self.sends = Nursery("send", self.send_failed)
        self.outcomes = Outcomes(self.clock)
        self.nodes = Nodes(node, self)
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}  # in order of arrival

    async def bind(self, target: str, deadline: float | None) -> Binding:
        """The open gate that answers `target`; waits, bounded in time and number, while its service restarts.

        `service.method@node` means that node. Raises `NotFound`, `Unavailable`, `Overloaded`, `DeadlineExceeded`.
        """
        expires = self.clock.now() + PATIENCE if deadline is None else deadline
        address, _, node = target.partition("@")
        service, _, method = address.partition(".")
        if node and node != self.nodes.own:
            return await self._in_time(self.nodes.bind(address, node), target, expires)
        while True:
            if not node and (spread := self.nodes.spread(service, method)) is not None:
                return await self._in_time(spread.bind(method), target, expires)
            binding = self.registry.lookup(address)
            if binding is not None and binding.gate.closed is None:
                return binding
            if node and service in self.registry and self.registry.entry(service).is_elsewhere:
                raise NotFound(
                    f"service '{service}' is on other nodes, and not on '{node}'",
                    service=service,
                    remedy=f"call {address}, without a node",
                    may_have_run=False,
                )
            await self.until_changed(service, expires)

    def known(self, target: str) -> Handler | None:
        """The handler behind `target`, as far as it is known here and now."""
        service, _, method = target.partition("@")[0].partition(".")
        spread = self.nodes.spread(service, method)
        if spread is not None and (handler := spread.known(method)) is not None:
            return handler
        entry = self.registry.get(service)
        binding = None if entry is None else entry.bindings.get(method)
        return None if binding is None else binding.handler

    async def _in_time(self, binding: Awaitable[Binding], target: str, expires: float) -> Binding:
        """What another node is asked for."""
        try:
            async with asyncio.timeout_at(expires):
                return await binding
        except TimeoutError as error:
            service = target.partition(".")[0]
            raise DeadlineExceeded(
                f"{target} could not be reached by the deadline", service=service, may_have_run=False
            ) from error

    def changed(self, name: str) -> None:
        """Wake the calls that wait for service `name`: its state is another one now."""
        for waiter in self._waiting.pop(name, ()):
            if not waiter.done():
                waiter.set_result(None)
        self.monitors.tell(self.present(name))

    def present(self, name: str) -> Up | Down:
        """How service `name` is, as its monitors hear it."""
        if name not in self.registry:
            return Down(name, 0, "was removed")
        entry = self.registry.entry(name)
        if entry.state.answers:
            return Up(name, entry.incarnation)
        return Down(name, entry.incarnation, entry.why or str(entry.state))

    async def close(self) -> None:
        """End one-way sends, calls with a key, deadlines and what has been counted of denials."""
        await self.sends.close()
        await self.outcomes.close()
        self.deadlines.close()
        self.audit.close()

    def _tell_denial(self, denial: Denial) -> None:
        self.bus.publish("audit.denied", denial)

    async def until_changed(self, name: str, expires: float) -> None:
        """Return when service `name` has come or gone, here or on another node.

        Raises `Overloaded`, and `DeadlineExceeded` at `expires`.
        """
        waiting = self._waiting.setdefault(name, {})
        entry = self.registry.add(name) if name in self.registry else Entry(name, ServiceState.ELSEWHERE)
        if len(waiting) >= MAX_WAITING:
            raise Overloaded(
                f"{len(waiting)} calls wait for service '{name}', which is {entry.state}",
                service=name,
                retry_after=1.0,
                may_have_run=False,
            )
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting[waiter] = None
        try:
            async with asyncio.timeout_at(expires):
                await waiter
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"service '{name}' was still {entry.state} at the deadline" + (f": {entry.why}" if entry.why else ""),
                service=name,
                may_have_run=False,
            ) from error
        finally:
            waiting.pop(waiter, None)

    def send_failed(self, name: str, error: Exception) -> None:
        log.warning("one-way message to %s was lost: %s", name, error)
        self.dead_letters.message(name, str(error))
