"""What a caller holds: the right to call (hot: once a message)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any

import msgspec

from microkernel.capability import ALL, Rights
from microkernel.errors import Denied, Invalid, Overloaded
from microkernel.events import Subscription
from microkernel.message import PRIORITY, Call, convert, current_call
from microkernel.registry import Binding
from microkernel.router import Router
from microkernel.service import Handler, HandlerKind
from microkernel.trace import Trace

__all__ = ["Port", "Stream"]

MAX_SENDS = 4096  # one-way messages on their way at a time


class Port:
    """Calls services by name, with the rights of its holder; narrower ports are made from it, never wider ones.

    Messages are given as a struct, a dict, a dataclass, JSON text (`msgspec.Raw`), or as keyword fields.
    """

    def __init__(self, router: Router, *, caller: str, rights: Rights = ALL, user: str | None = None) -> None:
        self.caller = caller
        self.user = user
        self._router = router
        self._rights: tuple[Rights, ...] = (rights,)
        self._bindings: dict[str, Binding] = {}

    def narrow(self, *, caller: str, rights: Rights, user: str | None = None) -> Port:
        """A port that may call what this one may and `rights` permits."""
        port = Port(self._router, caller=caller, rights=rights, user=user or self.user)
        port._rights = (*self._rights, rights)
        return port

    def permits(self, target: str) -> bool:
        """Whether this port may call `target`."""
        return all(rights.permits(target) for rights in self._rights)

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

        `deadline` is in seconds from now; without one the handler's own applies, and in any case that of the call
        being answered. `priority` is 0 (urgent) … 9. Raises `MicrokernelError`; see its subclasses for the causes.
        """
        binding = self._bindings.get(to)
        if binding is None or binding.gate.closed is not None:
            binding = await self._bind(to, HandlerKind.CALL, deadline)
        arguments = _arguments(to, binding.handler, message, fields)
        call = self._call(to, binding.handler, deadline, priority, idempotency_key, trace)
        return await binding.gate.call(arguments, call)

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
        return Stream(self, to, message, fields, deadline, priority, trace)

    async def send(self, to: str, message: Any = None, /, *, priority: int | None = None, **fields: Any) -> None:
        """Call `service.method` one way: nobody waits for the result; a failure is logged as a dead letter."""
        binding = await self._bind(to, HandlerKind.CALL, None)
        if len(self._router.sends) >= MAX_SENDS:
            raise Overloaded(f"{MAX_SENDS} one-way messages are on their way", retry_after=0.1)
        arguments = _arguments(to, binding.handler, message, fields)
        call = self._call(to, binding.handler, None, priority, None, None)
        self._router.sends.spawn(binding.gate.call(arguments, call), to)

    def publish(self, subject: str, message: Any = None, /, **fields: Any) -> None:
        """Tell all subscribers of `subject`; never waits."""
        self._router.bus.publish(subject, fields if message is None else message)

    def subscribe(self, subject: str, *, group: str | None = None, limit: int = 1024) -> Subscription:
        """Events of `subject` (`a.*`, `a.>`), to iterate over and to close."""
        return self._router.bus.subscribe(subject, group=group, limit=limit)

    async def _open(
        self,
        to: str,
        message: Any,
        fields: dict[str, Any],
        deadline: float | None,
        priority: int | None,
        trace: Trace | None,
    ) -> AsyncGenerator[Any, None]:
        binding = self._bindings.get(to)
        if binding is None or binding.gate.closed is not None:
            binding = await self._bind(to, HandlerKind.STREAM, deadline)
        arguments = _arguments(to, binding.handler, message, fields)
        return binding.gate.stream(arguments, self._call(to, binding.handler, deadline, priority, None, trace))

    async def _bind(self, to: str, kind: HandlerKind, deadline: float | None) -> Binding:
        if not self.permits(to):
            raise Denied(
                f"{self.caller} has no right to call {to}",
                remedy="a service names what it calls in `needs` or `uses`; a token in its rights",
            )
        parent = current_call()
        expires = None if deadline is None else self._router.clock.now() + deadline
        if parent is not None and parent.deadline is not None:
            expires = parent.deadline if expires is None else min(expires, parent.deadline)
        binding = await self._router.bind(to, expires)
        if binding.handler.kind is not kind:
            right = "stream" if binding.handler.kind is HandlerKind.STREAM else "call"
            raise Invalid(f"{to} is reached by {right}(), not by {'call' if right == 'stream' else 'stream'}()")
        self._bindings[to] = binding
        return binding

    def _call(
        self,
        to: str,
        handler: Handler,
        deadline: float | None,
        priority: int | None,
        key: str | None,
        trace: Trace | None,
    ) -> Call:
        parent = current_call()
        seconds = handler.deadline if deadline is None else deadline
        expires = None if seconds is None else self._router.clock.now() + seconds
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
        if self._items is None:
            if self._open is None:
                raise StopAsyncIteration
            opening, self._open = self._open, None
            self._items = await self._port._open(*opening)  # noqa: SLF001 - one class in two halves
        return await self._items.__anext__()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the stream; the handler's `finally` blocks have run when this returns."""
        self._open = None
        if self._items is not None:
            await self._items.aclose()


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
        sentence, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".") or None
        raise Invalid(f"{to}: {sentence}" + (f" in field '{field}'" if field else ""), field=field) from error
    except msgspec.DecodeError as error:
        raise Invalid(f"{to}: the body is not JSON: {error}") from error
