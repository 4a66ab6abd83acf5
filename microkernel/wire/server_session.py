"""The serving end of a link: who is there, what is open, what is admitted. Sans-IO, hot: once a message.

Everything a client opens ends exactly once: a call by `result` or `error`, a stream and a subscription by
`end` or `error`, or all of them by the close of the link.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

import msgspec

from microkernel.capability import Identity
from microkernel.errors import (
    MicrokernelError,
    Overloaded,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from microkernel.wire import codec
from microkernel.wire.codec import CloseCode, Known, ProtocolError, Unknown
from microkernel.wire.limits import Bucket, Limits
from microkernel.wire.session import Action, Session, Welcome

__all__ = ["ServerSession"]

GREETING_BYTES = 8 * 1024  # of a frame before `auth`: nobody has to be let in to be read, so it is not much


class ServerSession(Session):
    """One client, as the server sees it."""

    def __init__(
        self,
        *,
        node: str,
        epoch: str,
        session: str,
        authenticate: Callable[[str], Identity | None],
        limits: Limits,
        clock: Callable[[], float],
    ) -> None:
        """`authenticate` says who a token stands for, None or `Unauthenticated` if nobody."""
        super().__init__(limits, clock)
        self.session = session
        self._epoch = epoch
        self._authenticate = authenticate
        self._calls: set[int] = set()
        self._streams: dict[int, int] = {}  # id: credit left
        self._subscriptions: set[int] = set()
        self._bucket = Bucket(limits.rate, limits.burst, clock())
        self._leaving: codec.Bye | None = None
        self._put(
            codec.Hello(codec.VERSION, node=node, epoch=epoch, heartbeat=limits.heartbeat, max=limits.announced())
        )

    @property
    def in_flight(self) -> int:
        """Calls and streams that have not ended."""
        return len(self._calls) + len(self._streams)

    def is_current(self, number: int) -> bool:
        """Whether `number` names something that has not ended."""
        return number in self._calls or number in self._streams or number in self._subscriptions

    def credit(self, number: int) -> int:
        """How many items the reader of a stream can take; 0 when there is no such stream."""
        return self._streams.get(number, 0)

    def result(self, number: int, body: msgspec.Raw) -> None:
        """A call has ended well. Nothing happens if it had ended before."""
        if number in self._calls:
            self._calls.remove(number)
            self._put(codec.Result(number, body))

    def item(self, number: int, body: msgspec.Raw) -> None:
        """A stream has an item; the reader has credit for it, or the stream has ended."""
        credit = self._streams.get(number)
        if credit is None:
            return
        if credit < 1:
            raise ValueError(f"stream {number} has no credit left")
        self._streams[number] = credit - 1
        self._put(codec.Item(number, body))

    def event(self, number: int, subject: str, offset: int, body: msgspec.Raw) -> None:
        """A subscription has an event."""
        if number in self._subscriptions:
            self._put(codec.Event(number, subject, offset, body))

    def end(self, number: int) -> None:
        """A stream or a subscription has ended well. Nothing happens if it had ended before."""
        if self._finish(number):
            self._put(codec.End(number))

    def fail(self, number: int, error: MicrokernelError) -> None:
        """Whatever `number` names has ended badly. Nothing happens if it had ended before."""
        if self._finish(number):
            self._fail(number, error)

    def complain(self, error: MicrokernelError) -> None:
        """A one-way message was not carried out."""
        if self.closed is None:
            self._fail(None, error)

    def leave(self, reason: str, after: float) -> None:
        """Tell the client to finish and to come back after so many seconds; nothing new is begun."""
        if self.is_open and self._leaving is None:
            self._leaving = codec.Bye(reason, round(after * 1000))
            self._put(self._leaving)

    def _check_size(self, text: str) -> None:
        if not self.is_open:
            longest = min(GREETING_BYTES, self.limits.text)
            size = codec.size_of(text, longest)
            if size > longest:
                reason = f"a text frame before 'auth' is too big: {size} bytes, at most {longest}"
                raise ProtocolError(reason, CloseCode.TOO_BIG)
        super()._check_size(text)

    def _received_frame(self, count: int) -> None:
        # An empty frame costs as much as a message.
        self._bucket.take(max(1, count), self._clock())
        if self._bucket.is_abused:
            raise ProtocolError(
                f"too many messages: {self._bucket.overdrawn:.0f} more than {self._bucket.rate:g} a second "
                f"with bursts of {self._bucket.burst}",
                CloseCode.RATE,
            )

    def _receive(self, message: Known | Unknown) -> Action | None:
        if not self.is_open:
            return self._greet(message)
        if isinstance(message, Unknown):
            self._answer_unknown(message)
            return None
        return self._HANDLERS[type(message)](self, message)

    def _greet(self, message: Known | Unknown) -> Welcome:
        if not isinstance(message, codec.Auth):
            raise ProtocolError("the first message must be 'auth'", CloseCode.UNAUTHENTICATED)
        if message.v != codec.VERSION:
            raise ProtocolError(
                f"version {message.v} is not spoken here, only version {codec.VERSION}", CloseCode.VERSION
            )
        try:
            identity = self._authenticate(message.token)
        except (Unauthenticated, UnicodeError) as error:
            raise ProtocolError(str(error), CloseCode.UNAUTHENTICATED) from error
        except MicrokernelError as error:  # it is not the token's fault
            raise ProtocolError(f"tokens cannot be checked: {error}", CloseCode.GOING_AWAY) from error
        if identity is None:
            raise ProtocolError("the token is not valid here", CloseCode.UNAUTHENTICATED)
        self._opened(self.limits.heartbeat)
        # `message.resume` is answered by a new session: this server keeps none beyond their link.
        self._put(
            codec.Ready(
                session=self.session,
                epoch=self._epoch,
                rights=identity.rights.allow,
                deny=identity.rights.deny,
                user=identity.user,
            )
        )
        return Welcome(identity)

    def _call(self, message: codec.Call) -> Action | None:
        if self._is_refused(message.id, key=message.key):
            return None
        self._calls.add(message.id)
        return message

    def _open(self, message: codec.Open) -> Action | None:
        if self._is_refused(message.id, key=message.key):
            return None
        self._streams[message.id] = self.limits.credit if message.credit is None else message.credit
        return message

    def _subscribe(self, message: codec.Subscribe) -> Action | None:
        if self._is_refused(message.id, subscribes=True):
            return None
        if message.since is not None:
            error = Unimplemented("events are not replayed here: subscribe without 'since'", field="since")
            self._fail(message.id, error)
            return None
        self._subscriptions.add(message.id)
        return message

    def _one_way(self, message: codec.Send | codec.Publish) -> Action | None:
        if (error := self._why_not()) is not None:
            self._fail(None, error)
            return None
        return message

    def _credit(self, message: codec.Credit) -> Action | None:
        credit = self._streams.get(message.id)
        if credit is None:  # it ended meanwhile
            return None
        self._streams[message.id] = min(codec.LARGEST_INTEGER, credit + message.n)
        return message

    def _cancel(self, message: codec.Cancel) -> Action | None:
        return message if message.id in self._calls or message.id in self._streams else None

    def _unsubscribe(self, message: codec.Unsubscribe) -> Action | None:
        if message.id not in self._subscriptions:
            return None
        self.end(message.id)
        return message

    def _input(self, message: codec.Item | codec.End) -> Action | None:
        if message.id not in self._streams:
            return None
        self.fail(message.id, Unimplemented("a stream takes no items from its reader here"))
        return codec.Cancel(message.id, "the reader sent an item")

    def _ping(self, message: codec.Ping) -> Action | None:
        self._put(codec.Pong(message.ts))
        return None

    def _bye(self, message: codec.Bye) -> Action | None:
        return self.close(codec.NORMAL, f"bye: {message.reason}")

    def _ignore(self, message: Known) -> Action | None:
        """An answer to what this end has never asked, or a pong, which has done its work by coming."""

    def _misplaced(self, message: Known) -> NoReturn:
        raise ProtocolError(f"a '{type(message).__struct_config__.tag}' message does not belong here")

    def _is_refused(self, number: int, *, key: str | None = None, subscribes: bool = False) -> bool:
        if self.is_current(number):
            # An error for this id would end the other one.
            raise ProtocolError(f"id {number} is in use")
        error = self._why_not()
        if error is None and key is not None:
            error = Unimplemented("this node keeps no keys: call without 'key'", field="key")
        if error is None and not subscribes and self.in_flight >= self.limits.inflight:
            error = Overloaded(f"{self.in_flight} calls are in flight in this session", retry_after=0.1)
        if error is None and subscribes and len(self._subscriptions) >= self.limits.subscriptions:
            error = Overloaded(f"{len(self._subscriptions)} subscriptions are open in this session")
        if error is not None:
            self._fail(number, error)
        return error is not None

    def _why_not(self) -> MicrokernelError | None:
        if self._leaving is not None:
            after = None if self._leaving.after is None else self._leaving.after / 1000
            return Unavailable(
                f"this node is about to leave: {self._leaving.reason}", retry_after=after, may_have_run=False
            )
        if self._bucket.overdrawn:
            return Overloaded(
                f"more than {self._bucket.rate:g} messages a second in this session",
                retry_after=self._bucket.wait(),
            )
        return None

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

    _HANDLERS: ClassVar[dict[type, Callable[[ServerSession, Any], Action | None]]] = {
        codec.Auth: _misplaced,
        codec.Bye: _bye,
        codec.Call: _call,
        codec.Cancel: _cancel,
        codec.Credit: _credit,
        codec.End: _input,
        codec.Error: _ignore,
        codec.Event: _misplaced,
        codec.Hello: _misplaced,
        codec.Item: _input,
        codec.Open: _open,
        codec.Ping: _ping,
        codec.Pong: _ignore,
        codec.Publish: _one_way,
        codec.Ready: _misplaced,
        codec.Result: _misplaced,
        codec.Send: _one_way,
        codec.Subscribe: _subscribe,
        codec.Unsubscribe: _unsubscribe,
    }
