"""What one client has running on a node: calls, streams, subscriptions and monitors. Hot: once a message.

It belongs to the client's session, not to a link: while no link is there, what is ready waits in the session's state,
within its bounds, and producers wait beyond them. The thinking is in `server_session`; here is what needs a loop. A
crew carries it out: what does not wait is done where it was read, without a task of its own.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable
from contextlib import aclosing
from typing import Any

import msgspec

from microkernel.audit import Act
from microkernel.begin import Rest, begin
from microkernel.capability import Identity
from microkernel.errors import (
    CallCancelled,
    DeadlineExceeded,
    Denied,
    MicrokernelError,
    Overloaded,
    Unavailable,
    from_exception,
)
from microkernel.events import Event, Subscription
from microkernel.inputs import Inputs
from microkernel.monitors import Monitor
from microkernel.port import Port
from microkernel.trace import Trace, parse_traceparent
from microkernel.wire import codec
from microkernel.wire.body import Body
from microkernel.wire.crew import Crew, Do, Read
from microkernel.wire.limits import BUSY, FULL
from microkernel.wire.pieces import Listens, Opened, Timed, Told
from microkernel.wire.ports import Ports
from microkernel.wire.pump import Handlers, Pump
from microkernel.wire.server_session import ServerSession
from microkernel.wire.turns import BURST, Turns

__all__ = ["Work"]

RESERVED = frozenset({"audit", "dead", "kernel", "process", "service", "trace"})  # first names of the node's own events
ENVELOPE = 1024  # bytes of a frame that are not its body


class Work:
    """All that a client has started and that has not ended."""

    def __init__(self, session: ServerSession, pump: Pump, port: Port, identity: Identity, turns: Turns) -> None:
        """`port` is narrowed to what `identity` may do; `turns` are those of all clients."""
        self.identity = identity
        self.session = session
        self._pump = pump
        self._ports = Ports(port, identity, session.session)
        self._port = self._ports.own
        self._longest = max(1, session.limits.text - ENVELOPE)
        name = f"wire {session.session}"
        self._crew: Crew[Any] = Crew(self._cancelled, name=name, rests=self._flush, waits=self.touch)
        self._numbers = itertools.count(-1, -1)  # of work that has no id, or outlives it
        self._listening: dict[int, int] = {}  # subscriptions and monitors: id and number
        self._sends: set[int] = set()
        self._turns = turns
        self._burst = 0  # bytes of results since the last turn
        self._credit: dict[int, asyncio.Event] = {}
        self._inputs: dict[int, Inputs[Any]] = {}
        self._idle: asyncio.Event | None = None  # somebody waits for all to have ended
        self._resumed = asyncio.Event()  # set when a link has come
        self._began = asyncio.get_running_loop().time()
        self.handlers: Handlers = {
            codec.Call: self._call,
            codec.Cancel: self._cancel,
            codec.Credit: self._more_credit,
            codec.End: self._input_end,
            codec.Item: self._input,
            codec.Monitor: self._monitor,
            codec.Open: self._open,
            codec.Publish: self._publish,
            codec.Send: self._send,
            codec.Subscribe: self._subscribe,
            codec.Unsubscribe: self._unsubscribe,
        }

    def attach(self, session: ServerSession, pump: Pump) -> None:
        """Go on over another link."""
        self.session, self._pump = session, pump
        self._resumed.set()
        self._resumed = asyncio.Event()

    def _flush(self) -> None:
        """Send what is ready: nothing more will come before the next frame is read."""
        self._burst = 0
        self._pump.flush()

    def touch(self) -> None:
        """The session has changed."""
        self._pump.touch()

    async def serve(self, read: Read) -> None:
        """Read to the end of a link, and carry out what comes; what it has begun goes on. Raises what `read` raised."""
        await self._crew.serve(read)

    async def drained(self) -> None:
        """Return when no call and no stream is open."""
        while self.session.in_flight:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()

    def give_up(self) -> None:
        """The node leaves now: what has not ended and may be made again without harm, the client is to make again."""
        for number, work in self._crew.unfinished():
            if isinstance(work, codec.Call | Timed) and self._port.is_idempotent(work.to):
                why = f"this node has left before {work.to} was done"
                self.session.fail(number, Unavailable(why, may_have_run=False))
                self._crew.cancel(number)
        self.touch()

    async def end(self, *, at_once: bool = False) -> None:
        """Cancel all that runs; returns when it has ended. One-way messages are carried out, but for `at_once`."""
        self.session.state.clear()
        await self._crew.close(spare=frozenset() if at_once else self._sends)

    def hurry(self) -> None:
        """Do not wait for one-way messages either, now that it ends."""
        for number in tuple(self._sends):
            self._crew.cancel(number)

    # What admitted messages say

    def _call(self, message: codec.Call) -> None:
        if message.deadline is None:
            self._crew.put(message.id, message, self._answer)
        else:
            ends = asyncio.get_running_loop().time() + message.deadline / 1000
            self._crew.put(message.id, Timed(message.to, message, ends), self._answer_in_time)

    def _open(self, message: codec.Open) -> None:
        number, to = message.id, message.to
        try:
            stream = self._ports.of(message.user).stream(
                to,
                codec.given(message.body, what=to),
                deadline=_seconds(message.deadline),
                priority=message.priority,
                trace=_trace(message.trace),
            )
        except MicrokernelError as error:
            self.session.fail(number, error)
            return
        if stream.inputs is not None:  # now, not in the task: the end of them may be in the same frame
            stream.inputs.on_room = functools.partial(self._grant, number)
            self._inputs[number] = stream.inputs
        self._credit[number] = asyncio.Event()
        self._crew.put(number, Opened(number, to, stream), self._run)

    def _more_credit(self, message: codec.Credit) -> None:
        if (wake := self._credit.get(message.id)) is not None:
            wake.set()

    def _cancel(self, message: codec.Cancel | codec.Item) -> None:
        self._crew.cancel(message.id)

    def _unsubscribe(self, message: codec.Unsubscribe) -> None:
        if (number := self._listening.pop(message.id, None)) is not None:
            self._crew.cancel(number)

    def _send(self, message: codec.Send) -> None:
        self._put_one_way(message, self._deliver)

    def _put_one_way(self, work: Any, do: Do[Any]) -> None:
        if len(self._sends) >= self.session.limits.inflight:
            self.session.complain(Overloaded(f"{len(self._sends)} one-way messages wait", retry_after=0.1))
            return
        number = next(self._numbers)
        self._sends.add(number)
        self._crew.put(number, work, do)

    def _publish(self, message: codec.Publish) -> None:
        try:
            self._refuse_subject_of_node(message.subject)
            body: Any = codec.decode_body(message.body, what=message.subject)
            self._event_body(message.subject, body)  # what cannot be sent to subscribers is its publisher's to know
        except MicrokernelError as error:
            self.session.complain(error)
            return
        self._put_one_way(Told(message.subject, body), self._tell)

    def _subscribe(self, message: codec.Subscribe) -> None:
        try:
            subscription = self._port.subscribe(message.subject, group=message.group, since=message.since)
        except MicrokernelError as error:
            self.session.fail(message.id, error)
            return
        self._listen(message.id, subscription)

    def _monitor(self, message: codec.Monitor) -> None:
        try:
            monitor = self._port.monitor(message.service)
        except MicrokernelError as error:
            self.session.fail(message.id, error)
            return
        self._listen(message.id, monitor)

    def _listen(self, number: int, source: Subscription | Monitor) -> None:
        # The id is free as soon as the client has unsubscribed, and this may take a moment longer.
        self._listening[number] = place = next(self._numbers)
        self._crew.put(place, Listens(number, source), self._listen_to)

    def _input(self, message: codec.Item) -> None:
        inputs = self._inputs.get(message.id)
        if inputs is None:
            return
        try:
            inputs.put_now(codec.given(message.body, what=f"an item for {inputs.target}"))
        except MicrokernelError as error:  # the order of items is part of what they say: the rest is worth nothing
            self.session.fail(message.id, error)
            self._cancel(message)

    def _input_end(self, message: codec.End) -> None:
        if (inputs := self._inputs.get(message.id)) is not None:
            inputs.finish()

    def _grant(self, number: int, count: int) -> None:
        self.session.grant(number, count)
        self._pump.touch()

    def _refuse_subject_of_node(self, subject: str) -> None:
        """Services act on events; whoever could publish theirs would have their say over all of them."""
        first = subject.partition(".")[0]
        if first in RESERVED or self._port.reaches(first):
            self._port.denied(Act.PUBLISH, subject, "it is for the node itself to publish")
            raise Denied(
                f"{subject} is for the node itself to publish",
                remedy="publish on a subject whose first name is no service's, or call the service",
            )

    # What the crew does

    def _cancelled(self, number: int, work: Any) -> None:
        """`work` was cancelled, whether or not it had begun."""
        if isinstance(work, Listens):
            work.source.close()
        elif isinstance(work, codec.Send | Told):
            self._sends.discard(number)
        else:
            self._forget(number)
            self.session.fail(number, CallCancelled(f"the call to {work.to} was cancelled"))
        self._changed()

    def _forget(self, number: int) -> None:
        self._credit.pop(number, None)
        self._inputs.pop(number, None)

    def _changed(self) -> None:
        """Something was put into the session, or has ended."""
        self._pump.touch()
        if self._idle is not None and not self.session.in_flight:
            self._idle.set()
            self._idle = None

    def _answer(self, number: int, message: codec.Call) -> Awaitable[None] | None:
        """Answer a call without a deadline; most are plain, and wait for nothing."""
        to, body = message.to, message.body
        if not (message.is_plain and type(body) is msgspec.Raw and self.session.has_room):
            return self._finish(number, to, self._ask(message))
        try:
            port = self._port if message.user is None else self._ports.of(message.user)
            result = begin(port.call_json(to, body))
            if type(result) is Rest:
                return self._finish(number, to, result)
            size = self._put_result(number, to, result)  # there was room a moment ago
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its caller's to know
            return self._fail(number, to, error)
        self._pump.flush_if_much()  # the rest of it when the crew rests, or waits
        self._burst += size
        if self._burst >= BURST:
            self._burst = 0
            self._crew.pause(self._turns.next(self))
        return None

    def _answer_in_time(self, number: int, work: Timed) -> Awaitable[None]:
        return self._finish(number, work.to, self._ask(work.call, work.ends))

    async def _ask(self, message: codec.Call, ends: float | None = None) -> Any:
        to, port = message.to, self._ports.of(message.user)
        if self._burst >= BURST:
            self._burst = 0
            await self._turns.next(self)
        if not self.session.has_room:  # what it gives could only wait, and 256 of 1 MiB would at once
            await self._room(FULL)
            if not self.session.is_current(message.id):  # it is over with the client: no work for nobody
                raise CallCancelled("the client was cut before the call could begin", may_have_run=False)
        if message.age is not None and message.key is not None:
            # The frame may have rested on its way, but no longer than there has been a session for it.
            rested = asyncio.get_running_loop().time() - self._began
            port.check_age(to, message.key, message.age / 1000 + rested)
        return await port.call(
            to,
            codec.given(message.body, what=to),
            deadline=None if ends is None else _left(ends, to),
            priority=message.priority,
            idempotency_key=message.key,
            trace=_trace(message.trace),
        )

    async def _finish(self, number: int, to: str, answer: Awaitable[Any]) -> None:
        try:
            result = await answer
            if not self.session.has_room:
                await self._room(FULL)
            self._burst += self._put_result(number, to, result)
            self._pump.touch()
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its caller's to know
            await self._fail(number, to, error)

    def _put_result(self, number: int, to: str, result: Any) -> int:
        """Have the call end well; for how many bytes it counts in a burst."""
        body = codec.text_of(result, self._longest)
        self.session.result(number, self._body(result, f"the result of {to}") if body is None else body)
        if self._idle is not None:
            self._changed()
        return BURST if body is None else len(body)

    async def _fail(self, number: int, to: str, error: Exception) -> None:
        await self._room(FULL)
        self.session.fail(number, from_exception(error, service=to.partition(".")[0]))
        self._changed()

    async def _run(self, number: int, work: Opened) -> None:
        to, stream, what, longest = work.to, work.stream, f"an item of {work.to}", self._longest
        burst = 0
        try:
            async with aclosing(stream):
                if await self._has_credit(number):
                    async for item in stream:
                        session = self.session
                        if not (session.outbox.slack or session.has_room):
                            await self._room(BUSY)
                            session = self.session
                        text = codec.text_of(item, longest)
                        left = session.item(number, self._body(item, what) if text is None else text)
                        self._pump.touch()
                        burst += 0 if text is None else len(text)  # a long message lets others in between its parts
                        if burst > BURST:
                            burst = 0
                            await self._turns.next(self)
                        if not left and not await self._has_credit(number):
                            break
            await self._room(FULL)
            self.session.end(number)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is its caller's to know
            await self._room(FULL)
            self.session.fail(number, from_exception(error, service=to.partition(".")[0]))
        finally:
            self._forget(number)
        self._changed()

    async def _listen_to(self, number: int, work: Listens) -> None:
        source = work.source
        try:
            if isinstance(source, Subscription):
                await self._forward(work.id, source)
            else:
                await self._watch(work.id, source)
            await self._room(FULL)
            self.session.end(work.id)
        except MicrokernelError as error:
            await self._room(FULL)
            self.session.fail(work.id, error)
        finally:
            source.close()
            if self._listening.get(work.id) == number:
                del self._listening[work.id]
        self._changed()

    async def _room(self, share: float) -> None:
        """Wait until at most `share` of what may wait for this client does; then put at once, without an await."""
        while self.session.fill > share:
            if self.session.closed is None:
                await self._pump.room(share)
            elif self.session.can_resume:
                await self._resumed.wait()
            else:
                return

    async def _has_credit(self, number: int) -> bool:
        """Wait for credit; False when the stream has ended meanwhile."""
        wake = self._credit[number]
        while self.session.is_current(number):
            if self.session.credit(number):
                return True
            wake.clear()
            await wake.wait()
        return False

    def _deliver(self, number: int, message: codec.Send) -> Awaitable[None] | None:
        """Carry out a one-way message; most wait for nothing."""
        to, body = message.to, message.body
        rest = None
        if message.priority is None and message.user is None and type(body) is msgspec.Raw:
            rest = self._port.send_json(to, body)
            if rest is None:
                self._sends.discard(number)
                return None
        return self._delivered(number, message, rest)

    async def _delivered(self, number: int, message: codec.Send, rest: Awaitable[None] | None) -> None:
        try:
            if rest is None:
                body = codec.given(message.body, what=message.to)
                port = self._ports.of(message.user)
                rest = port.send_inline(message.to, body, priority=message.priority)
            await rest
        except asyncio.CancelledError:
            self._port.dead_letter(message.to, "it was cancelled, since the node leaves")
            raise
        except Exception as error:  # noqa: BLE001 - told to the client, who is the one that can do something
            await self._room(FULL)
            self.session.complain(from_exception(error, service=message.to.partition(".")[0]))
            self._pump.touch()
        finally:
            self._sends.discard(number)

    async def _tell(self, number: int, event: Told) -> None:
        # A client that publishes too much waits: it is not to cut the subscriptions of services.
        try:
            await self._port.deliver(event.subject, event.body)
        except MicrokernelError as error:
            await self._room(FULL)
            self.session.complain(error)
            self._pump.touch()
        finally:
            self._sends.discard(number)

    async def _forward(self, number: int, subscription: Subscription) -> None:
        async for event in subscription:
            if subscription.dropped:
                lost = f"{subscription.dropped} events were lost"
                raise Overloaded(f"the subscription to {subscription.pattern} fell behind: {lost}")
            if self._port.may_hear(event.subject):  # a pattern may reach further than the rights
                if not self.session.has_room:
                    await self._room(BUSY)
                self._send_event(number, event)
                self._pump.touch()

    async def _watch(self, number: int, monitor: Monitor) -> None:
        async for change in monitor:
            await self._room(BUSY)
            self.session.change(number, change)
            self._pump.touch()

    def _send_event(self, number: int, event: Event) -> None:
        try:
            body = self._event_body(event.subject, event.body)
        except MicrokernelError as error:  # the others can be sent: the subscription goes on
            self.session.complain(error)
            return
        self.session.event(number, event.subject, event.offset, body)

    def _event_body(self, subject: str, body: Any) -> Body:
        return self._body(body, f"the event {subject}")

    def _body(self, value: Any, what: str) -> Body:
        return codec.body_of(value, what=what, limit=self._longest, binary=self.session.binary)


def _left(ends: float, to: str) -> float:
    """Seconds until `ends`. Raises `DeadlineExceeded`: nobody waits for what would begin now."""
    left = ends - asyncio.get_running_loop().time()
    if left <= 0:
        raise DeadlineExceeded(f"the deadline passed before the call to {to} could begin", may_have_run=False)
    return left


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _trace(header: str | None) -> Trace | None:
    return None if header is None else parse_traceparent(header)
