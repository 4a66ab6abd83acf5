"""The service's end of the link: a router, a bus and one incarnation, on the service's own loop.

It is the same `Resident` as for a service on the kernel's loop, with its own gates, timers, tasks and deadlines; only
its port and its bus are at the other end. The kernel's gates have admitted what comes; those here keep a cancelled
call that has not ended yet from running beside the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from microkernel.errors import MicrokernelError, NotFound, PreconditionFailed, Unimplemented, from_exception
from microkernel.executor import Executor
from microkernel.executors import Executors
from microkernel.gate import Gate
from microkernel.inputs import Inputs
from microkernel.instance import Resident, Surroundings
from microkernel.isolation import frames
from microkernel.isolation.frames import Ask
from microkernel.isolation.guest_port import GuestBus, GuestPort
from microkernel.isolation.link import Link
from microkernel.registry import Binding
from microkernel.router import Router
from microkernel.service import Service

__all__ = ["CRASHED", "LOG", "READY", "START", "STOP", "Guest", "LogLine", "Order", "OwnExecutors", "Source"]

# Addresses of the service itself, where a handler's name would stand.
START, READY, STOP = "@start", "@ready", "@stop"
# Addresses at the kernel's end.
CRASHED, LOG = "@crashed", "@log"


class Source(msgspec.Struct, frozen=True):
    """Where another process finds a service's class; `file` is for a module that cannot be imported by its name."""

    module: str
    name: str
    file: str | None = None


class Order(msgspec.Struct, frozen=True):
    """What the kernel gives to a service that lives away from it; `settings` are plain values of its `Settings`."""

    name: str
    node: str
    root: str
    instance: int | None
    incarnation: int
    settings: Any
    names: tuple[str, ...]
    source: Source | None = None
    log_level: int = logging.WARNING


class LogLine(msgspec.Struct, frozen=True, array_like=True):
    """A record of the log in another process; `created` is Unix time in seconds."""

    logger: str
    level: int
    text: str
    created: float


class OwnExecutors(Executors):
    """The executors that a service has made itself; those of the node's devices belong to the node's process."""

    def get(self, name: str) -> Executor:
        try:
            return super().get(name)
        except NotFound as error:
            raise PreconditionFailed(
                f"executor '{name}' belongs to the node's own process",
                remedy="run the service inline, as task or as thread, or have it start an executor of its own",
            ) from error


