"""How often holders of a token may ask: one account for each bound, whatever the number of links (hot: once a message).

The generic cell rate algorithm (ITU-T I.371): an account is one number, the moment at which all that was taken would
have come at the even rate. Sans-IO: the time comes from the caller, monotonic, in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from microkernel.capability import Rate

__all__ = ["Rates"]

ACCOUNTS = 4096  # the ones used longest ago are forgotten: they are full again long before, or will be


class Rates:
    """The accounts of a node, by the id of the block that sets the bound.

    A token narrowed from another one has the blocks of both, so narrowing a token many times, or opening many links
    with it, gives nobody more than the first bound.
    """

    def __init__(self, accounts: int = ACCOUNTS) -> None:
        self._accounts = accounts
        self._due: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._due)

    def take(self, rates: Sequence[Rate], now: float, count: int = 1) -> float:
        """Take `count` messages from all accounts, or none: 0 if they were taken, else the seconds to wait.

        What is more than a whole burst is never admitted; the wait told for it is that of an account emptied.
        """
        wait = 0.0
        for each in rates:
            level = max(self._due.get(each.id, now), now) + count / each.rate
            wait = max(wait, level - now - each.burst / each.rate)
        if wait > 1e-9:  # seconds; rounding
            return wait
        for each in rates:
            self._due[each.id] = max(self._due.get(each.id, now), now) + count / each.rate
            self._due.move_to_end(each.id)
        while len(self._due) > self._accounts:
            self._due.popitem(last=False)
        return 0.0
