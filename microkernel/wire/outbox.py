"""What waits to go out on a link, and the frames that are made of it. Sans-IO, hot: once a message."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from microkernel.wire.binary import FRAME_BYTES, Packed
from microkernel.wire.chunks import LongMessages, frame_bytes
from microkernel.wire.codec import join, mebibytes
from microkernel.wire.limits import BUSY, OVERFULL, Limits
from microkernel.wire.state import Replay

__all__ = ["REPLAYED", "Control", "Outbox", "Parts"]

REPLAYED = -2  # the lane of what is sent once more, from a long message on

Parts: TypeAlias = list[bytes | memoryview]
WentLate: TypeAlias = Callable[["Packed | None", "list[bytes | Packed]", int], None]


class Control(bytes):
    """An encoded message about the link itself: it has no number, and is not kept."""

    __slots__ = ()


class Outbox:
    """Encoded messages that wait to go out, and how much of its two limits they fill.

    What goes out is kept in `replay`, where there is one, until the other end has acknowledged it.

    Long messages go out in parts, and whatever else waits goes in between: it waits for one part at most. What is
    about the same thing (a call, a stream, a subscription: its *lane*) stays in order behind them.
    """

    def __init__(self, limits: Limits, went_late: WentLate, clock: Callable[[], float]) -> None:
        """`went_late` is told of a long message that has gone out, None for one that was dropped; it puts the rest."""
        self.replay: Replay | None = None
        self.slack = 0  # bytes that may be put before it is time to look; each message counts for some more
        self._limits = limits
        self._each = limits.buffer // limits.messages + 1  # bytes that a message counts for beside its own
        self._clock = clock
        self.queue: deque[bytes | Packed] = deque()  # what goes out in order
        self._uncommon = 0  # of those, the ones that are no text, or not numbered
        self._bytes = 0
        self._taken_bytes = 0  # of the frame that is being written: still pending, the reader has not taken it
        self._taken_messages = 0
        self._is_taken = self._is_part_taken = False
        self._busy_bytes, self._busy_messages = BUSY * limits.buffer, BUSY * limits.messages
        self.busy_since: float | None = None  # producers wait; or when the last frame went out meanwhile
        self._full_since: float | None = None
        self._long = LongMessages()
        self.followers: dict[int, list[bytes | Packed]] = {}  # of each long message, by lane; empty: nothing is late
        self._late: dict[int, Packed] = {}  # the long messages themselves, by lane
        self._following = self._following_bytes = 0
        self._late_bytes = self._begun = 0  # bytes of long messages that are still to go, and how many have begun
        self._aborts: deque[bytes] = deque()
        self._is_turn_of_long = False
        self._went_late = went_late
        self._taken_at = 0.0
        self._part_bytes = FRAME_BYTES  # what goes out in a moment, by the last part that did

    def __len__(self) -> int:
        return len(self.queue) + len(self._aborts) + (len(self._long) if self.followers else 0)

    def waiting(self) -> list[bytes | Packed]:
        """What no frame has been made of yet, goes out in order, and is to be kept."""
        return [
            message
            for message in self.queue
            if type(message) is bytes or (type(message) is Packed and not message.is_long)
        ]

    @property
    def in_order(self) -> tuple[int, int]:
        """Bytes and messages that wait to go out in order, and are to be kept then."""
        return self._bytes, len(self.queue) - (len(self._late) - self._begun)

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
        return len(self.queue) + self._taken_messages + self._following + self._begun

    def put(self, message: bytes | Packed) -> None:
        """Add one message; it never waits and is never refused: producers ask `has_room` or `fill` first."""
        self.queue.append(message)
        size = len(message)
        self._bytes += size
        self.slack -= size + self._each
        if type(message) is not bytes:
            self._uncommon += 1
        if self.slack < 0:
            self._look()

    def put_late(self, message: bytes | Packed, lane: int) -> bool:
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
            self.queue.append(message)  # it begins when what was put before it has gone
            self._uncommon += 1
        else:
            return False
        self.slack = 0
        self._judge()
        return True

    def take(self) -> bytes | Parts | None:
        """The next frame, a text frame as bytes and a binary one in parts; None when there is nothing.

        A text frame is all that is ready up to a good size, as one array. The frame stays pending until `written`; one
        at a time.
        """
        if self._is_taken:
            return None
        if not self.followers and not self._aborts:  # nothing long is under way, as usual
            return self._take_waiting() if self.queue else None
        if self._aborts:
            self._is_taken = True
            return [self._aborts.popleft()]
        self._begin_long()
        if self.queue and not (self._is_turn_of_long and len(self._long)):
            self._is_turn_of_long = True
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
        if message in self.queue:
            self.queue.remove(message)
            self._uncommon -= 1
            self._late_bytes -= message.size
        else:
            before = self._long.bytes_left
            if abort := self._long.drop(lane):
                self._aborts.append(abort)
            self._begun -= 1
            self._late_bytes -= before - self._long.bytes_left
        self._put_followers(None, followers, lane)
        return not followers

    def written(self) -> None:
        """The frame last taken has gone out."""
        if self._is_part_taken:
            now = self._clock()
            self._part_bytes = frame_bytes(self._taken_bytes, now - self._taken_at)
            self._is_part_taken = False
            if self._full_since is not None:
                self._full_since = now  # who takes a part in time is not slow
        if self.busy_since is not None:
            self.busy_since = self._clock()
        self._taken_bytes = self._taken_messages = 0
        self._is_taken = False
        if self.busy_since is not None or self._full_since is not None or self.followers:
            self._judge()

    def clear(self) -> None:
        """Forget everything: the link is gone."""
        self.queue.clear()
        self._long.clear()
        self.followers.clear()
        self._late.clear()
        self._aborts.clear()
        self._late_bytes = self._begun = self._uncommon = 0
        self._bytes = self._taken_bytes = self._taken_messages = self._following = self._following_bytes = 0
        self._is_taken = self._is_part_taken = False
        self.busy_since = self._full_since = None

    def limit_long(self, size: int) -> None:
        """The other end takes long messages of `size` bytes together at a time."""
        self._long.limit = size

    @property
    def has_room(self) -> bool:
        """Whether less than half of what may wait and be kept does, and nothing long is among it."""
        return self.slack > 0 or self._look() > 0

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
            return None if self.busy_since is None else self.busy_since + self._limits.slow_after
        return self._full_since + (0.0 if self.backlog > OVERFULL else self._limits.slow_after)

    def complaint(self, now: float) -> str:
        """What the slow reader is told; producers wait for it, or the buffer is over its limit."""
        assert self.busy_since is not None
        limit = self._busy_bytes if self._full_since is None else self._limits.buffer
        what = mebibytes(self.pending_bytes) if self.pending_bytes > limit else f"{self.pending_messages} messages"
        if self._full_since is None:
            return f"slow reader: {what} pending, none taken for {now - self.busy_since:.1f} s"
        return f"slow reader: {what} pending for {now - self._full_since:.1f} s"

    def _look(self) -> int:
        """The slack there is, as it is to be looked at no more until it is used up; below 0 nothing is left of it."""
        self._judge()
        if self.followers:
            self.slack = 0
            return 0
        size, count = self._bytes, len(self.queue)
        if self.replay is None:
            size, count = size + self._taken_bytes, count + self._taken_messages
        else:  # which keeps what was taken
            size, count = size + self.replay.size, count + self.replay.count
        left = self._limits.buffer // 2 - size - count * self._each
        self.slack = max(0, left)
        return left

    def _judge(self) -> None:
        size, count = self.pending_bytes, self.pending_messages
        if size <= self._busy_bytes and count <= self._busy_messages:
            self.busy_since = self._full_since = None
            return
        if self.busy_since is None:
            self.busy_since = self._clock()
        if size <= self._limits.buffer and count <= self._limits.messages:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = self._clock()

    def _begin_long(self) -> None:
        """Have the long messages whose turn it is go out in parts: what was put before them has gone."""
        while self.queue and type(message := self.queue[0]) is Packed and message.is_long:
            self.queue.popleft()
            self._uncommon -= 1
            self._begun += 1
            self._long.add(message, next(lane for lane, late in self._late.items() if late is message))

    def _take_waiting(self) -> bytes | Parts:
        queue = self.queue
        self._is_taken = True
        longest = min(FRAME_BYTES, self._limits.text - 2)
        messages: list[Any]
        kept: list[Any]
        if not self._uncommon and self._bytes + len(queue) <= longest:  # all of it, as usual
            messages, size = list(queue), self._bytes
            queue.clear()
            kept = messages
        else:
            messages, size = self._first_few(longest)
            kept = [message for message in messages if type(message) is not Control]
        self._bytes -= size
        self._taken_bytes, self._taken_messages = size, len(messages)
        if self.replay is not None and kept:
            self.replay.keep(kept, size if kept is messages else sum(map(len, kept)))
        first: bytes | Packed = messages[0]
        if isinstance(first, Packed):
            return list(first.parts)
        return first if len(messages) == 1 else join(messages)

    def _first_few(self, longest: int) -> tuple[list[Any], int]:
        """What the next frame is made of: one packed message, or texts of so many bytes."""
        queue = self.queue
        messages: list[Any] = [queue.popleft()]
        size = len(messages[0])
        if type(messages[0]) is Packed:
            self._uncommon -= 1
            return messages, size
        self._uncommon -= type(messages[0]) is Control
        while queue and type(message := queue[0]) is not Packed:
            if size + len(message) + len(messages) > longest:
                break
            messages.append(queue.popleft())
            size += len(message)
            self._uncommon -= type(message) is Control
        return messages, size

    def _take_part(self) -> Parts:
        before = self._long.bytes_left
        frame, ended = self._long.next_frame(FRAME_BYTES if self.queue else self._part_bytes)
        self._is_part_taken, self._taken_at = True, self._clock()
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
