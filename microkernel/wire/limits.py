"""What a link may take: the announced limits, the rate of messages, and the buffer of what waits to go out.

Sans-IO, hot: once a message. Nothing on a link is unbounded; every limit is told to the client in `hello`.
"""

from __future__ import annotations

from collections import deque

from microkernel.message import Message
from microkernel.wire.codec import MaxSizes, join, mebibytes

__all__ = ["Limits", "Bucket", "Outbox"]

FULL = 1.0
OVERFULL = 2.0  # above this share of the buffer, the reader is cut without waiting
BUSY = 0.75  # above this share of the buffer, producers wait
FRAME_BYTES = 256 * 1024  # of several messages in one frame: longer ones would make a ping wait behind them


class Limits(Message, kw_only=True):
    """Limits of one session; sizes in bytes, times in seconds.

    `text` is the longest text frame either way. `credit` is what a stream gets that names none. `buffer` and
    `messages` bound what waits to go out: above 75 % of either, producers wait; above 100 % nothing is read from
    the client, which is cut after `slow_after` of that, and at once above 200 %. `rate` is messages a second with
    bursts of `burst`. A link is dead when two pings, `heartbeat` apart, brought no sign of life by the time of a
    third. `sessions` is of the whole server.
    """

    text: int = 2**20
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
    sessions: int = 1024

    def announced(self) -> MaxSizes:
        """The part that a client has to know."""
        return MaxSizes(
            text=self.text,
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


class Outbox:
    """Encoded messages that wait to go out, and how much of its two limits they fill."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._taken_bytes = 0  # of the frame that is being written: still pending, the reader has not taken it
        self._taken_messages = 0
        self._full_since: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def pending_bytes(self) -> int:
        """Bytes of all messages that are not written yet."""
        return self._bytes + self._taken_bytes

    @property
    def pending_messages(self) -> int:
        """Messages that are not written yet."""
        return len(self._waiting) + self._taken_messages

    def put(self, message: bytes, now: float) -> None:
        """Add one message; it never waits and is never refused: producers ask `fill` first."""
        self._waiting.append(message)
        self._bytes += len(message)
        self._judge(now)

    def take(self) -> bytes | None:
        """The next text frame: all that is ready up to a good size, as one array; None when there is nothing.

        The frame stays pending until `written`; one at a time.
        """
        if not self._waiting or self._taken_messages:
            return None
        first = self._waiting.popleft()
        messages = [first]
        size = len(first)
        longest = min(FRAME_BYTES, self._limits.text - 2)
        while self._waiting and size + len(self._waiting[0]) + len(messages) <= longest:
            message = self._waiting.popleft()
            messages.append(message)
            size += len(message)
        self._bytes -= size
        self._taken_bytes = size
        self._taken_messages = len(messages)
        return first if len(messages) == 1 else join(messages)

    def written(self, now: float) -> None:
        """The frame last taken has gone out."""
        self._taken_bytes = self._taken_messages = 0
        self._judge(now)

    def clear(self) -> None:
        """Forget everything: the link is gone."""
        self._waiting.clear()
        self._bytes = self._taken_bytes = self._taken_messages = 0
        self._full_since = None

    @property
    def fill(self) -> float:
        """The fuller of the two limits: 1.0 is full."""
        return max(self.pending_bytes / self._limits.buffer, self.pending_messages / self._limits.messages)

    @property
    def cut_at(self) -> float | None:
        """When the reader is to be cut if nothing changes; None while the buffer is not over its limit."""
        if self._full_since is None:
            return None
        return self._full_since + (0.0 if self.fill > OVERFULL else self._limits.slow_after)

    def complaint(self, now: float) -> str:
        """What the slow reader is told; the buffer is over its limit."""
        assert self._full_since is not None
        if self.pending_bytes > self._limits.buffer:
            what = mebibytes(self.pending_bytes)
        else:
            what = f"{self.pending_messages} messages"
        return f"slow reader: {what} pending for {now - self._full_since:.1f} s"

    def _judge(self, now: float) -> None:
        if self.fill <= FULL:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
