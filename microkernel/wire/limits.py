"""What a link may take: the announced limits, the rate of messages, and the buffer of what waits to go out.

Sans-IO, hot: once a message. Nothing on a link is unbounded; every limit is told to the client in `hello`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from microkernel.message import Message
from microkernel.wire.binary import FRAME_BYTES, Packed
from microkernel.wire.chunks import LongMessages, frame_bytes
from microkernel.wire.codec import MaxSizes, join, mebibytes

__all__ = ["Limits", "Bucket", "Outbox"]

FULL = 1.0
OVERFULL = 2.0  # above this share of the buffer, the reader is cut without waiting
BUSY = 0.75  # above this share of the buffer, producers wait
REPLAYED = -2  # the lane of what is sent once more, from a long message on


class Limits(Message, kw_only=True):
    """Limits of one session; sizes in bytes, times in seconds.

    `text` is the longest text frame either way, `binary` the longest message with buffers, and all that are on their
    way in one direction at a time; 0 refuses them. `credit` is what a stream gets that names none. `buffer` and
    `messages` bound what waits to go out: above 75 % of either, producers wait, and a client that takes none of it for
    `slow_after` is cut; above 100 % nothing is read from the client, which is cut after `slow_after` of that, and at
    once above 200 %. `rate` is messages a second with
    bursts of `burst`. A link is dead when two pings, `heartbeat` apart, brought no sign of life by the time of a
    third. `resume` is how long a session whose client asks for it survives without a link; what the client has not
    acknowledged is bounded by `buffer` and `messages` once more. `sessions` is of the whole server.
    """

    text: int = 2**20
    binary: int = 16 * 2**20
    inflight: int = 256
    subscriptions: int = 256
    credit: int = 64
    buffer: int = 8 * 2**20
    messages: int = 4096
    slow_after: float = 5.0
    rate: float = 2000.0
    burst: int = 4000
    heartbeat: float = 15.0
    handshake: float = 10.0
    resume: float = 60.0
    sessions: int = 1024

    def announced(self) -> MaxSizes:
        """The part that a client has to know."""
        return MaxSizes(
            text=self.text,
            binary=self.binary,
            inflight=self.inflight,
            credit=self.credit,
            subscriptions=self.subscriptions,
            buffer=self.buffer,
            messages=self.messages,
            rate=self.rate,
            burst=self.burst,
        )


class Bucket:
    """A token bucket: `rate` a second, `burst` at once; overdrawn by more than `burst` it is abused."""

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = float(burst)
        self._filled = now

    def take(self, count: int, now: float) -> None:
        """Take `count` tokens, whether they are there or not."""
        self._level = min(self.burst, self._level + max(0.0, now - self._filled) * self.rate) - count
        self._filled = now

    @property
    def is_covered(self) -> bool:
        """Whether nothing is overdrawn."""
        return self._level >= 0

    @property
    def overdrawn(self) -> float:
        """How many tokens more than there were have been taken; 0 when none."""
        return max(0.0, -self._level)

    @property
    def is_abused(self) -> bool:
        """Whether what was taken too much is more than a whole burst."""
        return self._level < -self.burst

    def wait(self) -> float:
        """Seconds until nothing is overdrawn any more."""
        return self.overdrawn / self.rate


Parts: TypeAlias = list[bytes | memoryview]
WentLate: TypeAlias = Callable[["Packed | None", "list[bytes | Packed]", int], None]


class Outbox:
    """Encoded messages that wait to go out, and how much of its two limits they fill.

    Long messages go out in parts, and whatever else waits goes in between: it waits for one part at most. What is
    about the same thing (a call, a stream, a subscription: its *lane*) stays in order behind them.
    """

    def __init__(self, limits: Limits, went_late: WentLate) -> None:
        """`went_late` is told of a long message that has gone out, None for one that was dropped; it puts the rest."""
        self._limits = limits
        self._waiting: deque[bytes | Packed] = deque()
        self._bytes = 0
        self._taken_bytes = 0  # of the frame that is being written: still pending, the reader has not taken it
        self._taken_messages = 0
        self._is_taken = self._is_part_taken = False
        self._busy_bytes, self._busy_messages = BUSY * limits.buffer, BUSY * limits.messages
        self._busy_since: float | None = None  # producers wait; or when the last frame went out meanwhile
        self._full_since: float | None = None
        self._long = LongMessages()
        self.followers: dict[int, list[bytes | Packed]] = {}  # of each long message, by lane; empty: nothing is late
        self._late: dict[int, Packed] = {}  # the long messages themselves, by lane
        self._following = self._following_bytes = 0
        self._late_bytes = self._begun = 0  # bytes of long messages that are still to go, and how many have begun
        self._aborts: deque[bytes] = deque()
        self._is_turn_of_long = False
        self._went_late = went_late
        self._now = self._taken_at = 0.0
        self._part_bytes = FRAME_BYTES  # what goes out in a moment, by the last part that did

    def __len__(self) -> int:
        return len(self._waiting) + len(self._long) + len(self._aborts)

    def waiting(self) -> list[bytes | Packed]:
        """What no frame has been made of yet and goes out in order."""
        return list(self._waiting)

    def late(self) -> list[bytes | Packed]:
        """What goes out late: the long messages that have not gone out whole, each with its followers."""
        return [message for lane, behind in self.followers.items() for message in (self._late[lane], *behind)]

    @property
    def pending_bytes(self) -> int:
        """Bytes of all messages that are not written yet."""
        return self._bytes + self._taken_bytes + self._following_bytes + self._late_bytes

    @property
    def pending_messages(self) -> int:
        """Messages that are not written yet."""
        return len(self._waiting) + self._taken_messages + self._following + self._begun

    def put(self, message: bytes | Packed, now: float) -> None:
        """Add one message; it never waits and is never refused: producers ask `fill` first."""
        waiting = self._waiting
        waiting.append(message)
        self._bytes += len(message)
        messages, size = len(waiting) + self._taken_messages, self._bytes + self._taken_bytes
        if 2 * messages > self._limits.messages or 2 * size > self._limits.buffer or self._late_bytes:
            self._judge(now)

    def put_late(self, message: bytes | Packed, lane: int, now: float) -> bool:
        """Add a long message, or one that has to stay behind one in its lane; False for others: they are for `put`."""
        lane = REPLAYED if REPLAYED in self.followers else lane
        if lane in self.followers:
            self.followers[lane].append(message)
            self._following += 1
            self._following_bytes += len(message)
        elif type(message) is Packed and message.is_long:
            self.followers[lane] = []
            self._late[lane] = message
            self._late_bytes += message.size
            self._waiting.append(message)  # it begins when what was put before it has gone
        else:
            return False
        self._now = now
        self._judge(now)
        return True

    def take(self) -> bytes | Parts | None:
        """The next frame, a text frame as bytes and a binary one in parts; None when there is nothing.

        A text frame is all that is ready up to a good size, as one array. The frame stays pending until `written`; one
        at a time.
        """
        if self._is_taken:
            return None
        if not self.followers and not self._aborts:  # nothing long is under way, as usual
            if not self._waiting:
                return None
            self._is_taken = True
            return self._take_waiting()
        if self._aborts:
            self._is_taken = True
            return [self._aborts.popleft()]
        self._begin_long()
        if self._waiting and not (self._is_turn_of_long and len(self._long)):
            self._is_turn_of_long = self._is_taken = True
            return self._take_waiting()
        if len(self._long):
            self._is_turn_of_long, self._is_taken = False, True
            return self._take_part()
        return None

    def drop(self, lane: int) -> bool:
        """Do not send the rest of the long message of `lane`. False if there is none, or other messages follow it."""
        followers = self.followers.pop(lane, None)
        if followers is None:
            return False
        message = self._late.pop(lane)
        if message in self._waiting:
            self._waiting.remove(message)
            self._late_bytes -= message.size
        else:
            before = self._long.bytes_left
            if abort := self._long.drop(lane):
                self._aborts.append(abort)
            self._begun -= 1
            self._late_bytes -= before - self._long.bytes_left
        self._put_followers(None, followers, lane)
        return not followers

    def written(self, now: float) -> None:
        """The frame last taken has gone out."""
        if self._is_part_taken:
            self._part_bytes = frame_bytes(self._taken_bytes, now - self._taken_at)
            self._is_part_taken = False
            if self._full_since is not None:
                self._full_since = now  # who takes a part in time is not slow
        if self._busy_since is not None:
            self._busy_since = now
        self._now = now
        self._taken_bytes = self._taken_messages = 0
        self._is_taken = False
        if self._busy_since is not None or self._full_since is not None or self.followers:
            self._judge(now)

    def clear(self) -> None:
        """Forget everything: the link is gone."""
        self._waiting.clear()
        self._long.clear()
        self.followers.clear()
        self._late.clear()
        self._aborts.clear()
        self._late_bytes = self._begun = 0
        self._bytes = self._taken_bytes = self._taken_messages = self._following = self._following_bytes = 0
        self._is_taken = self._is_part_taken = False
        self._busy_since = self._full_since = None

    def limit_long(self, size: int) -> None:
        """The other end takes long messages of `size` bytes together at a time."""
        self._long.limit = size

    @property
    def is_slack(self) -> bool:
        """Whether less than half of what may wait does, and nothing long is among it."""
        waiting = self._waiting
        if 2 * len(waiting) >= self._limits.messages or 2 * (self._bytes + self._taken_bytes) >= self._limits.buffer:
            return False
        return not self.followers

    @property
    def backlog(self) -> float:
        """`fill` without the long messages: they are no reason not to read the cancel of one."""
        pending = self._bytes + self._taken_bytes + self._following_bytes
        return max(pending / self._limits.buffer, self.pending_messages / self._limits.messages)

    @property
    def fill(self) -> float:
        """The fuller of the two limits: 1.0 is full. Of long messages, as much as may be under way comes free.

        Who has something short to say would wait for a long one otherwise.
        """
        short = self._bytes + self._taken_bytes + self._following_bytes
        pending = short + max(0, self._late_bytes - self._long.limit) if self._late_bytes else short
        return max(pending / self._limits.buffer, self.pending_messages / self._limits.messages)

    @property
    def cut_at(self) -> float | None:
        """When the reader is to be cut if nothing changes; None while nobody waits for it."""
        if self._full_since is None:
            return None if self._busy_since is None else self._busy_since + self._limits.slow_after
        return self._full_since + (0.0 if self.backlog > OVERFULL else self._limits.slow_after)

    def complaint(self, now: float) -> str:
        """What the slow reader is told; producers wait for it, or the buffer is over its limit."""
        assert self._busy_since is not None
        limit = self._busy_bytes if self._full_since is None else self._limits.buffer
        what = mebibytes(self.pending_bytes) if self.pending_bytes > limit else f"{self.pending_messages} messages"
        if self._full_since is None:
            return f"slow reader: {what} pending, none taken for {now - self._busy_since:.1f} s"
        return f"slow reader: {what} pending for {now - self._full_since:.1f} s"

    def _judge(self, now: float) -> None:
        size, count = self.pending_bytes, self.pending_messages
        if size <= self._busy_bytes and count <= self._busy_messages:
            self._busy_since = self._full_since = None
            return
        if self._busy_since is None:
            self._busy_since = now
        if size <= self._limits.buffer and count <= self._limits.messages:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now

    def _begin_long(self) -> None:
        """Have the long messages whose turn it is go out in parts: what was put before them has gone."""
        while self._waiting and type(message := self._waiting[0]) is Packed and message.is_long:
            self._waiting.popleft()
            self._begun += 1
            self._long.add(message, next(lane for lane, late in self._late.items() if late is message))

    def _take_waiting(self) -> bytes | Parts:
        waiting = self._waiting
        first = waiting.popleft()
        size = len(first)
        if not waiting and type(first) is bytes:  # alone, as in a conversation
            self._bytes -= size
            self._taken_bytes, self._taken_messages = size, 1
            return first
        if type(first) is Packed:
            self._bytes -= size
            self._taken_bytes, self._taken_messages = size, 1
            return list(first.parts)
        assert isinstance(first, bytes)
        messages = [first]
        longest = min(FRAME_BYTES, self._limits.text - 2)
        while waiting and type(message := waiting[0]) is bytes and size + len(message) + len(messages) <= longest:
            waiting.popleft()
            messages.append(message)
            size += len(message)
        self._bytes -= size
        self._taken_bytes = size
        self._taken_messages = len(messages)
        return first if len(messages) == 1 else join(messages)

    def _take_part(self) -> Parts:
        before = self._long.bytes_left
        frame, ended = self._long.next_frame(FRAME_BYTES if self._waiting else self._part_bytes)
        self._is_part_taken, self._taken_at = True, self._now
        self._taken_bytes = sum(map(len, frame))
        self._late_bytes -= before - self._long.bytes_left
        if ended is not None:
            self._begun -= 1
            self._taken_messages = 1
            lane, message = ended
            del self._late[lane]
            self._put_followers(message, self.followers.pop(lane), lane)
        return frame

    def _put_followers(self, message: Packed | None, followers: list[bytes | Packed], lane: int) -> None:
        self._following -= len(followers)
        self._following_bytes -= sum(map(len, followers))
        self._went_late(message, followers, lane)
