"""The serving end of a link: who is there, what is open, what is admitted. Sans-IO, hot: once a message.

Everything a client opens ends exactly once: a call by `result` or `error`, a stream and a subscription by
`end` or `error`, or all of them by the end of the session. Each link has a session object of its own; one that resumes
takes over the state of the one before. After its link is lost, a session still takes results and items: the state
keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

import msgspec

from microkernel.capability import Identity
from microkernel.errors import (
    CallCancelled,
    Invalid,
    MicrokernelError,
    Overloaded,
    Unauthenticated,
    Unimplemented,
)
from microkernel.monitors import Change, Up
from microkernel.rates import Rates
from microkernel.wire import codec
from microkernel.wire.admission import Admission
from microkernel.wire.body import Body, Bulk
from microkernel.wire.codec import CloseCode, Known, ProtocolError, Unknown
from microkernel.wire.limits import Limits
from microkernel.wire.session import Action, Authenticate, Close, Session
from microkernel.wire.state import Replay, SessionState

__all__ = ["ServerSession"]

GREETING_BYTES = 8 * 1024  # of a frame before `auth`: nobody has to be let in to be read, so it is not much
MOST_HELD = 256  # messages that wait for the token to be checked


class ServerSession(Session):
    """One client, as the server sees it."""

    def __init__(
        self,
        *,
        node: str,
        epoch: str,
        session: str,
        limits: Limits,
        clock: Callable[[], float],
        rates: Rates | None = None,
    ) -> None:
        """`session` is the name of a new session; one that is resumed has its own.

        `rates` are the accounts of all tokens that have a bound, for the whole node.
        """
        super().__init__(limits, clock, SessionState(session))
        self._epoch = epoch
        self._auth: codec.Auth | None = None
        self._held: list[tuple[list[msgspec.Raw], int]] = []  # what came after `auth`, until the token is known
        self._admission = Admission(limits, Rates() if rates is None else rates, clock)
        self._is_leaving = False
        self._expires: float | None = None
        self._put(
            codec.Hello(
                codec.VERSION,
                node=node,
                epoch=epoch,
                heartbeat=limits.heartbeat,
                max=limits.announced(),
                resume=limits.resume,
            )
        )

    @property
    def session(self) -> str:
        """The session's name."""
        return self.state.session

    @property
    def in_flight(self) -> int:
        """Calls and streams that have not ended."""
        return self.state.in_flight

    def authenticated(
        self, identity: Identity, resumed: SessionState | None = None, *, expires_in: float | None = None
    ) -> list[Action]:
        """The token of `Authenticate` stands for `identity`: open, and do what has come meanwhile.

        `resumed` is the state of the session that the client asked for, where it is kept and can go on. The link is
        closed when the token expires, in so many seconds.
        """
        if self.closed is not None or self._auth is None:
            return []
        wish, limits = self._auth.resume, self.limits
        if resumed is not None and wish is not None and resumed.replay is not None:
            self.state = resumed
            resumed.replay.acknowledge(wish.seen)
        else:
            resumed = None
            if wish is not None and limits.resume > 0:
                self.state.replay = Replay(limits.buffer, limits.messages)
        self.state.identity = identity
        self._admission.count_for(identity.rates)
        self._expires = None if expires_in is None else self._clock() + expires_in
        self._opened(limits.heartbeat)
        self._put(
            codec.Ready(
                session=self.session,
                epoch=self._epoch,
                rights=identity.rights.allow,
                deny=identity.rights.deny,
                user=identity.user,
                seen=self.state.ack(),
                resumed=resumed is not None,
            )
        )
        self._replay()
        held, self._held, self._auth = self._held, [], None
        self.takes_frames = True
        actions: list[Action] = []
        try:
            self._carry((codec.decode_part(parts, place) for parts, place in held), actions)
        except ProtocolError as error:
            actions.append(self.close(error.code, error.reason))
        return actions

    def refused(self, error: MicrokernelError | None) -> list[Action]:
        """The token of `Authenticate` stands for nobody, or cannot be checked because of `error`."""
        if self.closed is not None:
            return []
        if error is None:
            return [self.close(CloseCode.UNAUTHENTICATED, "the token is not valid here")]
        if isinstance(error, Unauthenticated):
            return [self.close(CloseCode.UNAUTHENTICATED, str(error))]
        # It is not the token's fault.
        return [self.close(CloseCode.GOING_AWAY, f"tokens cannot be checked: {error}")]

    def tick(self) -> list[Action]:
        """What to do because time has passed: the token may have expired."""
        if self.is_open and self._expires is not None and self._clock() >= self._expires:
            return [self.close(CloseCode.UNAUTHENTICATED, "the token has expired")]
        return super().tick()

    def due(self) -> float:
        """When `tick` has something to do, on the clock given."""
        return super().due() if self._expires is None else min(super().due(), self._expires)

    def close(self, code: int, reason: str) -> Close:
        """As any session; one that leaves says which messages of the client it has taken: the others were not read."""
        if self.is_open and code == CloseCode.GOING_AWAY and self.state.replay is not None:
            self._put(codec.Ack(self.state.ack()))
        return super().close(code, reason)

    def hand_over(self) -> None:
        """Another link goes on with this session: end this one, and leave the state to it."""
        if self.state.replay is not None:
            self._keep_unsent(self.state.replay)
        self.state = SessionState(self.session)
        self.close(CloseCode.TAKEN_OVER, "the session goes on over another link")
        self.outbox.clear()

    def is_current(self, number: int) -> bool:
        """Whether `number` names something that has not ended."""
        return self.state.is_open(number)

    def credit(self, number: int) -> int:
        """How many items the reader of a stream can take; 0 when there is no such stream."""
        return self.state.streams.get(number, 0)

    def result(self, number: int, body: Body | bytes) -> None:
        """A call has ended well, with a body or its text. Nothing happens if it had ended before."""
        calls = self.state.calls
        if number not in calls:
            return
        calls.remove(number)
        if isinstance(body, Bulk):
            self._tell(codec.Result(number, body))
        else:
            self._tell_text(b'{"t":"result","id":%d,"body":%b}' % (number, body), number)

    def item(self, number: int, body: Body | bytes) -> int:
        """A stream has an item; the reader has credit for it, or the stream has ended. How many more it can take."""
        streams = self.state.streams
        credit = streams.get(number)
        if credit is None:
            return 0
        if credit < 1:
            raise ValueError(f"stream {number} has no credit left")
        left = streams[number] = credit - 1
        if isinstance(body, Bulk):
            self._tell(codec.Item(number, body))
        else:
            self._tell_text(b'{"t":"item","id":%d,"body":%b}' % (number, body), number)
        return left

    def event(self, number: int, subject: str, offset: int, body: Body) -> None:
        """A subscription has an event."""
        if number in self.state.subscriptions:
            self._tell(codec.Event(number, subject, offset, body))

    def change(self, number: int, change: Change) -> None:
        """A monitor has seen that its service has come or gone."""
        if number in self.state.subscriptions:
            if isinstance(change, Up):
                self._tell(codec.Up(number, change.service, change.incarnation))
            else:
                self._tell(codec.Down(number, change.service, change.incarnation, change.reason))

    def grant(self, number: int, count: int) -> None:
        """The handler of a stream takes `count` items more from its reader."""
        state = self.state
        if number in state.streams:
            state.inputs[number] = state.inputs.get(number, 0) + count
            self._tell(codec.Credit(number, count))

    def end(self, number: int) -> None:
        """A stream or a subscription has ended well. Nothing happens if it had ended before."""
        if self.state.finish(number):
            self._tell(codec.End(number))

    def fail(self, number: int, error: MicrokernelError) -> None:
        """Whatever `number` names has ended badly. Nothing happens if it had ended before."""
        if self.state.finish(number):
            self._fail(number, error)

    def complain(self, error: MicrokernelError) -> None:
        """A one-way message was not carried out."""
        self._fail(None, error)

    def leave(self, reason: str, after: float) -> None:
        """Tell the client to finish and to come back after so many seconds; nothing new is begun."""
        if self.is_open and not self._is_leaving:
            self._is_leaving = True
            self._admission.leave(reason, after)
            self._put(codec.Bye(reason, round(after * 1000)))

    def _before_ready(self, parts: list[msgspec.Raw]) -> Iterator[Known | Unknown]:
        # What comes between `auth` and the answer to it waits as it came.
        for place in range(len(parts)):
            if self._auth is None:
                yield codec.decode_part(parts, place)
            elif len(self._held) < MOST_HELD:
                self._held.append((parts, place))
            else:
                raise ProtocolError(f"more than {MOST_HELD} messages before 'ready'", CloseCode.TOO_BIG)

    def _check_size(self, text: str) -> None:
        if not self.is_open:
            longest = min(GREETING_BYTES, self.limits.text)
            size = codec.size_of(text, longest)
            if size > longest:
                reason = f"a text frame before 'auth' is too big: {size} bytes, at most {longest}"
                raise ProtocolError(reason, CloseCode.TOO_BIG)
        super()._check_size(text)

    def _received_frame(self, count: int) -> None:
        self._admission.frame(count)

    def _receive(self, message: Known | Unknown) -> Action | None:
        if not self.is_open:
            return self._greet(message)
        assert isinstance(message, Unknown)
        self._answer_unknown(message)
        return None

    def _greet(self, message: Known | Unknown) -> Authenticate:
        if not isinstance(message, codec.Auth):
            raise ProtocolError("the first message must be 'auth'", CloseCode.UNAUTHENTICATED)
        if message.v != codec.VERSION:
            raise ProtocolError(
                f"version {message.v} is not spoken here, only version {codec.VERSION}", CloseCode.VERSION
            )
        self._auth = message
        self._takes_binary(message.binary)
        self.takes_frames = False  # until the answer is here: whoever is not known has nothing kept but this frame
        return Authenticate(message.token, message.resume)

    def _call(self, message: codec.Call) -> Action | None:
        state, number = self.state, message.id
        is_free = number not in state.calls and number not in state.streams and number not in state.subscriptions
        has_room = len(state.calls) + len(state.streams) < self.limits.inflight
        if not (is_free and has_room and self._admission.is_clear) and self._is_refused(number):
            return None
        state.calls.add(number)
        return message

    def _open(self, message: codec.Open) -> Action | None:
        if self._is_refused(message.id, key=message.key):
            return None
        self.state.streams[message.id] = self.limits.credit if message.credit is None else message.credit
        return message

    def _subscribe(self, message: codec.Subscribe | codec.Monitor) -> Action | None:
        if self._is_refused(message.id, subscribes=True):
            return None
        self.state.subscriptions.add(message.id)
        return message

    def _one_way(self, message: codec.Send | codec.Publish) -> Action | None:
        if (error := self._admission.why_not()) is not None:
            self._fail(None, error)
            return None
        return message

    def _credit(self, message: codec.Credit) -> Action | None:
        streams = self.state.streams
        credit = streams.get(message.id)
        if credit is None:  # it ended meanwhile
            return None
        streams[message.id] = min(codec.LARGEST_INTEGER, credit + message.n)
        return message

    def _cancel(self, message: codec.Cancel) -> Action | None:
        was_dropped = self.outbox.drop(message.id)
        if message.id in self.state.calls or message.id in self.state.streams:
            return message
        if was_dropped:  # its result was on its way, and it ends all the same
            self._fail(message.id, CallCancelled("the call was cancelled while its result was on its way"))
        return None

    def _unsubscribe(self, message: codec.Unsubscribe) -> Action | None:
        if message.id not in self.state.subscriptions:
            return None
        self.end(message.id)
        return message

    def _input(self, message: codec.Item) -> Action | None:
        if message.id not in self.state.streams:
            return None
        credit = self.state.inputs.get(message.id)
        if credit is None:
            self.fail(message.id, Invalid("an item was sent into a stream that has given no credit for items"))
            return codec.Cancel(message.id, "the reader sent an item")
        if credit < 1:
            raise ProtocolError(f"stream {message.id} got an item beyond its credit")
        self.state.inputs[message.id] = credit - 1
        return message

    def _input_end(self, message: codec.End) -> Action | None:
        if message.id not in self.state.streams:
            return None
        if message.id in self.state.inputs:
            self.state.inputs[message.id] = 0
        return message

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
        error = self._admission.why_not()
        if error is None and key is not None:
            error = Unimplemented("a stream has no key: open it without 'key'", field="key")
        if error is None and not subscribes and self.in_flight >= self.limits.inflight:
            error = Overloaded(f"{self.in_flight} calls are in flight in this session", retry_after=0.1)
        if error is None and subscribes and len(self.state.subscriptions) >= self.limits.subscriptions:
            error = Overloaded(f"{len(self.state.subscriptions)} subscriptions are open in this session")
        if error is not None:
            self._fail(number, error)
        return error is not None

    _HANDLERS = {
        codec.Ack: Session.acknowledged,
        codec.Auth: _misplaced,
        codec.Bye: _bye,
        codec.Call: _call,
        codec.Cancel: _cancel,
        codec.Credit: _credit,
        codec.Down: _misplaced,
        codec.End: _input_end,
        codec.Error: _ignore,
        codec.Event: _misplaced,
        codec.Hello: _misplaced,
        codec.Item: _input,
        codec.Monitor: _subscribe,
        codec.Open: _open,
        codec.Ping: _ping,
        codec.Pong: _ignore,
        codec.Publish: _one_way,
        codec.Ready: _misplaced,
        codec.Result: _misplaced,
        codec.Send: _one_way,
        codec.Subscribe: _subscribe,
        codec.Unsubscribe: _unsubscribe,
        codec.Up: _misplaced,
    }
