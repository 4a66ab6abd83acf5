"""What a caller holds: the right to call (hot: once a message)."""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import msgspec

from microkernel.arguments import arguments_of, decoder_of
from microkernel.audit import Act
from microkernel.begin import Rest, begin
from microkernel.capability import ALL, Rights
from microkernel.errors import Denied, Invalid, MicrokernelError, NotFound, Overloaded, Unavailable
from microkernel.events import LIMIT, MAX_BYTES, PATIENCE, Overflow, Subscription
from microkernel.gate import Closed, Gate
from microkernel.idempotency import Name
from microkernel.inputs import Inputs
from microkernel.message import PRIORITY, Call, _current, current_call
from microkernel.monitors import Monitor
from microkernel.registry import Binding
from microkernel.router import Router
from microkernel.run import Method
from microkernel.service import Handler, HandlerKind
from microkernel.stream import Stream
from microkernel.trace import Trace

__all__ = ["Method", "Port", "Stream"]

MAX_SENDS = 4096  # one-way messages on their way at a time
MAX_DEADLINE = 86_400.0  # seconds; what takes longer than a day is no call
RESERVED = ("service.", "kernel.", "audit.", "trace.")  # subjects that services act on, such as giving memory back
MAX_KNOWN = 1024  # subjects of which a port remembers whether its holder may publish or hear them


