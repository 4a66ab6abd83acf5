"""What a link may take: the announced limits, and the rate of messages. Sans-IO, hot: once a frame.

Nothing on a link is unbounded; every limit is told to the client in `hello`.
"""

from __future__ import annotations

from microkernel.message import Message
from microkernel.wire.codec import MaxSizes

__all__ = ["BUSY", "FULL", "OVERFULL", "Bucket", "Limits"]

FULL = 1.0
OVERFULL = 2.0  # above this share of the buffer, the reader is cut without waiting
BUSY = 0.75  # above this share of the buffer, producers wait


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
        if now > self._filled:
            self._level = min(self.burst, self._level + (now - self._filled) * self.rate)
            self._filled = now
        self._level -= count

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
