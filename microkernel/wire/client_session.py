"""The calling end of a link: what was asked and is still to be answered. Sans-IO, hot: once a message."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NoReturn

import msgspec

from microkernel.errors import Invalid, TooBig
from microkernel.wire import binary, codec
from microkernel.wire.binary import Packed
from microkernel.wire.body import Body, Bulk
from microkernel.wire.codec import CloseCode, Frame, Known, ProtocolError, Unknown
from microkernel.wire.limits import Limits
from microkernel.wire.session import ONE_WAY, Action, Session
from microkernel.wire.state import Replay, SessionState

__all__ = ["ClientSession", "Forgotten"]

MOST_NAMES = 1024  # addresses that are remembered as JSON
_OPENING = codec.Call | codec.Monitor | codec.Open | codec.Subscribe


class Forgotten:
    """What was open in a session that the server has not kept: those ids are free, and nothing of them will come."""

    def __init__(self, state: SessionState, limits: Limits) -> None:
        unsent = [] if state.replay is None else state.replay.never_left()
        messages = [_message_of(encoded, limits) for encoded in unsent]
        self._never_left = {message.id for message in messages if isinstance(message, _OPENING)}

    def may_have_arrived(self, number: int) -> bool:
        """Whether what opened `number` may have reached the server."""
        return number not in self._never_left


class ClientSession(Session):
    """One server, as the client sees it over one link. Who asks gets an id; what comes after its end is dropped."""

    def __init__(
        self,
        *,
        token: str,
        limits: Limits,
        clock: Callable[[], float],
        state: SessionState | None = None,
        ids: Iterator[int] | None = None,
    ) -> None:
        """With a `state`, a session is asked for that can be resumed: that one, if it has been open before.

        `ids` go on from one link to the next.
        """
        super().__init__(limits, clock, SessionState() if state is None else state)
        self.hello: codec.Hello | None = None
        self.ready: codec.Ready | None = None
        self.forgotten: Forgotten | None = None
        self._ids = itertools.count(1) if ids is None else ids
        self._names: dict[str, bytes] = {}  # addresses as JSON
        self._longest = limits.text  # bytes of a text frame that the server takes
        self._resumes = state is not None
        wish = codec.Resume(self.state.session, self.state.received) if self._resumes else None
        self._takes_binary(limits.binary)  # until the hello says how much
        self._put(codec.Auth(codec.VERSION, token, wish, limits.binary))

    @property
    def calls(self) -> int:
        """Calls in flight."""
        return len(self.state.calls)

    def given_up(self) -> Forgotten:
        """What is open, where the server keeps none of it any more."""
        return Forgotten(self.state, self.limits)

    def call(
        self,
        to: str,
        body: Body | bytes | None,
        *,
        deadline: float | None,
        priority: int | None,
        key: str | None = None,
        trace: str | None = None,
        age: float | None = None,
        user: str | None = None,
    ) -> int:
        """Ask for a result; `deadline` is in seconds, and so is the `age` of a call that is made again.

        `user` is on whose behalf it is, which only a node may say.

        Raises `TooBig` and `Invalid`, as do all that send.
        """
        number = next(self._ids)
        milliseconds = None if deadline is None else max(0.0, deadline * 1000)
        body = _given(body)
        old = None if age is None else age * 1000
        self._send(codec.Call(number, to, body, milliseconds, priority, key, trace, old, user), to)
        self.state.calls.add(number)
        return number

    def call_plain(self, to: str, body: Body | bytes | None) -> int:
        """`call` without options, as most are; a body may also be given as its text."""
        text = codec.EMPTY if body is None else body
        if isinstance(text, Bulk):
            return self.call(to, text, deadline=None, priority=None)
        name = self._names.get(to) or self._name(to)
        number = next(self._ids)
        message = b'{"t":"call","id":%d,"to":%b,"body":%b}' % (number, name, text)
        if len(message) > self._longest:
            raise self._too_big(to, len(message), self._longest, "a text frame")
        self._tell_text(message, number)
        self.state.calls.add(number)
        return number

    def open(
        self,
        to: str,
        body: Body | bytes | None,
        *,
        credit: int,
        deadline: float | None,
        priority: int | None,
        trace: str | None = None,
        user: str | None = None,
    ) -> int:
        """Ask for a stream, and be ready for `credit` items."""
        number = next(self._ids)
        milliseconds = None if deadline is None else max(0.0, deadline * 1000)
        self._send(codec.Open(number, to, _given(body), credit, milliseconds, priority, None, trace, user), to)
        self.state.streams[number] = credit
        return number

    def credit(self, number: int, count: int) -> None:
        """The reader of a stream has room for `count` items more."""
        if number in self.state.streams:
            self.state.streams[number] += count
            self._tell(codec.Credit(number, count))

    def cancel(self, number: int, why: str | None = None) -> None:
        """The caller is gone: a call or a stream ends here and now; the server is told."""
        if number not in self.state.subscriptions and self.state.finish(number):
            self.outbox.drop(number)
            self._tell(codec.Cancel(number, why))

    def send(self, to: str, body: Body | bytes | None, *, priority: int | None) -> None:
        """Send one way."""
        if priority is not None or isinstance(body, Bulk):
            self._send(codec.Send(to, _given(body), priority=priority), to)
            return
        text = codec.EMPTY if body is None else body
        name = self._names.get(to) or self._name(to)
        message = b'{"t":"send","to":%b,"body":%b}' % (name, text)
        if len(message) > self._longest:
            raise self._too_big(to, len(message), self._longest, "a text frame")
        self._tell_text(message, ONE_WAY)

    def publish(self, subject: str, body: Body | bytes | None) -> None:
        """Send an event."""
        self._send(codec.Publish(subject, _given(body)), subject)

    def subscribe(self, subject: str, group: str | None, *, since: int | None = None) -> int:
        """Ask for events, of those after offset `since` first."""
        number = next(self._ids)
        self._send(codec.Subscribe(number, subject, group=group, since=since), max(subject, group or "", key=len))
        self.state.subscriptions.add(number)
        return number

    def monitor(self, service: str) -> int:
        """Ask when a service comes and goes."""
        number = next(self._ids)
        self._send(codec.Monitor(number, service), service)
        self.state.subscriptions.add(number)
        return number

    def room(self, number: int) -> int:
        """How many items the handler of a stream takes now; 0 when there is no such stream."""
        return self.state.inputs.get(number, 0)

    def item(self, number: int, body: Body | bytes | None) -> None:
        """Send an item into a stream whose handler has `room`."""
        inputs = self.state.inputs
        if inputs.get(number, 0) < 1:
            raise ValueError(f"stream {number} takes no item now")
        self._send(codec.Item(number, _given(body)), f"stream {number}")
        inputs[number] -= 1

    def finish(self, number: int) -> None:
        """No more items are sent into a stream."""
        if number in self.state.streams:
            self.state.inputs[number] = 0
            self._tell(codec.End(number))

    def unsubscribe(self, number: int) -> None:
        """A subscription ends here and now; the server is told."""
        if number in self.state.subscriptions:
            self.state.subscriptions.remove(number)
            self._tell(codec.Unsubscribe(number))

    def send_ping(self, ts: float) -> None:
        """Ask for a pong: when it comes, everything sent before has been received in order."""
        self._put(codec.Ping(ts))

    def _send(self, frame: Frame, what: str) -> None:
        self._check_name(what)
        message = self._encoded(frame)
        is_long = type(message) is Packed
        limit, holds = (self.binary, "a message with buffers") if is_long else (self._longest, "a text frame")
        if len(message) > limit:
            raise self._too_big(what, len(message), limit, holds)
        self._tell_encoded(message, frame)

    def _name(self, to: str) -> bytes:
        """An address as JSON; the last ones are remembered."""
        self._check_name(to)
        if len(self._names) >= MOST_NAMES:
            self._names.clear()
        name = self._names[to] = msgspec.json.encode(to)
        return name

    def _check_name(self, name: str) -> None:
        if len(name) > codec.LONGEST_NAME:
            raise Invalid(f"a name has at most {codec.LONGEST_NAME} characters, not {len(name)}: {name[:80]}…")

    def _too_big(self, what: str, size: int, limit: int, holds: str) -> TooBig:
        sizes = f"takes {codec.mebibytes(size)}; {holds} holds {codec.mebibytes(limit)}"
        return TooBig(f"the message to {what[:80]} {sizes}")

    def _receive(self, message: Known | Unknown) -> Action | None:
        handle = self._HANDLERS.get(type(message))
        if handle is None:
            assert isinstance(message, Unknown)
            self._answer_unknown(message)
            return None
        if not self.is_open and not isinstance(message, codec.Hello | codec.Ready | codec.Bye):
            raise ProtocolError("the server's first messages must be 'hello' and 'ready'")
        return handle(self, message)

    def _hello(self, message: codec.Hello) -> Action | None:
        if message.v != codec.VERSION:
            raise ProtocolError(f"the server speaks version {message.v}, not {codec.VERSION}", CloseCode.VERSION)
        if self.hello is not None:
            raise ProtocolError("a second 'hello'")
        self.hello = message
        self._longest = message.max.text
        self._takes_binary(message.max.binary)
        return message

    def _ready(self, message: codec.Ready) -> Action | None:
        if self.hello is None or self.ready is not None:
            raise ProtocolError("'ready' belongs after 'hello', once")
        self.ready = message
        state, old = self.state, self.state.session
        if message.resumed and (message.session != old or not old or state.replay is None):
            raise ProtocolError("'ready' resumes a session that was not asked for")
        if message.resumed and state.replay is not None:
            state.replay.acknowledge(message.seen)
            state.ack()
        else:
            self.forgotten = Forgotten(state, self.limits) if old else None
            keeps = self._resumes and self.hello.resume > 0
            state.begin(message.session, Replay(self.hello.max.buffer, self.hello.max.messages) if keeps else None)
        self._opened(self.hello.heartbeat)
        self._replay()
        return message

    def _result(self, message: codec.Result) -> Action | None:
        calls = self.state.calls
        if message.id not in calls:
            return None
        calls.remove(message.id)
        return message

    def _error(self, message: codec.Error) -> Action | None:
        return message if message.id is None or self.state.finish(message.id) else None

    def _item(self, message: codec.Item) -> Action | None:
        streams = self.state.streams
        credit = streams.get(message.id)
        if credit is None:  # cancelled while this item was on its way
            return None
        if credit < 1:
            raise ProtocolError(f"stream {message.id} got an item beyond its credit")
        streams[message.id] = credit - 1
        return message

    def _end(self, message: codec.End) -> Action | None:
        return message if message.id not in self.state.calls and self.state.finish(message.id) else None

    def _credit(self, message: codec.Credit) -> Action | None:
        if message.id not in self.state.streams:
            return None
        inputs = self.state.inputs
        inputs[message.id] = min(codec.LARGEST_INTEGER, inputs.get(message.id, 0) + message.n)
        return message

    def _event(self, message: codec.Event | codec.Up | codec.Down) -> Action | None:
        return message if message.id in self.state.subscriptions else None

    def _ping(self, message: codec.Ping) -> Action | None:
        self._put(codec.Pong(message.ts))
        return None

    def _pass(self, message: codec.Pong | codec.Bye) -> Action | None:
        return message

    def _misplaced(self, message: Known) -> NoReturn:
        raise ProtocolError(f"a '{type(message).__struct_config__.tag}' message does not belong here")

    def _keep_state(self) -> None:
        # What was asked is known until the node has said whether the session goes on.
        if self.state.replay is None:
            self.state.clear()
        elif self.ready is not None:
            self._keep_unsent(self.state.replay)
            if self.closed is not None and self.closed.code == CloseCode.GOING_AWAY:
                self.state.replay.closed_by_leaver()

    _HANDLERS = {
        codec.Ack: Session.acknowledged,
        codec.Auth: _misplaced,
        codec.Bye: _pass,
        codec.Call: _misplaced,
        codec.Cancel: _misplaced,
        codec.Credit: _credit,
        codec.Down: _event,
        codec.End: _end,
        codec.Error: _error,
        codec.Event: _event,
        codec.Hello: _hello,
        codec.Item: _item,
        codec.Monitor: _misplaced,
        codec.Open: _misplaced,
        codec.Ping: _ping,
        codec.Pong: _pass,
        codec.Publish: _misplaced,
        codec.Ready: _ready,
        codec.Result: _result,
        codec.Send: _misplaced,
        codec.Subscribe: _misplaced,
        codec.Unsubscribe: _misplaced,
        codec.Up: _event,
    }


def _given(body: Body | bytes | None) -> Body:
    return codec.EMPTY if body is None else msgspec.Raw(body) if isinstance(body, bytes) else body


def _message_of(encoded: bytes | Packed, limits: Limits) -> Known | Unknown:
    if isinstance(encoded, Packed):
        return binary.message_of(encoded.joined(), text=limits.text, limit=encoded.size)
    return codec.decode_one(encoded)
