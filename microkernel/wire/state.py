"""What of a session outlives its link: what is open, and what the other end has not acknowledged. Sans-IO.

Hot: once a message. Every message but those about the link itself (`codec.UNNUMBERED`) counts, in each direction by
itself: its number is its place in the order. A message that may still be lost is kept as the bytes it was sent as; when
the session goes on over another link, each end says how many it has seen and gets the rest again. So nothing is lost
and nothing comes twice, as with the session state of MQTT 5 (OASIS 2019, §4.1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from microkernel.capability import Identity
from microkernel.wire.binary import Packed
from microkernel.wire.codec import ProtocolError, mebibytes
from microkernel.wire.limits import OVERFULL

__all__ = ["Replay", "SessionState"]

ACK_MESSAGES = 128  # messages; and never more than an eighth of what the other end may keep
ACK_BYTES = 256 * 1024


class Replay:
    """Messages that were sent, or are to be, until the other end says that it has seen them."""

    __slots__ = (
        "_bytes", "_kept", "_long_bytes", "_unsent", "ack_bytes", "ack_messages", "acknowledged", "buffer", "messages",
    )  # fmt: skip

    def __init__(self, buffer: int, messages: int) -> None:
        """`buffer` (bytes) and `messages` bound what is kept: producers ask `fill` before they put more."""
        self.buffer = buffer
        self.messages = messages
        self.ack_messages = min(ACK_MESSAGES, max(1, messages // 8))  # after so many the other end is told
        self.ack_bytes = min(ACK_BYTES, buffer // 8)
        self.acknowledged = 0
        self._kept: deque[bytes | Packed] = deque()
        self._bytes = 0
        self._long_bytes = 0  # of those, the ones that take more than a frame
        self._unsent = 0

    @property
    def sent(self) -> int:
        """Messages so far: also the number of the last one."""
        return self.acknowledged + len(self._kept)

    @property
    def fill(self) -> float:
        """The fuller of the two limits: 1.0 is full. Long messages come free up to twice the buffer.

        Each is acknowledged as soon as it has come; until then others need not wait for it.
        """
        short = self._bytes - self._long_bytes
        counted = short + max(0, self._long_bytes - 2 * self.buffer) if self._long_bytes else short
        return max(counted / self.buffer, len(self._kept) / self.messages)

    @property
    def is_slack(self) -> bool:
        """Whether less than half of what may be kept is."""
        return 2 * self._bytes < self.buffer and 2 * len(self._kept) < self.messages

    @property
    def is_overfull(self) -> bool:
        """Whether so much is kept that the other end cannot be waited for."""
        # A single long message may be longer than the buffer.
        return self._bytes - self._long_bytes > OVERFULL * self.buffer or len(self._kept) > OVERFULL * self.messages

    def complaint(self) -> str:
        """How much is kept, for whoever does not acknowledge it."""
        if self._bytes > self.buffer:
            return f"{mebibytes(self._bytes)} not acknowledged"
        return f"{len(self._kept)} messages not acknowledged"

    def put(self, message: bytes | Packed) -> None:
        """Keep one message."""
        self._kept.append(message)
        if type(message) is bytes:
            self._bytes += len(message)
        else:
            self._count(message, 1)

    def put_sent(self, message: Packed, waiting: Collection[bytes | Packed]) -> None:
        """Keep a long message that others overtook: it counts before those that are `waiting` to be sent."""
        identities = {id(other) for other in waiting}
        place = len(self._kept)
        while place and id(self._kept[place - 1]) in identities:
            place -= 1
        self._kept.insert(place, message)
        self._count(message, 1)

    def acknowledge(self, seen: int) -> None:
        """The other end has seen the first `seen` messages. Raises `ProtocolError` if there were never so many."""
        if seen > self.sent:
            raise ProtocolError(f"{seen} messages are acknowledged, of {self.sent}")
        for _ in range(seen - self.acknowledged):
            self._count(self._kept.popleft(), -1)
        self.acknowledged = max(seen, self.acknowledged)

    def can_resume(self, seen: int) -> bool:
        """Whether all messages after the first `seen` are here."""
        return self.acknowledged <= seen <= self.sent

    def kept(self) -> list[bytes | Packed]:
        """What the other end has not acknowledged, in order."""
        return list(self._kept)

    def take_all(self) -> list[bytes | Packed]:
        """What the other end has not acknowledged, in order: it is to be sent and kept anew."""
        kept = list(self._kept)
        self._kept.clear()
        self._bytes = self._long_bytes = self._unsent = 0
        return kept

    def never_left(self, waiting: Collection[bytes | Packed]) -> None:
        """The link is gone, and `waiting` is what it had not begun to write."""
        identities = {id(message) for message in waiting}
        self._unsent = 0
        for message in reversed(self._kept):
            if id(message) not in identities:
                break
            self._unsent += 1

    def may_have_arrived(self, number: int) -> bool:
        """Whether message `number` may have reached the other end before the link was lost."""
        return number <= self.sent - self._unsent

    def _count(self, message: bytes | Packed, sign: int) -> None:
        self._bytes += sign * len(message)
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
        self.calls: dict[int, int] = {}  # id: number of the message that opened it
        self.streams: dict[int, int] = {}  # id: items that the reader still takes
        self.inputs: dict[int, int] = {}  # id of a stream: items that its handler still takes
        self.subscriptions: dict[int, int] = {}
        self.received = 0  # messages of the other end that count
        self.acked = 0  # of those, how many it knows of
        self._bytes = 0

    @property
    def in_flight(self) -> int:
        """Calls and streams that have not ended."""
        return len(self.calls) + len(self.streams)

    @property
    def number(self) -> int:
        """The number of the message sent last; 0 where none is kept."""
        return 0 if self.replay is None else self.replay.sent

    def is_open(self, number: int) -> bool:
        """Whether id `number` names something that has not ended."""
        return number in self.calls or number in self.streams or number in self.subscriptions

    def finish(self, number: int) -> bool:
        """Whatever id `number` names has ended; False if there was nothing."""
        if self.calls.pop(number, None) is not None:
            return True
        self.inputs.pop(number, None)
        return self.streams.pop(number, None) is not None or self.subscriptions.pop(number, None) is not None

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
