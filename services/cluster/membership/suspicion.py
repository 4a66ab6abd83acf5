"""How long a member is suspect before it is dead, and who may get no work although it is there. Sans-IO.

Lifeguard's suspicion (Dadgar, Phillips and Currey, 2018): it begins long, and each independent accuser shortens it. So
one node that cannot hear takes long to bury the others, and they are quick to bury one that is gone.
"""

from __future__ import annotations

import math
from collections import deque

from services.cluster.membership.rules import Rules

__all__ = ["Conduct", "Suspicion"]

MOST_ACCUSERS = 8


class Suspicion:
    """One member, suspect since `since`.

    `tried`: this node itself got no answer, and has heard nothing from the member since. Nobody buries a member that it
    has not tried itself: what it was told may be old.
    """

    __slots__ = ("_least", "_most", "_wanted", "accusers", "since", "tried")

    def __init__(self, since: float, rules: Rules, members: int, period: float) -> None:
        """`members` is how many there are, `period` the seconds in which one is probed once."""
        self.since = since
        self.accusers: dict[str, None] = {}
        self.tried = False
        self._least = rules.suspicion * max(1.0, math.log10(members)) * period
        # Only who is neither the accuser nor the suspect can confirm.
        self._wanted = max(0, min(rules.confirmations, members - 2))
        self._most = self._least * rules.doubt if self._wanted else self._least

    @property
    def ends(self) -> float:
        """When its time is over, as things stand."""
        if not self._wanted:
            return self.since + self._least
        others = min(max(len(self.accusers) - 1, 0), self._wanted)
        share = math.log(others + 1) / math.log(self._wanted + 1)
        return self.since + self._most - (self._most - self._least) * share

    def accuse(self, by: str) -> bool:
        """`by` got no answer either; whether that is news that shortens it."""
        if by in self.accusers or len(self.accusers) >= min(self._wanted + 1, MOST_ACCUSERS):
            return False
        self.accusers[by] = None
        return True


class Conduct:
    """How often one member fell under suspicion, and until when that costs it its work."""

    __slots__ = ("_falls", "_quiet", "until")

    def __init__(self, rules: Rules) -> None:
        self._falls: deque[float] = deque(maxlen=rules.falls)
        self._quiet = 0.0  # seconds, the last time
        self.until = -math.inf

    def quarantined(self, now: float) -> bool:
        """Whether it has not been quiet for long enough."""
        return now < self.until

    def fell(self, now: float, rules: Rules) -> None:
        """It is suspect, or was found gone."""
        self._falls.append(now)
        if self.quarantined(now):
            self.until = now + self._quiet
        elif len(self._falls) == rules.falls and now - self._falls[0] <= rules.falls_within:
            if now - self.until > rules.forgiven:
                self._quiet = 0.0
            self._quiet = min(self._quiet * 2, rules.quiet_most) if self._quiet else rules.quiet
            self.until = now + self._quiet
