"""The life of a link, common to both ends: what goes out, heartbeat, slow readers. Hot: once a message.

Sans-IO: events go in (`received`, `received_binary`, `tick`), actions come out: admitted messages to be
carried out, and at the end one `Close`. What is to be sent waits in the outbox. Time comes from the clock
given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TypeAlias

import msgspec

from microkernel.capability import Identity
from microkernel.errors import MicrokernelError, Unimplemented
from microkernel.wire import codec
from microkernel.wire.codec import CloseCode, Frame, Known, ProtocolError, Unknown
from microkernel.wire.limits import Limits, Outbox

__all__ = ["Action", "Close", "Session", "Welcome"]

MISSED_PINGS = 2


class Close(msgspec.Struct, frozen=True):
    """End the link now; what is in the outbox goes first where the reader takes it."""

    code: int
    reason: str


class Welcome(msgspec.Struct, frozen=True):
    """A client has shown who it is: whatever follows is done with the rights of `identity`."""

    identity: Identity


Action: TypeAlias = Frame | Welcome | Close


class Session(ABC):
    """One end of a link."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.outbox = Outbox(limits)
        self.closed: Close | None = None
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
            self._check_size(text)
            for message in self._messages(text):
                action = self._receive(message)
                if action is not None:
                    actions.append(action)
                if isinstance(action, Close):
                    break
        except ProtocolError as error:
            actions.append(self.close(error.code, error.reason))
        return actions

    def received_binary(self) -> list[Action]:
        """What to do about one binary frame: this version of the protocol has none."""
        if self.closed is not None:
            return []
        return [self.close(CloseCode.BINARY, "binary frames are not taken here: send text frames")]

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
        """End the session from this end; returns the action. A session that is closed stays as it was."""
        if self.closed is None:
            self.closed = Close(code, reason)
            self.is_open = False
            self._forget()
        return self.closed

    def lost(self, reason: str, code: int = codec.LOST) -> None:
        """The link has ended from outside."""
        if self.closed is None:
            self.closed = Close(code, reason)
            self.is_open = False
            self._forget()
        self.outbox.clear()

    def _messages(self, text: str) -> Iterable[Known | Unknown]:
        if self.is_open:
            messages = codec.decode(text)
            self._received_frame(len(messages))
            return messages
        # Who has not shown who they are: one message at a time, so that nothing is made of what follows a wrong one.
        parts = codec.split(text)
        self._received_frame(len(parts))
        return (codec.decode_part(parts, place) for place in range(len(parts)))

    @abstractmethod
    def _receive(self, message: Known | Unknown) -> Action | None:
        """What is to be done about one message; raises `ProtocolError`."""

    @abstractmethod
    def _forget(self) -> None:
        """Let go of all that was open."""

    def _received_frame(self, count: int) -> None:  # noqa: B027 - only one end counts
        """A frame with `count` messages has come."""

    def _put(self, frame: Frame) -> None:
        self.outbox.put(codec.encode(frame), self._clock())

    def _fail(self, number: int | None, error: MicrokernelError) -> None:
        self._put(codec.error_frame(number, error))

    def _answer_unknown(self, message: Unknown) -> None:
        if type(message.id) is int and 0 <= message.id <= codec.LARGEST_INTEGER:
            self._fail(message.id, Unimplemented(f"a message of type '{message.t[:64]}' is not known here"))

    def _opened(self, heartbeat: float) -> None:
        self.is_open = True
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
        self._put(codec.Ping(now))
        return []
