"""The calling end of a link: what was asked and is still to be answered. Sans-IO, hot: once a message."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import msgspec

from microkernel.errors import Invalid, TooBig
from microkernel.wire import codec
from microkernel.wire.codec import CloseCode, Frame, Known, ProtocolError, Unknown
from microkernel.wire.limits import Limits
from microkernel.wire.session import Action, Session

__all__ = ["ClientSession"]


class ClientSession(Session):
    """One server, as the client sees it. Who asks gets an id; what comes after its end is dropped."""

    def __init__(self, *, token: str, limits: Limits, clock: Callable[[], float]) -> None:
        super().__init__(limits, clock)
        self.hello: codec.Hello | None = None
        self.ready: codec.Ready | None = None
        self._ids = itertools.count(1)
        self._calls: set[int] = set()
        self._streams: dict[int, int] = {}  # id: items that may still come
        self._subscriptions: set[int] = set()
        self._put(codec.Auth(codec.VERSION, token))

    @property
    def calls(self) -> int:
        """Calls in flight."""
        return len(self._calls)

    def call(self, to: str, body: msgspec.Raw | None, *, deadline: float | None, priority: int | None) -> int:
        """Ask for a result; `deadline` is in seconds. Raises `TooBig` and `Invalid`, as do all that send."""
        number = next(self._ids)
        milliseconds = None if deadline is None else max(0.0, deadline * 1000)
        self._send(codec.Call(number, to, _given(body), deadline=milliseconds, priority=priority), to)
        self._calls.add(number)
        return number

    def open(
        self, to: str, body: msgspec.Raw | None, *, credit: int, deadline: float | None, priority: int | None
    ) -> int:
        """Ask for a stream, and be ready for `credit` items."""
        number = next(self._ids)
        milliseconds = None if deadline is None else max(0.0, deadline * 1000)
        self._send(codec.Open(number, to, _given(body), credit=credit, deadline=milliseconds, priority=priority), to)
        self._streams[number] = credit
        return number

    def credit(self, number: int, count: int) -> None:
        """The reader of a stream has room for `count` items more."""
        if number in self._streams:
            self._streams[number] += count
            self._put(codec.Credit(number, count))

    def cancel(self, number: int, why: str | None = None) -> None:
        """The caller is gone: a call or a stream ends here and now; the server is told."""
        if number in self._calls or self._streams.pop(number, None) is not None:
            self._calls.discard(number)
            self._put(codec.Cancel(number, why))

    def send(self, to: str, body: msgspec.Raw | None, *, priority: int | None) -> None:
        """Send one way."""
        self._send(codec.Send(to, _given(body), priority=priority), to)

    def publish(self, subject: str, body: msgspec.Raw | None) -> None:
        """Send an event."""
        self._send(codec.Publish(subject, _given(body)), subject)

    def subscribe(self, subject: str, group: str | None) -> int:
        """Ask for events."""
        number = next(self._ids)
        self._send(codec.Subscribe(number, subject, group=group), max(subject, group or "", key=len))
        self._subscriptions.add(number)
        return number

    def unsubscribe(self, number: int) -> None:
        """A subscription ends here and now; the server is told."""
        if number in self._subscriptions:
            self._subscriptions.remove(number)
            self._put(codec.Unsubscribe(number))

    def send_ping(self, ts: float) -> None:
        """Ask for a pong: when it comes, everything sent before has been received in order."""
        self._put(codec.Ping(ts))

    def _send(self, frame: Frame, what: str) -> None:
        if len(what) > codec.LONGEST_NAME:
            raise Invalid(f"a name has at most {codec.LONGEST_NAME} characters, not {len(what)}: {what[:80]}…")
        message = codec.encode(frame)
        limit = self.limits.text if self.hello is None else self.hello.max.text
        if len(message) > limit:
            raise TooBig(
                f"the message to {what[:80]} takes {codec.mebibytes(len(message))}; "
                f"a text frame holds {codec.mebibytes(limit)}"
            )
        self.outbox.put(message, self._clock())

    def _receive(self, message: Known | Unknown) -> Action | None:
        if isinstance(message, Unknown):
            self._answer_unknown(message)
            return None
        if not self.is_open and not isinstance(message, codec.Hello | codec.Ready | codec.Bye):
            raise ProtocolError("the server's first messages must be 'hello' and 'ready'")
        return self._HANDLERS[type(message)](self, message)

    def _hello(self, message: codec.Hello) -> Action | None:
        if message.v != codec.VERSION:
            raise ProtocolError(f"the server speaks version {message.v}, not {codec.VERSION}", CloseCode.VERSION)
        if self.hello is not None:
            raise ProtocolError("a second 'hello'")
        self.hello = message
        return message

    def _ready(self, message: codec.Ready) -> Action | None:
        if self.hello is None or self.ready is not None:
            raise ProtocolError("'ready' belongs after 'hello', once")
        self.ready = message
        self._opened(self.hello.heartbeat)
        return message

    def _result(self, message: codec.Result) -> Action | None:
        if message.id not in self._calls:
            return None
        self._calls.remove(message.id)
        return message

    def _error(self, message: codec.Error) -> Action | None:
        return message if message.id is None or self._finish(message.id) else None

    def _item(self, message: codec.Item) -> Action | None:
        credit = self._streams.get(message.id)
        if credit is None:  # cancelled while this item was on its way
            return None
        if credit < 1:
            raise ProtocolError(f"stream {message.id} got an item beyond its credit")
        self._streams[message.id] = credit - 1
        return message

    def _end(self, message: codec.End) -> Action | None:
        return message if message.id not in self._calls and self._finish(message.id) else None

    def _event(self, message: codec.Event) -> Action | None:
        return message if message.id in self._subscriptions else None

    def _ping(self, message: codec.Ping) -> Action | None:
        self._put(codec.Pong(message.ts))
        return None

    def _pass(self, message: codec.Pong | codec.Bye) -> Action | None:
        return message

    def _misplaced(self, message: Known) -> NoReturn:
        raise ProtocolError(f"a '{type(message).__struct_config__.tag}' message does not belong here")

    def _finish(self, number: int) -> bool:
        if number in self._calls:
            self._calls.remove(number)
            return True
        if number in self._subscriptions:
            self._subscriptions.remove(number)
            return True
        return self._streams.pop(number, None) is not None

    def _forget(self) -> None:
        self._calls.clear()
        self._streams.clear()
        self._subscriptions.clear()

    _HANDLERS: ClassVar[dict[type, Callable[[ClientSession, Any], Action | None]]] = {
        codec.Auth: _misplaced,
        codec.Bye: _pass,
        codec.Call: _misplaced,
        codec.Cancel: _misplaced,
        codec.Credit: _misplaced,
        codec.End: _end,
        codec.Error: _error,
        codec.Event: _event,
        codec.Hello: _hello,
        codec.Item: _item,
        codec.Open: _misplaced,
        codec.Ping: _ping,
        codec.Pong: _pass,
        codec.Publish: _misplaced,
        codec.Ready: _ready,
        codec.Result: _result,
        codec.Send: _misplaced,
        codec.Subscribe: _misplaced,
        codec.Unsubscribe: _misplaced,
    }


def _given(body: msgspec.Raw | None) -> msgspec.Raw:
    return codec.EMPTY if body is None else body