class _Plain(NamedTuple):
    """A handler that takes JSON text without a further look."""

    gate: Gate
    decode: Callable[[msgspec.Raw], Any]
    method: Method


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
        """`reserved`: may publish what only the kernel tells, as `service.>` and `kernel.>`; no narrower port may."""
        self.caller = caller
        self.user = user
        self._router = router
        self._reserved = reserved
        self._rights: tuple[Rights, ...] = (rights,)
        self._granted: tuple[Rights, ...] = ()  # those of narrowings: a service's own port publishes what it likes
        self._top_priority = 0
        self._heard: dict[str, bool] = {}
        self._told: dict[str, bool] = {}
        self._bindings: dict[str, Binding] = {}
        self._methods: dict[str, Method] = {}
        self._plain: dict[str, _Plain] = {}
        self._roots: dict[str, Call] = {}  # the calls of those who answer none themselves, by handler

    def narrow(self, *, caller: str, rights: Rights, user: str | None = None, top_priority: int = 0) -> Port:
        """A port that may do what this one may and `rights` permits, and no more urgently than `top_priority`."""
        port = Port(self._router, caller=caller, rights=rights, user=user or self.user)
        port._rights = (*self._rights, rights)
        port._granted = (*self._granted, rights)
        port._top_priority = max(self._top_priority, top_priority)
        return port

    def permits(self, target: str) -> bool:
        """Whether this port may call `target`, on whichever node."""
        address = target.partition("@")[0]
        return all(rights.permits(address) for rights in self._rights)

    def may_publish(self, subject: str) -> bool:
        """Whether the rights that this port was narrowed by permit to publish on `subject`."""
        told = self._told.get(subject)
        return self._learn(self._told, subject, Rights.permits_publish) if told is None else told

    def may_hear(self, pattern: str) -> bool:
        """Whether the rights that this port was narrowed by permit to hear `pattern`, or one subject."""
        heard = self._heard.get(pattern)
        return self._learn(self._heard, pattern, Rights.permits_subscribe) if heard is None else heard

    def denied(self, act: Act, target: str, why: str, *, peer: str | None = None) -> None:
        """Have it audited that this port's holder was denied something; `peer` is the address it came from."""
        self._router.audit.denied(act, target, why, who=self.caller, user=self.user, peer=peer)

    def dead_letter(self, to: str, why: str) -> None:
        """A one-way message to `to` was lost before it was sent."""
        self._router.dead_letters.message(to, why)

    def reaches(self, name: str) -> bool:
        """Whether this node has a service `name`, whatever its state, or another one answers it."""
        return name in self._router.registry or self._router.nodes.knows(name)

    def is_idempotent(self, target: str) -> bool:
        """Whether `target` may be called again without harm, as far as that is known without asking another node."""
        handler = self._router.known(target)
        return handler is not None and handler.idempotent

    def call(
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
    ) -> Coroutine[Any, Any, Any]:
        """Call `service.method` and return its result.

        `deadline` is in seconds from now, at most a day; without one the handler's own applies, and in any case that
        of the call being answered. `priority` is 0 (urgent) … 9. A call that has not begun when its service restarts
        waits for the next incarnation. Calls under the same `idempotency_key` run once, and for 120 s have one outcome.
        Raises `MicrokernelError`; see its subclasses for the causes.
        """
        if fields or deadline is not None or priority is not None or idempotency_key is not None or trace is not None:
            return self._call(to, message, fields, deadline, priority, idempotency_key, trace)
        method = self._methods.get(to)
        return self._call(to, message) if method is None else method(message)

    def call_json(self, to: str, message: msgspec.Raw) -> Coroutine[Any, Any, Any]:
        """`call` with JSON text and no options: the wire's way, with less to look at."""
        call = self._quick_call(to, message)
        return self._call(to, message) if call is None else call

    def method(self, to: str) -> Method:
        """The right to call `service.method`, bound once: `await method(message)` is the quickest call there is.

        It takes a message as `call` does, without fields and options, and finds the next incarnation by itself.
        """
        method = self._methods.get(to)
        if method is None:
            slow, child = functools.partial(self._call, to), functools.partial(self._child, to)
            method = self._methods[to] = Method(slow, child)
        return method

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
        inputs: Inputs[Any] = Inputs(to)

        async def opening() -> tuple[Gate, tuple[Any, ...], Call]:
            expires = None if deadline is None else self._expiry(deadline)
            while True:
                binding = await self._bind(to, HandlerKind.STREAM, expires)
                arguments = arguments_of(to, binding.handler, message, fields)
                call = self._make_call(to, binding.handler, expires, priority, None, trace)
                inputs.expect(binding.handler.inputs)
                try:
                    gate = binding.gate.pick(arguments, call)
                    await gate.admit(call)
                except Closed as closed:
                    expires = call.deadline or closed.expires
                else:
                    if call.trace is not None and self._router.spans.wants(call):
                        stream.on_end = self._router.spans.begin(to, call)
                    if binding.handler.inputs is None:
                        return gate, arguments, call
                    inputs.open(binding.handler.credit)
                    return gate, (*arguments, inputs), call

        stream = Stream(opening, inputs)
        return stream

    async def send(self, to: str, message: Any = None, /, *, priority: int | None = None, **fields: Any) -> None:
        """Call `service.method` one way: nobody waits for the result; a failure is logged as a dead letter."""
        binding = await self._bind(to, HandlerKind.CALL, None)
        if len(self._router.sends) >= MAX_SENDS:
            raise Overloaded(f"{MAX_SENDS} one-way messages are on their way", retry_after=0.1)
        arguments = arguments_of(to, binding.handler, message, fields)
        call = self._make_call(to, binding.handler, None, priority, None, None)
        self._router.sends.spawn(self._carry(to, binding, arguments, call), to)

    async def send_inline(self, to: str, message: Any = None, /, *, priority: int | None = None) -> None:
        """`send` that carries the message out in the caller's task, for callers that own a task for it.

        Raises why it cannot be sent, as `send` does; what becomes of it then is no concern of the caller's.
        """
        binding = self._bindings.get(to)
        if binding is None or binding.gate.closed is not None:
            binding = await self._bind_method(to, None)
        arguments = arguments_of(to, binding.handler, message, None)
        if priority is None and _current.get() is None:
            call = self._roots[to]
        else:
            call = self._make_call(to, binding.handler, None, priority, None, None)
        try:
            await self._carry(to, binding, arguments, call)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, its sender has left
            self._router.send_failed(to, error)

    def send_json(self, to: str, message: msgspec.Raw) -> Awaitable[None] | None:
        """`send_inline` with JSON text and without a priority: what is left of it, None where its handler has ended."""
        call = self._quick_call(to, message)
        if call is None:
            return self.send_inline(to, message)
        try:
            rest = begin(call)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises, its sender has left
            self._router.send_failed(to, error)
            return None
        return self._sent(to, rest) if isinstance(rest, Rest) else None

    async def _sent(self, to: str, rest: Rest[Any]) -> None:
        try:
            await rest
        except Exception as error:  # noqa: BLE001 - as above
            self._router.send_failed(to, error)

    async def _carry(self, to: str, binding: Binding, arguments: tuple[Any, ...], call: Call) -> Any:
        """A call without its caller: what has not begun when its service restarts waits, as other calls do."""
        while True:
            try:
                return await self._run(to, binding, arguments, call)
            except Closed:
                binding = await self._router.bind(to, call.deadline)
                arguments = arguments_of(to, binding.handler, arguments[0] if arguments else None, {})

    def publish(self, subject: str, message: Any = None, /, **fields: Any) -> None:
        """Tell all subscribers of `subject`; never waits. Raises `Denied` for what only the kernel may tell."""
        self._check_publish(subject)
        self._router.bus.publish(subject, fields if message is None else message)

    async def deliver(self, subject: str, message: Any = None, /, *, deadline: float = PATIENCE, **fields: Any) -> None:
        """`publish` once all subscriptions that let publishers wait (`Overflow.WAIT`) have room.

        Until then nobody gets the event. Raises `Denied` as `publish` does, `DeadlineExceeded` after `deadline`
        seconds, and `Overloaded` when too many publishers wait.
        """
        self._check_publish(subject)
        patience = self._expiry(deadline) - self._router.clock.now()
        await self._router.bus.deliver(subject, fields if message is None else message, patience=patience)

    def subscribe(
        self,
        subject: str,
        *,
        group: str | None = None,
        limit: int = LIMIT,
        max_bytes: int = MAX_BYTES,
        overflow: Overflow | str = Overflow.DROP_OLDEST,
        since: int | None = None,
    ) -> Subscription:
        """Events of `subject` (`a.*`, `a.>`), to iterate over and to close.

        Of a user's `group` one member gets each event. At most `limit` events of `max_bytes` wait to be read; past
        that `overflow` says what happens. `since` is the offset of the last event that was seen, 0 for none: all later
        ones come first, without a gap. Raises `Gone` when some are no longer kept, `PreconditionFailed` when such
        events are not kept at all, and `Overloaded` when the node has too many subscriptions.
        """
        self._check_hear(subject)
        return self._router.bus.subscribe(
            subject, group=group, owner=self.user, limit=limit, max_bytes=max_bytes, overflow=overflow, since=since
        )

    def monitor(self, name: str) -> Monitor:
        """`Up` and `Down` of service `name` in turn, beginning with how it is now, to iterate over and to close.

        Raises `NotFound`, and `Denied` where the rights do not cover hearing of it.
        """
        self._check_hear(f"service.{name}.*")
        self._router.registry.entry(name)
        return self._router.monitors.add(name, self._router.present(name))

    async def _call(
        self,
        to: str,
        message: Any = None,
        fields: dict[str, Any] | None = None,
        deadline: float | None = None,
        priority: int | None = None,
        key: str | None = None,
        trace: Trace | None = None,
    ) -> Any:
        """A call that is not plain: it is bound, converted, and waits for the next incarnation if need be."""
        expires = None if deadline is None else self._expiry(deadline)
        while True:
            binding = self._bindings.get(to)
            if binding is None or binding.gate.closed is not None:
                try:
                    binding = await self._bind_method(to, expires)
                except (NotFound, Unavailable):
                    # Nobody is there to answer, but the call may have been answered before.
                    kept = None if key is None else self._router.outcomes.ended(self._name(to, key))
                    if kept is None:
                        raise
                    return kept.result()
            arguments = arguments_of(to, binding.handler, message, fields)
            if expires is None and priority is None and trace is None and key is None and _current.get() is None:
                call = self._roots[to]
            else:
                call = self._make_call(to, binding.handler, expires, priority, key, trace, settles=key is not None)
            if key is not None:
                once = functools.partial(self._carry, to, binding, arguments, call)
                return await self._router.outcomes.call(self._name(to, key), arguments, once, call.deadline)
            try:
                return await self._run(to, binding, arguments, call)
            except Closed as closed:
                expires = call.deadline or closed.expires

    def check_age(self, to: str, key: str, age: float) -> None:
        """Refuse a call under `key` that was first made `age` seconds ago and may have been forgotten since.

        Raises `Gone`.
        """
        self._router.outcomes.check_age(self._name(to, key), age)

    def _name(self, to: str, key: str) -> Name:
        """What stands for the call under `key`."""
        return Name(self.user or self.caller, to, key)

    def _run(self, to: str, binding: Binding, arguments: tuple[Any, ...], call: Call) -> Awaitable[Any]:
        """The handler's work, to be awaited. Raises `Closed` where nobody is there to do it."""
        work = binding.gate.pick(arguments, call).call(arguments, call)
        if call.trace is not None and self._router.spans.wants(call):
            return self._router.spans.around(work, to, call)
        return work

    def _quick_call(self, to: str, message: msgspec.Raw) -> Coroutine[Any, Any, Any] | None:
        """The call of a bound handler with JSON text; None where it takes the slow way, which says what is wrong."""
        plain = self._plain.get(to)
        if plain is None or plain.gate.closed is not None:
            return None
        try:
            given = plain.decode(message)
        except (TypeError, msgspec.MsgspecError, MicrokernelError):
            return None
        return plain.method(given)

    async def _bind_method(self, to: str, expires: float | None) -> Binding:
        """Wait for who answers `to`, and go on calling it the quick way."""
        binding = self._bindings[to] = await self._bind(to, HandlerKind.CALL, expires)
        handler = binding.handler
        priority = max(PRIORITY, self._top_priority)
        root = Call(caller=self.caller, priority=priority, user=self.user, chain=(to,), limit=handler.deadline)
        self._roots[to] = root
        self._plain.pop(to, None)
        if isinstance(binding.gate, Gate):  # of several instances each call chooses one
            method = self.method(to)
            method.bind(binding.gate, handler.message if handler.takes_message else None, root)
            if handler.takes_message:
                self._plain[to] = _Plain(binding.gate, decoder_of(handler.message).decode, method)
        return binding

    def _child(self, to: str, parent: Call) -> Call | None:
        """The call that is made while `parent` is answered; None if it may be traced, which is done the slow way."""
        if parent.trace is not None:
            return None
        return self._make_call(to, self._bindings[to].handler, None, None, None, None, settles=False)

    def _expiry(self, deadline: float) -> float:
        """The moment that is `deadline` seconds away, on the clock."""
        if deadline < 0 or math.isnan(deadline):
            raise Invalid(f"a deadline is in seconds from now, not {deadline:g}", field="deadline")
        return self._router.clock.now() + min(deadline, MAX_DEADLINE)

    def _learn(self, known: dict[str, bool], subject: str, permits: Callable[[Rights, str], bool]) -> bool:
        if len(known) >= MAX_KNOWN:
            known.clear()
        known[subject] = answer = all(permits(rights, subject) for rights in self._granted)
        return answer

    def _check_call(self, to: str) -> None:
        if not self.permits(to):
            self.denied(Act.CALL, to, "its rights do not cover it")
            raise Denied(
                f"{self.caller} has no right to call {to}",
                remedy="a service names what it calls in `needs` or `uses`; a token in its rights",
            )

    def _check_hear(self, subject: str) -> None:
        if self._granted and not self.may_hear(subject):
            self.denied(Act.SUBSCRIBE, subject, "its rights do not cover it")
            raise Denied(f"{self.caller} has no right to {subject}")

    def _check_publish(self, subject: str) -> None:
        if not self._reserved and subject.startswith(RESERVED):
            self.denied(Act.PUBLISH, subject, "only the kernel tells of services and itself")
            raise Denied(
                f"{self.caller} has no right to publish {subject}: only the kernel tells of services and itself"
            )
        if self._granted and not self.may_publish(subject):
            self.denied(Act.PUBLISH, subject, "its rights do not cover it")
            raise Denied(f"{self.caller} has no right to {subject}")

    async def _bind(self, to: str, kind: HandlerKind, expires: float | None) -> Binding:
        self._check_call(to)
        parent = current_call()
        if parent is not None and parent.deadline is not None:
            expires = parent.deadline if expires is None else min(expires, parent.deadline)
        binding = await self._router.bind(to, expires)
        if binding.handler.kind is not kind:
            right = "stream" if binding.handler.kind is HandlerKind.STREAM else "call"
            raise Invalid(f"{to} is reached by {right}(), not by {'call' if right == 'stream' else 'stream'}()")
        return binding

    def _make_call(
        self,
        to: str,
        handler: Handler,
        expires: float | None,
        priority: int | None,
        key: str | None,
        trace: Trace | None,
        *,
        settles: bool = True,
    ) -> Call:
        """Unless it `settles`, a deadline that is the handler's own is left to whoever asks for it first."""
        parent = current_call()
        if trace is None and parent is not None:
            trace = parent.trace
        if trace is not None:
            trace = trace.child()
        limit = handler.deadline if expires is None else None
        if limit is not None and (settles or (parent is not None and parent.deadline is not None)):
            expires = self._router.clock.now() + limit
            limit = None
        if parent is None:
            return Call(
                caller=self.caller,
                deadline=expires,
                priority=max(PRIORITY if priority is None else priority, self._top_priority),
                key=key,
                user=self.user,
                trace=trace,
                chain=(to,),
                limit=limit,
            )
        if parent.deadline is not None and (expires is None or parent.deadline < expires):
            expires = parent.deadline
        return Call(
            caller=self.caller,
            deadline=expires,
            priority=max(parent.priority if priority is None else priority, self._top_priority),
            key=key,
            user=self.user or parent.user,
            trace=trace,
            chain=(*parent.chain, to),
            limit=limit,
        )
