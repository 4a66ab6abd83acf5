"""How often somebody may do something, at an even rate with a burst (hot: once a message).

The generic cell rate algorithm (ITU-T I.371): an account is one number, the moment at which all that was taken would
have come at the even rate. Sans-IO: the time comes from the caller, monotonic, in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from microkernel.capability import Rate

__all__ = ["Accounts", "Rates"]

ACCOUNTS = 4096  # the ones used longest ago are forgotten: they are full again long before, or will be


class Accounts:
    """Accounts by key. What is taken is told as the time that it takes at the even rate, in seconds."""

    def __init__(self, accounts: int = ACCOUNTS) -> None:
        self._accounts = accounts
        self._due: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._due)

    def wait(self, key: str, seconds: float, now: float, *, burst: float) -> float:
        """How long until so much could be taken, where `burst` seconds' worth may be taken ahead; 0 for now."""
        wait = max(self._due.get(key, now), now) + seconds - now - burst
        return wait if wait > 1e-9 else 0.0  # rounding

    def take(self, key: str, seconds: float, now: float) -> None:
        """Take so much, whether or not it is there: an account may be overdrawn."""
        self._due[key] = max(self._due.get(key, now), now) + seconds
        self._due.move_to_end(key)
        while len(self._due) > self._accounts:
            self._due.popitem(last=False)


class Rates:
    """The accounts of a node, by the id of the block that sets the bound: one for each, whatever the number of links.

    A token narrowed from another one has the blocks of both, so narrowing a token many times, or opening many links
    with it, gives nobody more than the first bound.
    """

    def __init__(self, accounts: int = ACCOUNTS) -> None:
        self._accounts = Accounts(accounts)

    def __len__(self) -> int:
        return len(self._accounts)

    def take(self, rates: Sequence[Rate], now: float, count: int = 1) -> float:
        """Take `count` messages from all accounts, or none: 0 if they were taken, else the seconds to wait.

        What is more than a whole burst is never admitted; the wait told for it is that of an account emptied.
        """
        wait = 0.0
        for each in rates:
            wait = max(wait, self._accounts.wait(each.id, count / each.rate, now, burst=each.burst / each.rate))
        if wait > 0.0:
            return wait
        for each in rates:
            self._accounts.take(each.id, count / each.rate, now)
        return 0.0
