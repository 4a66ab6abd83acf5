"""The life of a link, common to both ends: what goes out, heartbeat, slow readers. Hot: once a message.

Sans-IO: events go in (`received`, `received_binary`, `tick`), actions come out: admitted messages to be
carried out, and at the end one `Close`. What is to be sent waits in the outbox; what may have to be sent again
over another link is in the `state`, which outlives the link. Time comes from the clock given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

import msgspec

from microkernel.errors import MicrokernelError, Unimplemented
from microkernel.wire import binary, codec
from microkernel.wire.binary import Packed
from microkernel.wire.body import HoldsBuffers
from microkernel.wire.chunks import Assembly
from microkernel.wire.codec import CloseCode, Frame, Known, ProtocolError, Unknown
from microkernel.wire.limits import Limits
from microkernel.wire.outbox import REPLAYED, Control, Outbox
from microkernel.wire.state import Replay, SessionState

__all__ = ["Action", "Authenticate", "Close", "Session", "ends_session"]

MISSED_PINGS = 2
ONE_WAY = -1  # the lane of what has no id
_OVER = frozenset({codec.NORMAL, CloseCode.GOING_AWAY, CloseCode.SLOW_READER})


class Close(msgspec.Struct, frozen=True):
    """End the link now; what is in the outbox goes first where the reader takes it."""

    code: int
    reason: str


class Authenticate(msgspec.Struct, frozen=True):
    """Find out who `token` stands for and whether the session `resume` is kept; then tell this session."""

    token: str
    resume: codec.Resume | None


Action: TypeAlias = Frame | Authenticate | Close


def ends_session(code: int) -> bool:
    """Whether a link that was closed with `code` has ended its session as well."""
    return code in _OVER or code >= CloseCode.PROTOCOL


class Session(ABC):
    """One end of a link."""

    _HANDLERS: ClassVar[Mapping[type, Callable[[Any, Any], Action | None]]]  # of an open link's messages

    def __init__(self, limits: Limits, clock: Callable[[], float], state: SessionState) -> None:
        self.limits = limits
        self.state = state
        self.outbox = Outbox(limits, self._went_late, clock)
        self.binary = 0  # bytes of the longest message with buffers that the other end takes
        self._assembly = Assembly(text=limits.text, limit=limits.binary)
        self.closed: Close | None = None
        self.takes_frames = True  # whether it makes sense to read on
        self.is_open = False  # between the handshake and the close
        self._clock = clock
        self._heartbeat = limits.heartbeat
        self._unanswered = 0
        self._heard = clock()
        self._next_ping = self._heard + self._heartbeat
        self._handshake_ends = self._heard + limits.handshake

    def received(self, text: str) -> list[Action]:
        """What to do about one text frame."""
        actions: list[Action] = []
        if self.closed is not None:
            return actions
        self._hear()
        try:
            if not self.is_open or 4 * len(text) > self.limits.text:  # a character takes at most four bytes
                self._check_size(text)
            self._carry(self._messages(text), actions)
            self._acknowledge(len(text))
        except ProtocolError as error:
            actions.append(self.close(error.code, error.reason))
        return actions

    def received_binary(self, frame: bytes | bytearray) -> list[Action]:
        """What to do about one binary frame; `frame` is not changed any more: arrays are views of it."""
        actions: list[Action] = []
        if self.closed is not None:
            return actions
        self._hear()
        try:
            if not self.limits.binary:
                raise ProtocolError("binary frames are not taken here: send text frames", CloseCode.BINARY)
            if not self.is_open:
                raise ProtocolError("a binary frame before the handshake is done", CloseCode.UNAUTHENTICATED)
            whole, begins = self._assembly.received(frame)
            if begins:
                self._received_frame(1)  # the other frames of a long message are full: they cost nothing but bytes
            if whole is not None:
                limits = self.limits
                self._carry([binary.message_of(whole, text=limits.text, limit=limits.binary)], actions)
            # At its end a long message is worth an `ack`: what is not acknowledged fills the other end.
            self._acknowledge(0 if whole is None else len(whole))
        except ProtocolError as error:
            actions.append(self.close(error.code, error.reason))
        return actions

    def tick(self) -> list[Action]:
        """What to do because time has passed; to be asked again at `due`."""
        now = self._clock()
        if self.closed is not None:
            return []
        if not self.is_open and now >= self._handshake_ends:
            return [self.close(CloseCode.HANDSHAKE_TIMEOUT, f"no handshake within {self.limits.handshake:g} s")]
        if (cut_at := self.outbox.cut_at) is not None and now >= cut_at:
            return [self.close(CloseCode.SLOW_READER, self.outbox.complaint(now))]
        if self.is_open and now >= self._next_ping:
            return self._beat(now)
        return []

    def due(self) -> float:
        """When `tick` has something to do, on the clock given."""
        when = self._next_ping if self.is_open else self._handshake_ends
        cut_at = self.outbox.cut_at
        return when if cut_at is None else min(when, cut_at)

    def close(self, code: int, reason: str) -> Close:
        """End the link from this end; returns the action. One that is closed stays as it was."""
        if self.closed is None:
            self.closed = Close(code, reason)
            self.is_open = False
            self._keep_state()
        return self.closed

    def lost(self, reason: str, code: int = codec.LOST) -> None:
        """The link has ended from outside."""
        self.close(code, reason)
        self.outbox.clear()
        self._assembly.clear()

    @property
    def can_resume(self) -> bool:
        """Whether the link has ended and the session may go on over another one."""
        return self.closed is not None and self.state.replay is not None

    @property
    def fill(self) -> float:
        """How full the fuller is of what waits to go out and what waits to be acknowledged; 1.0 is full."""
        replay, outbox = self.state.replay, self.outbox
        return outbox.fill if replay is None else max(outbox.fill, replay.fill(*outbox.in_order))

    @property
    def has_room(self) -> bool:
        """Whether it is plain that more may be put: a quick look, for which `fill` is too dear."""
        return self.outbox.has_room

    def _keep_state(self) -> None:
        """What is open goes on without a link, unless the way that it ended has ended the session too."""
        assert self.closed is not None
        code, replay = self.closed.code, self.state.replay
        if replay is None or not self.state.session or ends_session(code):
            self.state.clear()
        else:
            self._keep_unsent(replay)

    def _keep_unsent(self, replay: Replay) -> None:
        """What was to go out is kept like the rest, now that it does not go out over this link."""
        replay.link_gone()
        for message in (*self.outbox.waiting(), *self.outbox.late()):
            replay.put(message)

    def _carry(self, messages: Iterable[Known | Unknown], actions: list[Action]) -> None:
        state, handlers, unnumbered = self.state, self._HANDLERS, codec.UNNUMBERED
        for message in messages:
            kind = type(message)
            handle = handlers.get(kind) if self.is_open else None
            action = self._receive(message) if handle is None else handle(self, message)
            if kind not in unnumbered:
                state.received += 1
            if action is not None:
                actions.append(action)
                if self.closed is not None:
                    break

    def _acknowledge(self, size: int) -> None:
        """Tell the other end what it need not keep any longer, once that is worth a message."""
        state = self.state
        if state.replay is not None and self.is_open:
            if not (self.outbox.slack or self.outbox.has_room) and state.replay.is_overfull(*self.outbox.in_order):
                complaint = state.replay.complaint(*self.outbox.in_order)
                raise ProtocolError(f"slow reader: {complaint}", CloseCode.SLOW_READER)
            if state.owes_ack(size):
                self._put(codec.Ack(state.ack()))

    def _messages(self, text: str) -> Iterable[Known | Unknown]:
        if self.is_open:
            messages = codec.decode(text)
            self._received_frame(len(messages))
            return messages
        parts = codec.split(text)
        self._received_frame(len(parts))
        return self._before_ready(parts)

    def _before_ready(self, parts: list[msgspec.Raw]) -> Iterator[Known | Unknown]:
        # Who has not shown who they are: one message at a time, so that nothing is made of what follows a wrong one.
        for place in range(len(parts)):
            yield codec.decode_part(parts, place)

    @abstractmethod
    def _receive(self, message: Known | Unknown) -> Action | None:
        """What is to be done about a message before the link is open, or one of an unknown type.

        Raises `ProtocolError`, as do the `_HANDLERS`.
        """

    def _received_frame(self, count: int) -> None:  # noqa: B027 - only one end counts
        """A frame with `count` messages has come."""

    def _put(self, frame: Frame) -> None:
        """Send what is about this link."""
        self.outbox.put(Control(codec.encode(frame)))

    def _takes_binary(self, size: int) -> None:
        """The other end takes messages with buffers of `size` bytes."""
        self.binary = min(size, self.limits.binary)
        self.outbox.limit_long(self.binary)

    def _tell(self, frame: Frame) -> None:
        """Send what counts: now, and once more if it is lost with the link and the session goes on."""
        self._tell_encoded(self._encoded(frame), frame)

    def _encoded(self, frame: Frame) -> bytes | Packed:
        try:
            return codec.encode(frame)
        except HoldsBuffers:
            return binary.packed(frame)

    def _tell_encoded(self, message: bytes | Packed, frame: Frame) -> None:
        if (type(message) is Packed or self.outbox.followers) and self.is_open:
            # What has no id, events that are published and one-way messages, stays in order among itself.
            lane = getattr(frame, "id", ONE_WAY)
            if lane is not None and self.outbox.put_late(message, lane):
                return  # it counts when it goes out
        self._put_in_order(message)

    def _tell_text(self, message: bytes, lane: int) -> None:
        """`_tell` for a message that is text already, as most are."""
        if self.is_open and not self.outbox.followers:
            self.outbox.put(message)
        elif not (self.is_open and self.outbox.put_late(message, lane)):
            self._put_in_order(message)

    def _put_in_order(self, message: bytes | Packed) -> None:
        if self.is_open:
            self.outbox.put(message)
        elif self.state.replay is not None:
            self.state.replay.put(message)
            self.outbox.slack = 0  # it counts what goes through it

    def _replay(self) -> None:
        """Send again what the other end has not seen."""
        replay = self.state.replay
        if replay is not None:
            for message in replay.take_all():
                # Behind a long message all the rest is kept in order: which of it is about the same is not known.
                if not self.outbox.put_late(message, REPLAYED):
                    self._put_in_order(message)

    def _went_late(self, message: Packed | None, followers: list[bytes | Packed], lane: int) -> None:
        """A long message has gone out, or was dropped: it counts from here on, and what waited behind it goes on."""
        if message is not None and self.state.replay is not None:
            self.state.replay.put(message)
        for follower in followers:
            if not self.outbox.put_late(follower, lane):
                self._put_in_order(follower)

    def _fail(self, number: int | None, error: MicrokernelError) -> None:
        self._tell(codec.error_frame(number, error))

    def acknowledged(self, message: codec.Ack) -> None:
        """The other end has seen so many messages."""
        if self.state.replay is not None:
            self.state.replay.acknowledge(message.seen)

    def _answer_unknown(self, message: Unknown) -> None:
        if type(message.id) is int and 0 <= message.id <= codec.LARGEST_INTEGER:
            self._fail(message.id, Unimplemented(f"a message of type '{message.t[:64]}' is not known here"))

    def _opened(self, heartbeat: float) -> None:
        self.is_open = True
        self.outbox.replay = self.state.replay
        self._heartbeat = heartbeat
        self._next_ping = self._clock() + heartbeat

    def _check_size(self, text: str) -> None:
        if (size := codec.size_of(text, self.limits.text)) > self.limits.text:
            sizes = f"{codec.mebibytes(size)}, at most {codec.mebibytes(self.limits.text)}"
            raise ProtocolError(f"a text frame is too big: {sizes}", CloseCode.TOO_BIG)

    def _hear(self) -> None:
        self._heard = self._clock()
        self._unanswered = 0

    def _beat(self, now: float) -> list[Action]:
        if self._unanswered >= MISSED_PINGS:
            reason = f"no sign of life for {now - self._heard:.1f} s: {self._unanswered} pings unanswered"
            return [self.close(CloseCode.NO_ANSWER, reason)]
        self._unanswered += 1
        self._next_ping = now + self._heartbeat
        if self.state.replay is not None and self.state.received > self.state.acked:
            self._put(codec.Ack(self.state.ack()))
        self._put(codec.Ping(now))
        return []
