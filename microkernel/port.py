"""What a caller holds: the right to call (hot: once a message)."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any

import msgspec

from microkernel.capability import ALL, Rights
from microkernel.errors import Denied, Invalid, Overloaded
from microkernel.events import Subscription
from microkernel.gate import Closed
from microkernel.message import PRIORITY, Call, convert, current_call, invalid_from
from microkernel.registry import Binding
from microkernel.router import Router
from microkernel.service import Handler, HandlerKind
from microkernel.trace import Trace

__all__ = ["Port", "Stream"]

MAX_SENDS = 4096  # one-way messages on their way at a time
MAX_DEADLINE = 86_400.0  # seconds; what takes longer than a day is no call
RESERVED = ("service.", "kernel.")  # subjects that memory is given back and processes are ended by


class Port:
    """Calls services by name, with the rights of its holder; narrower ports are made from it, never wider ones.

    Messages are given as a struct, a dict, a dataclass, JSON text (`msgspec.Raw`), or as keyword fields.
    """

    def __init__(
        self,
        router: Router,
        *,
        caller: str,
        rights: Rights = ALL,
        user: str | None = None,
        reserved: bool = False,
    ) -> None:
        """`reserved`: may publish what only the kernel tells, `service.>` and `kernel.>`; no narrower port may."""
        self.caller = caller
        self.user = user
        self._router = router
        self._reserved = reserved
        self._rights: tuple[Rights, ...] = (rights,)
        self._calls: dict[str, Binding] = {}
        self._streams: dict[str, Binding] = {}

    def narrow(self, *, caller: str, rights: Rights, user: str | None = None) -> Port:
        """A port that may call what this one may and `rights` permits."""
        port = Port(self._router, caller=caller, rights=rights, user=user or self.user)
        port._rights = (*self._rights, rights)
        return port

    def permits(self, target: str) -> bool:
        """Whether this port may call `target`."""
        return all(rights.permits(target) for rights in self._rights)

    def reaches(self, name: str) -> bool:
        """Whether the node has a service `name`, whatever its state."""
        return name in self._router.registry

    async def call(
        self,
        to: str,
        message: Any = None,
        /,
        *,
        deadline: float | None = None,
        priority: int | None = None,
        idempotency_key: str | None = None,
        trace: Trace | None = None,
        **fields: Any,
    ) -> Any:
        """Call `service.method` and return its result.

        `deadline` is in seconds from now, at most a day; without one the handler's own applies, and in any case that
        of the call being answered. `priority` is 0 (urgent) … 9. A call that has not begun when its service restarts
        waits for the next incarnation. Raises `MicrokernelError`; see its subclasses for the causes.
        """
        expires = None if deadline is None else self._expiry(deadline)
        while True:
            binding = self._calls.get(to)
            if binding is None or binding.gate.closed is not None:
                binding = self._calls[to] = await self._bind(to, HandlerKind.CALL, expires)
            arguments = _arguments(to, binding.handler, message, fields)
            call = self._call(to, binding.handler, expires, priority, idempotency_key, trace)
            try:
                return await binding.gate.call(arguments, call)
            except Closed:
                expires = call.deadline

    def stream(
        self,
        to: str,
        message: Any = None,
        /,
        *,
        deadline: float | None = None,
        priority: int | None = None,
        trace: Trace | None = None,
        **fields: Any,
    ) -> Stream:
        """Open a stream; nothing runs before the first item is asked for."""
        return Stream(self, to, deadline, message, fields, priority, trace)

    async def send(self, to: str, message: Any = None, /, *, priority: int | None = None, **fields: Any) -> None:
        """Call `service.method` one way: nobody waits for the result; a failure is logged as a dead letter."""
        binding = await self._bind(to, HandlerKind.CALL, None)
        if len(self._router.sends) >= MAX_SENDS:
            raise Overloaded(f"{MAX_SENDS} one-way messages are on their way", retry_after=0.1)
        arguments = _arguments(to, binding.handler, message, fields)
        call = self._call(to, binding.handler, None, priority, None, None)
        self._router.sends.spawn(binding.gate.call(arguments, call), to)

    def publish(self, subject: str, message: Any = None, /, **fields: Any) -> None:
        """Tell all subscribers of `subject`; never waits. Raises `Denied` for what only the kernel may tell."""
        if not self._reserved and subject.startswith(RESERVED):
            raise Denied(
                f"{self.caller} has no right to publish {subject}: only the kernel tells of services and itself"
            )
        self._router.bus.publish(subject, fields if message is None else message)

    def subscribe(self, subject: str, *, group: str | None = None, limit: int = 1024) -> Subscription:
        """Events of `subject` (`a.*`, `a.>`), to iterate over and to close."""
        return self._router.bus.subscribe(subject, group=group, limit=limit)

    async def _open(
        self,
        to: str,
        expires: float | None,
        message: Any,
        fields: dict[str, Any],
        priority: int | None,
        trace: Trace | None,
    ) -> tuple[AsyncGenerator[Any, None], Call]:
        binding = self._streams.get(to)
        if binding is None or binding.gate.closed is not None:
            binding = self._streams[to] = await self._bind(to, HandlerKind.STREAM, expires)
        arguments = _arguments(to, binding.handler, message, fields)
        call = self._call(to, binding.handler, expires, priority, None, trace)
        return binding.gate.stream(arguments, call), call

    def _expiry(self, deadline: float) -> float:
        """The moment that is `deadline` seconds away, on the clock."""
        if deadline < 0 or math.isnan(deadline):
            raise Invalid(f"a deadline is in seconds from now, not {deadline:g}", field="deadline")
        return self._router.clock.now() + min(deadline, MAX_DEADLINE)

    async def _bind(self, to: str, kind: HandlerKind, expires: float | None) -> Binding:
        if not self.permits(to):
            raise Denied(
                f"{self.caller} has no right to call {to}",
                remedy="a service names what it calls in `needs` or `uses`; a token in its rights",
            )
        parent = current_call()
        if parent is not None and parent.deadline is not None:
            expires = parent.deadline if expires is None else min(expires, parent.deadline)
        binding = await self._router.bind(to, expires)
        if binding.handler.kind is not kind:
            right = "stream" if binding.handler.kind is HandlerKind.STREAM else "call"
            raise Invalid(f"{to} is reached by {right}(), not by {'call' if right == 'stream' else 'stream'}()")
        return binding

    def _call(
        self,
        to: str,
        handler: Handler,
        expires: float | None,
        priority: int | None,
        key: str | None,
        trace: Trace | None,
    ) -> Call:
        parent = current_call()
        if expires is None and handler.deadline is not None:
            expires = self._router.clock.now() + handler.deadline
        if parent is None:
            return Call(
                caller=self.caller,
                deadline=expires,
                priority=PRIORITY if priority is None else priority,
                key=key,
                user=self.user,
                trace=trace,
                chain=(to,),
            )
        if parent.deadline is not None and (expires is None or parent.deadline < expires):
            expires = parent.deadline
        return Call(
            caller=self.caller,
            deadline=expires,
            priority=parent.priority if priority is None else priority,
            key=key,
            user=self.user or parent.user,
            trace=trace or parent.trace,
            chain=(*parent.chain, to),
        )


class Stream:
    """The items of a stream: iterate once, `aclose` (or `async with`) to end it early.

    The handler runs in the reader's task, only as far as it is read: a slow reader slows it down by itself.
    """

    __slots__ = ("_items", "_open", "_port")

    def __init__(self, port: Port, *opening: Any) -> None:
        self._port = port
        self._open: tuple[Any, ...] | None = opening
        self._items: AsyncGenerator[Any, None] | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        if self._items is not None:
            return await self._items.__anext__()
        if self._open is None:
            raise StopAsyncIteration
        opening, self._open = self._open, None
        return await self._first(*opening)

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the stream; the handler's `finally` blocks have run when this returns, or had 2 s to."""
        self._open = None
        if self._items is not None:
            await self._items.aclose()

    async def _first(self, to: str, deadline: float | None, *rest: Any) -> Any:
        port = self._port
        expires = None if deadline is None else port._expiry(deadline)  # noqa: SLF001 - one class in two halves
        while True:
            self._items, call = await port._open(to, expires, *rest)  # noqa: SLF001
            try:
                return await self._items.__anext__()
            except Closed:
                expires = call.deadline


def _arguments(to: str, handler: Handler, message: Any, fields: dict[str, Any]) -> tuple[Any, ...]:
    if message is None:
        message = fields
    elif fields:
        raise Invalid(f"{to} was given a message and the fields {', '.join(fields)}: give one or the other")
    kind = handler.message
    if not handler.takes_message:
        return ()
    if type(message) is kind:
        return (message,)
    if isinstance(message, msgspec.Raw):
        return (_decode(to, message, kind),)
    return (convert(message, kind, what=to),)


def _decode(to: str, raw: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise invalid_from(error, to) from error
    except msgspec.DecodeError as error:
        raise Invalid(f"{to}: the body is not JSON: {error}") from error