class Guest:
    """What the kernel's end calls: the life of the service, and its handlers."""

    def __init__(self, make: Callable[[Order], Awaitable[Service]], executors: Executors) -> None:
        """`make` gives the service object, on the loop that it is to live on."""
        self.ended = asyncio.Event()  # it has stopped, or nobody is left to tell it to
        self.link: Link
        self._make = make
        self._executors = executors
        self._resident: Resident | None = None
        self._router: Router | None = None
        self._inputs: dict[int, tuple[Inputs[Any], Any]] = {}

    async def call(self, frame: Ask) -> tuple[Any, Any]:
        """Run a handler, or a part of the service's life."""
        if frame.to == START:
            await self._start(self.link.packing.unpack(frame.body, Order, "the order to start"))
        elif frame.to == READY:
            await self._living().service.ready()
        elif frame.to == STOP:
            await self._stop(self.link.packing.unpack(frame.body, str, "the order to stop"))
        else:
            return await self._handle(frame)
        return self.link.packing.pack(None, frame.to), None

    async def stream(self, frame: frames.Open) -> AsyncGenerator[tuple[Any, Any], None]:
        """Run a generator handler."""
        binding, arguments, call = self._arguments(frame)
        packing, what = self.link.packing, f"an item of {binding.gate.target}"
        if binding.handler.inputs is not None:
            arguments = (*arguments, self._take_inputs(frame.id, binding))
        stream = _gate(binding).stream(arguments, call)
        try:
            async for item in stream:
                yield packing.pack(item, what), packing.name(item, binding.handler.result)
        finally:
            await stream.aclose()

    def tell(self, frame: frames.Send | frames.Publish) -> None:
        """The kernel says nothing one way."""

    def input(self, frame: frames.Input | frames.Finish) -> None:
        """Hand an input to the handler that reads it."""
        inputs, kind = self._inputs.get(frame.id, (None, None))
        if inputs is None:
            return
        if isinstance(frame, frames.Finish):
            inputs.finish()
        else:
            inputs.put_now(self.link.packing.unpack(frame.body, kind, f"an item for {inputs.target}"))

    def stream_ended(self, number: int) -> None:
        """Nobody reads its inputs any more."""
        inputs, _ = self._inputs.pop(number, (None, None))
        if inputs is not None:
            inputs.close()

    def lost(self, reason: MicrokernelError) -> None:
        """The kernel is gone: so are we."""
        self.link.lost(reason)
        self.ended.set()

    async def _handle(self, frame: Ask) -> tuple[Any, Any]:
        binding, arguments, call = self._arguments(frame)
        result = await _gate(binding).call(arguments, call)
        packing = self.link.packing
        body = packing.pack(result, f"the result of {binding.gate.target}")
        return body, packing.name(result, binding.handler.result)

    def _arguments(self, frame: Ask | frames.Open) -> tuple[Binding, tuple[Any, ...], Any]:
        resident = self._living()
        binding = resident.bindings.get(frame.to)
        if binding is None:
            raise NotFound(f"service '{resident.name}' has no handler '{frame.to}'", service=resident.name)
        if frame.context is None:
            raise Unimplemented(f"{binding.gate.target} is called on nobody's behalf", service=resident.name)
        assert self._router is not None
        call = frame.context.call(self._router.clock.now())
        if not binding.handler.takes_message:
            return binding, (), call
        message = self.link.packing.unpack(frame.body, binding.handler.message, f"the message to {call.chain[-1]}")
        return binding, (message,), call

    def _take_inputs(self, number: int, binding: Binding) -> Inputs[Any]:
        """What the handler reads; the sender is told how much it takes."""
        kind = binding.handler.inputs
        inputs: Inputs[Any] = Inputs(binding.gate.target)
        inputs.on_room = lambda count: self.link.post(frames.Room(number, count))
        inputs.expect(kind)
        self._inputs[number] = inputs, kind
        inputs.open(binding.handler.credit)
        return inputs

    async def _start(self, order: Order) -> None:
        service = await self._make(order)
        router = self._router = Router(asyncio.get_running_loop(), bus=GuestBus(self.link).as_bus())
        names, link = frozenset(order.names), self.link
        surroundings = Surroundings(
            router=router,
            executors=self._executors,
            node=order.node,
            instance=order.instance,
            root=Path(order.root),
            port=lambda caller, rights: GuestPort(router, link, names, caller=caller, rights=rights),
        )
        kind, settings = type(service).Settings, order.settings
        if not isinstance(settings, kind):
            settings = msgspec.convert(settings, kind)
        resident = Resident(service, settings, surroundings, self._crashed, incarnation=order.incarnation)
        await resident.start()
        self._resident = resident

    async def _stop(self, why: str) -> None:
        if self._resident is not None:
            await self._resident.stop(why, drain=0.0)
        if self._router is not None:
            await self._router.close()
        await self._executors.close()
        self.ended.set()

    def _living(self) -> Resident:
        if self._resident is None:
            raise PreconditionFailed("the service has not started")
        return self._resident

    def _crashed(self, error: Exception) -> None:
        packing = self.link.packing
        report = packing.pack_error(from_exception(error))
        self.link.post(frames.Send(CRASHED, packing.pack(report, "a crash")))


def _gate(binding: Binding) -> Gate:
    """The gate of the one instance that lives here."""
    assert isinstance(binding.gate, Gate)
    return binding.gate
