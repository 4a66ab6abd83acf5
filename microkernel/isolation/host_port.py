"""The kernel's end of a port and a bus that a service uses from away (hot: once a message).

Calls are made through the service's real port, in the name of the call that the service answers, so that its rights,
deadline, priority and trace hold as they do for a service on the kernel's loop.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from microkernel.capability import ALL
from microkernel.errors import MicrokernelError
from microkernel.events import Event, Subscription
from microkernel.inputs import Inputs
from microkernel.isolation import frames
from microkernel.isolation.frames import Ask, Options
from microkernel.isolation.guest import CRASHED, LOG, LogLine
from microkernel.isolation.guest_port import DELIVER, DENIED, MONITOR, SUBSCRIBE, Refusal
from microkernel.isolation.kinds import kind_named
from microkernel.isolation.link import Link
from microkernel.isolation.packing import Packing
from microkernel.message import _current
from microkernel.monitors import Monitor
from microkernel.port import Port
from microkernel.router import Router

__all__ = ["HostPort"]


class HostPort:
    """Answers what one service asks of the kernel. `crashed` hears of a failure of its own tasks."""

    def __init__(
        self,
        router: Router,
        port: Port,
        packing: Packing,
        crashed: Callable[[Exception], None],
        log: logging.Logger,
    ) -> None:
        self._router = router
        self._port = port
        self._packing = packing
        self._crashed = crashed
        self._log = log
        self._followed: dict[int, Subscription | Monitor] = {}
        self._inputs: dict[int, Inputs[Any]] = {}
        self.link: Link

    async def call(self, frame: Ask) -> tuple[Any, Any]:
        """Call another service, or send to it one way."""
        packing, to, options = self._packing, frame.to, frame.options or Options()
        port = self._continue(frame, options)
        if to == DELIVER:
            subject, patience, body = packing.unpack(frame.body, tuple[str, float, Any], "an event")
            await port.deliver(subject, body, deadline=patience)
            return packing.pack(None, to), None
        message = packing.unpack(frame.body, Any, f"the message to {to}")
        if options.one_way:
            await port.send(to, message, priority=options.priority)
            return packing.pack(None, to), None
        result = await port.call(
            to,
            message,
            deadline=options.deadline,
            priority=options.priority,
            idempotency_key=options.key,
            trace=options.trace,
        )
        return packing.pack(result, f"the result of {to}"), packing.name(result, self._declared(to))

    def stream(self, frame: frames.Open) -> AsyncGenerator[tuple[Any, Any], None]:
        """Open a stream of another service, or subscribe: at once, so that nothing published after it is missed.

        Raises what the bus has against a subscription, and the port against a monitor.
        """
        if frame.to == MONITOR:
            monitor = self._port.monitor(self._packing.unpack(frame.body, str, "a monitor"))
            self._followed[frame.id] = monitor
            return self._changes(monitor)
        if frame.to != SUBSCRIBE:
            return self._items(frame)
        asked = self._packing.unpack(frame.body, dict[str, Any], "a subscription")
        subscription = self._router.bus.subscribe(asked["pattern"], **asked["options"])
        self._followed[frame.id] = subscription
        return self._events(subscription)

    def input(self, frame: frames.Input | frames.Finish) -> None:
        """Send an item into a stream of another service."""
        inputs = self._inputs.get(frame.id)
        if inputs is None:
            return
        if isinstance(frame, frames.Finish):
            inputs.finish()
            return
        try:
            inputs.put_now(self._packing.unpack(frame.body, Any, f"an item for {inputs.target}"))
        except MicrokernelError as error:
            self._log.warning("an item for %s was not taken: %s", inputs.target, error)

    def stream_ended(self, number: int) -> None:
        """Nobody reads it any more."""
        self._inputs.pop(number, None)
        followed = self._followed.pop(number, None)
        if followed is not None:
            followed.close()

    def tell(self, frame: frames.Send | frames.Publish) -> None:
        """An event, a line of the log, or a crash."""
        try:
            if isinstance(frame, frames.Publish):
                kind = kind_named(frame.kind)
                self._port.publish(frame.subject, self._packing.unpack(frame.body, kind, frame.subject))
            elif frame.to == LOG:
                _log(self._packing.unpack(frame.body, LogLine, "a line of the log"))
            elif frame.to == DENIED:
                refusal = self._packing.unpack(frame.body, Refusal, "a denial")
                port = self._narrowed(refusal.caller, refusal.user)
                port.denied(refusal.act, refusal.target, refusal.why, peer=refusal.peer)
            elif frame.to == CRASHED:
                error = self._packing.unpack(frame.body, Any, "a crash")
                self._crashed(self._packing.unpack_error(error))
        except MicrokernelError as error:
            self._log.warning("what the service says was not heard: %s", error)

    async def _items(self, frame: frames.Open) -> AsyncGenerator[tuple[Any, Any], None]:
        packing, to, options = self._packing, frame.to, frame.options or Options()
        port = self._continue(frame, options)
        message = packing.unpack(frame.body, Any, f"the message to {to}")
        stream = port.stream(to, message, deadline=options.deadline, priority=options.priority, trace=options.trace)
        if stream.inputs is not None:
            stream.inputs.on_room = lambda count: self._tell_room(frame.id, count)
            self._inputs[frame.id] = stream.inputs
        async with aclosing(stream):
            async for item in stream:
                yield packing.pack(item, f"an item of {to}"), packing.name(item, self._declared(to))

    def _tell_room(self, number: int, count: int) -> None:
        self.link.post(frames.Room(number, count))

    async def _events(self, subscription: Subscription) -> AsyncGenerator[tuple[Any, Any], None]:
        async for event in subscription:
            try:
                yield self._packed(event, subscription.dropped)
            except MicrokernelError as error:  # the others can be sent: the subscription goes on
                self._log.warning("the service cannot be told of %s: %s", event.subject, error)

    async def _changes(self, monitor: Monitor) -> AsyncGenerator[tuple[Any, Any], None]:
        async for change in monitor:
            yield self._packing.pack(change, monitor.service), self._packing.name(change, Any)

    def _packed(self, event: Event, dropped: int) -> tuple[Any, Any]:
        packing, fields = self._packing, (event.subject, event.offset, dropped, event.body)
        name = packing.name(event.body, Any)
        kind = None if name is None else ("tuple", "str", "int", "int", name)
        return packing.pack(fields, f"the event {event.subject}"), kind

    def _continue(self, frame: Ask | frames.Open, options: Options) -> Port:
        """Go on with the call that the service answers, in this task; the port is the service's, or one narrowed."""
        _current.set(None if frame.context is None else frame.context.call(self._router.clock.now()))
        return self._narrowed(options.caller, options.user)

    def _narrowed(self, caller: str | None, user: str | None) -> Port:
        """The port of whom the service acts for; its own where it acts for nobody. The guest held it to its rights."""
        return self._port if caller is None else self._port.narrow(caller=caller, rights=ALL, user=user)

    def _declared(self, to: str) -> Any:
        """The type that `to` says it answers with; `Any` if it is gone by now."""
        name, _, method = to.partition(".")
        registry = self._router.registry
        binding = registry.entry(name).bindings.get(method) if name in registry else None
        return Any if binding is None else binding.handler.result


def _log(line: LogLine) -> None:
    logger = logging.getLogger(line.logger)
    if logger.isEnabledFor(line.level):
        record = logger.makeRecord(line.logger, line.level, "", 0, line.text, (), None)
        record.created = line.created
        logger.handle(record)
