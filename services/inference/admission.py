"""Who may ask now: rates of requests and tokens by owner, and no longer a wait than is worth it. Plain classes.

What an answer takes is known only as it is made, so tokens are taken as they come, and an owner who has had too many
waits until the rate has caught up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from microkernel.errors import Invalid, Overloaded
from microkernel.message import Message
from microkernel.rates import Accounts

__all__ = ["EVERYBODY", "Admission", "OwnerRate", "Wait"]

EVERYBODY = "*"
MINUTE = 60.0
NEWEST = 0.1  # weight of the newest answer in how long one keeps its place


class OwnerRate(Message):
    """What an owner may have in a minute, at an even rate, with as much at once after a minute without; None: no limit.

    Tokens are those of prompts that had to be read and of answers.
    """

    requests: float | None = None
    tokens: float | None = None


class Admission:
    """The accounts of all owners."""

    def __init__(self, rates: Mapping[str, OwnerRate]) -> None:
        """`rates` by owner; that of `*` is for each who is not named. Raises `Invalid` for a rate that is none."""
        for owner, rate in rates.items():
            for each in (rate.requests, rate.tokens):
                if each is not None and not (math.isfinite(each) and each > 0.0):
                    raise Invalid(
                        f"the rate of '{owner}' is {each} in a minute, and more than 0 is needed", field="rates"
                    )
        self._rates = dict(rates)
        self._requests, self._tokens = Accounts(), Accounts()

    def ask(self, owner: str, now: float, *, requests: int = 1) -> None:
        """Take so many requests. Raises `Overloaded` with the time to come back, and takes nothing then."""
        rate = self._rate(owner)
        if rate is None:
            return
        seconds = 0.0 if rate.requests is None else requests * MINUTE / rate.requests
        wait = self._requests.wait(owner, seconds, now, burst=max(MINUTE, seconds))
        wait = max(wait, self._tokens.wait(owner, 0.0, now, burst=MINUTE))
        if wait > 0.0:
            limits = [
                f"{each:g} {what}" for each, what in ((rate.requests, "requests"), (rate.tokens, "tokens")) if each
            ]
            raise Overloaded(
                f"'{owner}' may have {' and '.join(limits)} in a minute, and has had them", retry_after=wait
            )
        if rate.requests is not None:
            self._requests.take(owner, seconds, now)

    def charge(self, owner: str, tokens: int, now: float) -> None:
        """Tokens were computed for an owner."""
        rate = self._rate(owner)
        if rate is not None and rate.tokens is not None:
            self._tokens.take(owner, tokens * MINUTE / rate.tokens, now)

    def _rate(self, owner: str) -> OwnerRate | None:
        return self._rates.get(owner, self._rates.get(EVERYBODY))


class Wait:
    """How long a request waits for a place, by how long answers kept theirs."""

    def __init__(self) -> None:
        self._each = 0.0

    def note(self, seconds: float) -> None:
        """An answer kept its place for so long."""
        self._each = seconds if self._each == 0.0 else self._each + NEWEST * (seconds - self._each)

    def estimate(self, *, running: int, waiting: int, places: int) -> float:
        """Seconds for one that comes now; 0 where a place is free, or nothing is known yet."""
        if running + waiting < places:
            return 0.0
        return self._each * (waiting + 1) / places

    def check(self, longest: float, *, running: int, waiting: int, places: int) -> None:
        """Raise `Overloaded` where it would be longer than `longest` seconds, with the time to come back."""
        seconds = self.estimate(running=running, waiting=waiting, places=places)
        if seconds > longest:
            raise Overloaded(
                f"{waiting} requests wait for {places} places, some {seconds:.0f} s, and the limit is {longest:.0f} s",
                retry_after=seconds - longest,
            )
