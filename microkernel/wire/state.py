"""What of a session outlives its link: what is open, and what the other end has not acknowledged. Sans-IO.

Hot: once a message. Every message but those about the link itself (`codec.UNNUMBERED`) counts, in each direction by
itself: its number is its place in the order. A message that may still be lost is kept as the bytes it was sent as; when
the session goes on over another link, each end says how many it has seen and gets the rest again. So nothing is lost
and nothing comes twice, as with the session state of MQTT 5 (OASIS 2019, §4.1).
"""

from __future__ import annotations

from collections import deque

from microkernel.capability import Identity
from microkernel.wire.binary import Packed
from microkernel.wire.codec import ProtocolError, mebibytes
from microkernel.wire.limits import OVERFULL

__all__ = ["Replay", "SessionState"]

ACK_MESSAGES = 128  # messages; and never more than an eighth of what the other end may keep
ACK_BYTES = 256 * 1024


class Replay:
    """Messages that have gone out, by frames, until the other end says that it has seen them.

    While there is no link, those are kept as well that are to go out over the next one.
    """

    __slots__ = (
        "_frames", "_left", "_long_bytes", "ack_bytes", "ack_messages", "acknowledged", "buffer", "messages", "sent",
        "size",
    )  # fmt: skip

    def __init__(self, buffer: int, messages: int) -> None:
        """`buffer` (bytes) and `messages` bound what is kept: producers ask `fill` before they put more."""
        self.buffer = buffer
        self.messages = messages
        self.ack_messages = min(ACK_MESSAGES, max(1, messages // 8))  # after so many the other end is told
        self.ack_bytes = min(ACK_BYTES, buffer // 8)
        self.acknowledged = 0
        self.sent = 0  # messages so far: also the number of the last one
        self.size = 0  # bytes that are kept
        self._frames: deque[tuple[list[bytes | Packed], int]] = deque()  # each with its bytes
        self._long_bytes = 0  # of those, the ones that take more than a frame
        self._left = 0  # the number of the last message that has begun to leave over a link which is gone

    @property
    def count(self) -> int:
        """Messages that are kept."""
        return self.sent - self.acknowledged

    def fill(self, size: int, count: int) -> float:
        """The fuller of the two limits, with `count` messages more of `size` bytes: 1.0 is full.

        Long messages come free up to twice the buffer: each is acknowledged as soon as it has come; until then others
        need not wait for it.
        """
        size += self.size - self._long_bytes
        if self._long_bytes:
            size += max(0, self._long_bytes - 2 * self.buffer)
        return max(size / self.buffer, (self.count + count) / self.messages)

    def is_overfull(self, size: int, count: int) -> bool:
        """Whether with `count` messages more of `size` bytes the other end cannot be waited for."""
        # A single long message may be longer than the buffer.
        short = self.size - self._long_bytes + size
        return short > OVERFULL * self.buffer or self.count + count > OVERFULL * self.messages

    def complaint(self, size: int, count: int) -> str:
        """How much is kept with those, for whoever does not acknowledge it."""
        if self.size + size > self.buffer:
            return f"{mebibytes(self.size + size)} not acknowledged"
        return f"{self.count + count} messages not acknowledged"

    def keep(self, messages: list[bytes | Packed], size: int) -> None:
        """Keep the messages of one frame, which have `size` bytes together."""
        self._frames.append((messages, size))
        self.sent += len(messages)
        self.size += size
        if type(messages[0]) is Packed:
            self._count_long(messages, 1)

    def put(self, message: bytes | Packed) -> None:
        """Keep one message."""
        self.keep([message], len(message))

    def acknowledge(self, seen: int) -> None:
        """The other end has seen the first `seen` messages. Raises `ProtocolError` if there were never so many."""
        if seen > self.sent:
            raise ProtocolError(f"{seen} messages are acknowledged, of {self.sent}")
        while self.acknowledged < seen:
            messages, size = self._frames.popleft()
            new = seen - self.acknowledged
            if new < len(messages):
                messages, rest = messages[:new], messages[new:]
                left = sum(map(len, rest))
                self._frames.appendleft((rest, left))
                size -= left
            self.acknowledged += len(messages)
            self.size -= size
            if self._long_bytes:
                self._count_long(messages, -1)

    def can_resume(self, seen: int) -> bool:
        """Whether all messages after the first `seen` are here."""
        return self.acknowledged <= seen <= self.sent

    def kept(self) -> list[bytes | Packed]:
        """What the other end has not acknowledged, in order."""
        return [message for messages, _ in self._frames for message in messages]

    def take_all(self) -> list[bytes | Packed]:
        """What the other end has not acknowledged, in order: it is to be sent and kept anew."""
        kept = self.kept()
        self._frames.clear()
        self.sent = self.acknowledged
        self.size = self._long_bytes = 0
        return kept

    def link_gone(self) -> None:
        """What is kept so far may have left; what is put from here on has not."""
        self._left = self.sent

    def closed_by_leaver(self) -> None:
        """The other end closed the link as one that leaves: it has acknowledged all that it took."""
        self._left = self.acknowledged

    def never_left(self) -> list[bytes | Packed]:
        """What is kept and surely has not reached the other end."""
        return self.kept()[max(0, self._left - self.acknowledged) :]

    def _count_long(self, messages: list[bytes | Packed], sign: int) -> None:
        for message in messages:
            if type(message) is Packed and message.is_long:
                self._long_bytes += sign * message.size


class SessionState:
    """One end's side of a session: ids of what is open, and the messages that count."""

    __slots__ = ("_bytes", "acked", "calls", "identity", "inputs", "received", "replay", "session", "streams",
                 "subscriptions")  # fmt: skip

    def __init__(self, session: str = "", replay: Replay | None = None) -> None:
        """Without a `replay`, the session ends with its link."""
        self.session = session
        self.identity: Identity | None = None
        self.replay = replay
        self.calls: set[int] = set()  # ids
        self.streams: dict[int, int] = {}  # id: items that the reader still takes
        self.inputs: dict[int, int] = {}  # id of a stream: items that its handler still takes
        self.subscriptions: set[int] = set()
        self.received = 0  # messages of the other end that count
        self.acked = 0  # of those, how many it knows of
        self._bytes = 0

    @property
    def in_flight(self) -> int:
        """Calls and streams that have not ended."""
        return len(self.calls) + len(self.streams)

    def is_open(self, number: int) -> bool:
        """Whether id `number` names something that has not ended."""
        return number in self.calls or number in self.streams or number in self.subscriptions

    def finish(self, number: int) -> bool:
        """Whatever id `number` names has ended; False if there was nothing."""
        if number in self.calls:
            self.calls.remove(number)
            return True
        if number in self.subscriptions:
            self.subscriptions.remove(number)
            return True
        self.inputs.pop(number, None)
        return self.streams.pop(number, None) is not None

    def owes_ack(self, size: int) -> bool:
        """Whether it is time for an `ack`, now that a frame of `size` bytes has come."""
        replay = self.replay
        if replay is None:
            return False
        self._bytes += size
        new = self.received - self.acked
        return new >= replay.ack_messages or (self._bytes >= replay.ack_bytes and new > 0)

    def ack(self) -> int:
        """How many messages have been seen, for an `ack` that goes out now."""
        self.acked = self.received
        self._bytes = 0
        return self.received

    def begin(self, session: str, replay: Replay | None) -> None:
        """A new session: nothing is open, nothing has been sent or seen."""
        self.clear()
        self.session, self.replay = session, replay
        self.received = self.acked = self._bytes = 0

    def clear(self) -> None:
        """Nothing is open any more, and nothing can be resumed."""
        self.calls.clear()
        self.streams.clear()
        self.inputs.clear()
        self.subscriptions.clear()
        self.replay = None
