"""What one session is admitted: its rate, the rates of its token, and nothing new once the node leaves. Sans-IO.

Hot: once a message.
"""

from __future__ import annotations

from collections.abc import Callable

from microkernel.capability import Rate
from microkernel.errors import MicrokernelError, Overloaded, Unavailable
from microkernel.rates import Rates
from microkernel.wire.codec import CloseCode, ProtocolError
from microkernel.wire.limits import Bucket, Limits

__all__ = ["Admission"]


class Admission:
    """Counts what a client sends; says why something is not begun."""

    def __init__(self, limits: Limits, rates: Rates, clock: Callable[[], float]) -> None:
        """`rates` are the accounts of all tokens that have a bound, for the whole node."""
        self.is_clear = True  # nothing stands against beginning something, and nothing is to be counted
        self._token_rates: tuple[Rate, ...] = ()
        self._bucket = Bucket(limits.rate, limits.burst, clock())
        self._take = rates.take
        self._clock = clock
        self._leaving: Unavailable | None = None

    def count_for(self, token_rates: tuple[Rate, ...]) -> None:
        """Hold the client to the rates of its token as well."""
        self._token_rates = token_rates
        self._look()

    def leave(self, reason: str, after: float) -> None:
        """Begin nothing new; the client is to come back after so many seconds."""
        self._leaving = Unavailable(f"this node is about to leave: {reason}", retry_after=after, may_have_run=False)
        self._look()

    def frame(self, count: int) -> None:
        """A frame with `count` messages has come. Raises `ProtocolError` for a flood."""
        # An empty frame costs as much as a message.
        self._bucket.take(count or 1, self._clock())
        self._look()
        if not self.is_clear and self._bucket.is_abused:
            raise ProtocolError(
                f"too many messages: {self._bucket.overdrawn:.0f} more than {self._bucket.rate:g} a second "
                f"with bursts of {self._bucket.burst}",
                CloseCode.RATE,
            )

    def why_not(self) -> MicrokernelError | None:
        """Why a message that would begin something is not admitted now; None if it is, and counted."""
        if self._leaving is not None:
            return self._leaving
        if self._token_rates and (wait := self._take(self._token_rates, self._clock())):
            return Overloaded("more messages than the token's rate allows", retry_after=wait, may_have_run=False)
        if self._bucket.overdrawn:
            return Overloaded(
                f"more than {self._bucket.rate:g} messages a second in this session", retry_after=self._bucket.wait()
            )
        return None

    def _look(self) -> None:
        self.is_clear = self._leaving is None and not self._token_rates and self._bucket.is_covered
