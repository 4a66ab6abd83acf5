"""The kernel's end of a service that lives away from its loop: its gates, and what they run instead of handlers.

Admission, priority, deadlines and accounting are here, as for any service; behind each gate a proxy forwards what was
admitted. When the other end dies, every call in flight ends at once with the cause, and the supervisor hears of it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from microkernel.errors import DeadlineExceeded, MicrokernelError, Unavailable
from microkernel.gate import Gate
from microkernel.inputs import Inputs
from microkernel.instance import KILL_TIMEOUT, STOP_TIMEOUT, Instance, Surroundings, port_of
from microkernel.isolation.frames import Context
from microkernel.isolation.guest import READY, START, STOP, Order, Source
from microkernel.isolation.host_port import HostPort
from microkernel.isolation.items import Items
from microkernel.isolation.kinds import kind_named
from microkernel.isolation.link import GRACE, Link, Serves
from microkernel.isolation.own_process import OwnProcess
from microkernel.isolation.own_thread import OwnThread
from microkernel.isolation.packing import Packing
from microkernel.isolation.spare import Spare
from microkernel.message import current_call
from microkernel.nursery import ROUND, ROUNDS
from microkernel.service import Handler, HandlerKind, Service

__all__ = ["Dwelling", "Remote", "in_process", "in_thread"]

START_GRACE = 1.0  # seconds beyond `start_timeout`: the service's own end tells of it first, with more to say


class Dwelling(Protocol):
    """A thread or a process, made for one incarnation."""

    packing: Packing
    source: Source | None
    import_timeout: float

    async def open(self, serves: Serves) -> Link:
        """Have it come up and be linked to it. Raises `Unavailable`."""

    async def gone(self) -> MicrokernelError:
        """Return once it is gone: the reason."""

    async def close(self) -> None:
        """End it, whatever it does; returns within seconds. Once more does nothing."""


class Remote(Instance):
    """An incarnation in a dwelling of its own."""

    def __init__(
        self,
        kind: type[Service],
        dwelling: Dwelling,
        settings: Any,
        surroundings: Surroundings,
        crashed: Callable[[Exception], None],
        *,
        incarnation: int = 1,
    ) -> None:
        self._dwelling = dwelling
        self._settings = settings
        self._surroundings = surroundings
        self._ending = False
        self._link: Link | None = None
        super().__init__(kind, surroundings.router, crashed, incarnation)

    async def start(self) -> None:
        router, packing = self._router, self._dwelling.packing
        host = HostPort(router, port_of(self.kind, router), packing, self.crash, self.log)
        limit = self._dwelling.import_timeout + self.kind.start_timeout + START_GRACE
        try:
            self._link = host.link = await self._dwelling.open(host)
            self._nursery.spawn(self._watch(self._link), "watch")
            await self._ask(self._link, START, self._order(), limit, f"did not start within {limit:g} s")
            self._started = True
            if self._failure is not None:
                raise self._failure
        except BaseException:
            await self._end()
            raise

    async def ready(self) -> None:
        assert self._link is not None
        await self._link.call(READY, self._dwelling.packing.pack(None, READY))

    def _door(self, handler: Handler) -> Gate:
        return self._gate(handler, self._across(handler))

    def _across(self, handler: Handler) -> Callable[..., Any]:
        packing = self._dwelling.packing
        to = f"{self.name}.{handler.name}"
        about, result, item = f"the message to {to}", f"the result of {to}", f"an item of {to}"

        async def call(*message: Any) -> Any:
            link, context = self._reach(to)
            body = packing.pack(message[0] if message else None, about)
            if link.transport.is_full:
                await link.transport.room()
            answer = await link.call(handler.name, body, context)
            return packing.unpack(answer.body, _kind(handler, answer.kind), result)

        async def stream(*message: Any) -> AsyncGenerator[Any, None]:
            link, context = self._reach(to)
            body = packing.pack(message[0] if handler.takes_message else None, about)
            inputs = None if handler.inputs is None else message[-1]
            items = link.open(handler.name, body, max(1, handler.credit), context)
            patience: float | None = GRACE
            try:
                async with _sending(inputs, items, packing, to):
                    async for frame in items:
                        yield packing.unpack(frame.body, _kind(handler, frame.kind), item)
            except GeneratorExit:
                patience = None  # the gate gives a stream that is closed its time
                raise
            finally:
                await items.aclose(patience)

        return stream if handler.kind is HandlerKind.STREAM else call

    def _reach(self, to: str) -> tuple[Link, Context]:
        call = current_call()
        if self._link is None or call is None:
            raise Unavailable(f"{to} cannot be reached", service=self.name, may_have_run=False)
        return self._link, Context.of(call, self._router.clock.now())

    async def _end(self) -> None:
        self._ending = True
        if self._link is not None:
            if self._started:
                await self._stop_service(self._link)
            await self._link.close(
                Unavailable(f"service '{self.name}' has stopped", service=self.name, may_have_run=True)
            )
        await self._dwelling.close()
        await self._nursery.close()

    async def _stop_service(self, link: Link) -> None:
        """Have the service stop; one that is dead already has."""
        limit = STOP_TIMEOUT + KILL_TIMEOUT + ROUNDS * ROUND + START_GRACE
        try:
            await self._ask(link, STOP, "is stopped", limit, f"did not stop within {limit:g} s and was left")
        except DeadlineExceeded as error:
            self.log.warning("%s", error)
        except MicrokernelError as error:
            self.log.debug("stop() was not reached: %s", error)

    async def _ask(self, link: Link, to: str, value: Any, limit: float, late: str) -> None:
        try:
            async with asyncio.timeout(limit):
                await link.call(to, self._dwelling.packing.pack(value, to))
        except TimeoutError as error:
            raise DeadlineExceeded(f"service '{self.name}' {late}", service=self.name) from error

    async def _watch(self, link: Link) -> None:
        """Hear of the end, and tell everybody."""
        reason = await self._dwelling.gone()
        link.lost(reason)
        if not self._ending:
            self.crash(reason)

    def _order(self) -> Order:
        return Order(
            name=self.name,
            node=self._surroundings.node,
            root=str(self._surroundings.root),
            instance=self._surroundings.instance,
            incarnation=self.incarnation,
            settings=self._settings,
            names=tuple(entry.name for entry in self._router.registry),
            source=self._dwelling.source,
            log_level=logging.getLogger("microkernel").getEffectiveLevel(),
        )


def in_thread(
    kind: Any, settings: Any, surroundings: Surroundings, crashed: Callable[[Exception], None], incarnation: int
) -> Remote:
    """An incarnation with a thread of its own, in which its object is made."""
    given: Service | None = (
        None if inspect.isclass(kind) else kind()
    )  # what stands for a class may have an object ready

    async def make(_: Order) -> Service:
        made: Service = kind() if given is None else given
        return made

    kind = type(given) if given is not None else kind
    log = logging.getLogger(f"microkernel.{kind.name}")
    thread = OwnThread(kind.name, make, surroundings.executors, log)
    return Remote(kind, thread, settings, surroundings, crashed, incarnation=incarnation)


def in_process(
    kind: Any, settings: Any, surroundings: Surroundings, crashed: Callable[[Exception], None], incarnation: int
) -> Remote:
    """An incarnation with a process of its own. Raises `Invalid` for a class that another process cannot find."""
    log = logging.getLogger(f"microkernel.{kind.name}")
    process = OwnProcess(kind.name, kind, surroundings.spare or Spare(), log)
    return Remote(kind, process, settings, surroundings, crashed, incarnation=incarnation)


@asynccontextmanager
async def _sending(inputs: Inputs[Any] | None, items: Items, packing: Packing, to: str) -> AsyncIterator[None]:
    """Meanwhile, forward what the reader sends into the stream, if the handler takes any."""
    if inputs is None:
        yield
        return

    async def forward() -> None:
        try:
            async for item in inputs:
                await items.send(packing.pack(item, f"an item for {to}"))
        except MicrokernelError as error:
            items.end(error)
        else:
            items.finish()

    task = asyncio.create_task(forward(), name=f"inputs of {to}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _kind(handler: Handler, name: Any) -> Any:
    """The type of the value at the other end where it has a name here, or else the one that the handler declares."""
    kind = kind_named(name)
    return handler.result if kind is Any else kind
