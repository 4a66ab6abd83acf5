"""What this node is to the others, and what it does when it hears of itself."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from services.cluster.membership.actions import Action, Changed, Fenced
from services.cluster.membership.beliefs import update_of
from services.cluster.membership.detector import Health
from services.cluster.membership.rumours import Rumours
from services.cluster.messages import NEWEST_INCARNATION, Member, MemberState, Update

__all__ = ["Own"]

FENCES = 8  # that are remembered
FENCES_WITHIN = 60.0  # seconds
FIRST_WAIT = 0.5  # seconds to wait when a node is fenced for the second time in a row; doubles
MOST_WAIT = 30.0


class Own:
    """The node's own entry. `newest` is the highest incarnation that was heard of under its name."""

    def __init__(self, me: Member, rumours: Rumours, health: Health, out: list[Action]) -> None:
        self.me = me
        self.fenced = False
        self.newest = me.incarnation
        self._rumours = rumours
        self._health = health
        self._out = out
        self._fences: deque[float] = deque(maxlen=FENCES)

    @property
    def left(self) -> bool:
        """Whether it has said that it goes."""
        return self.me.state is MemberState.LEFT

    def become(self, **changes: Any) -> None:
        """It is no longer as it was; all are to hear that."""
        before = self.me
        self.me = msgspec.structs.replace(before, **changes)
        self.newest = max(self.newest, self.me.incarnation)
        self._out.append(Changed(self.me, before))
        self._rumours.put(update_of(self.me))

    def would_end(self, update: Update) -> bool:
        """Whether somebody tells that this life is over."""
        return update.state.over and self.me.life <= update.incarnation < NEWEST_INCARNATION

    def told(self, update: Update, now: float, *, gives_way: bool) -> None:
        """Somebody tells of this node. It only takes being buried from those to whom it `gives_way`."""
        me = self.me
        if self.left or update.life > update.incarnation or update.incarnation >= NEWEST_INCARNATION:
            return
        self.newest = max(self.newest, update.incarnation)
        if self.fenced:
            return
        elsewhere = bool(update.address) and update.address != me.address
        if update.state.over:
            if self.would_end(update) and gives_way:
                self.fence(update.by[0] if update.by else update.node, now)
        elif update.incarnation > me.incarnation:
            # Not this process said so: another one that has its name, or one before it, of which the count was lost.
            if elsewhere:
                self.fence(update.node, now, rival=update.address)
            else:
                self.become(incarnation=update.incarnation + 1, life=update.incarnation + 1)
        elif update.incarnation == me.incarnation:
            if elsewhere and update.address > me.address:
                self.fence(update.node, now, rival=update.address)
            elif update.state is MemberState.SUSPECT:
                self._health.worse()
                self.become(incarnation=me.incarnation + 1)

    def fence(self, by: str, now: float, *, rival: str | None = None) -> None:
        """This life is over."""
        self.fenced = True
        self._fences.append(now)
        lately = sum(now - each < FENCES_WITHIN for each in self._fences)
        wait = min(FIRST_WAIT * 2 ** (lately - 2), MOST_WAIT) if lately > 1 else 0.0
        self._out.append(Fenced(self.me.incarnation, by, wait, rival))

    def reborn(self) -> None:
        """A new life begins."""
        self.fenced = False
        life = min(self.newest + 1, NEWEST_INCARNATION)
        self.become(incarnation=life, life=life)
