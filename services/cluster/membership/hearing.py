"""Whom this node believes, and what (hot: twice a probe).

Members are believed in what they tell of others. One that was buried is heard only in what it says of this node: in
that way each side of a cluster that was cut in two hears that the other one has buried it. The side with fewer members
gives way. A node that does goes over to the other side altogether: until it has the table of the member that fenced it,
it believes nobody else, or those that it comes from would have it bury the other side's members once more. Whoever
reaches far fewer than this node is not believed in who is dead.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from services.cluster.membership.actions import Action, Exchange, Tell
from services.cluster.membership.beliefs import RANKS, Beliefs, update_of
from services.cluster.membership.own import Own
from services.cluster.membership.rules import Rules
from services.cluster.membership.telling import Telling
from services.cluster.messages import Gossip, MemberState

__all__ = ["Hearing"]

OWN_WORD = (MemberState.ALIVE, MemberState.DRAINING, MemberState.LEFT)  # what a node says of itself
FAR = 1.5  # times as many members as another one reaches, and its word on who is dead is not taken
FEW = 2  # members more are nothing: they may have gone a moment ago
PATIENCE = 5  # times `dial` that the table of the other side is waited for


class Hearing:
    """Takes gossip, and sorts it."""

    def __init__(
        self,
        own: Own,
        beliefs: Beliefs,
        telling: Telling,
        rules: Rules,
        out: list[Action],
        *,
        fenced: Callable[[], None],
    ) -> None:
        """`fenced` is called when this node hears that its life is over."""
        self._own = own
        self._beliefs = beliefs
        self._telling = telling
        self._rules = rules
        self._out = out
        self._fenced = fenced
        self._adopts: set[str] = set()  # members from which this node, as a new one, takes its table
        self._fencer: tuple[str, str] | None = None  # who said that this life is over, and its address
        self._follows = ""  # the one member that is believed
        self._until = 0.0

    @property
    def settled(self) -> bool:
        """Whether this node has the table of the side that it went over to, so that others may take it from here."""
        return not self._follows

    def adopt(self, source: str) -> None:
        """What comes from this member is news to this node alone, until it has told all."""
        self._adopts.add(source)

    def hear(self, gossip: Gossip, now: float) -> None:
        """Somebody tells this node something."""
        if self._own.left or gossip.source == self._own.me.node:
            return
        buried = self._beliefs.buried(gossip.source, gossip.life)
        lonely = gossip.living < min(self._beliefs.living / FAR, self._beliefs.living - FEW)
        self._hear_of_this_node(gossip, now, buried=buried, lonely=lonely)
        if self._beliefs.buried(gossip.source, gossip.life) or not self._believes(gossip.source, now):
            return
        learnt = self._beliefs.learnt
        spread = gossip.source not in self._adopts
        for update in gossip.updates:
            if update.node != self._own.me.node and not (lonely and update.state is MemberState.DEAD):
                self._beliefs.believe(update, now, spread=spread)
        if self._own.fenced:
            return
        self._hear_itself(gossip, now)
        if gossip.wanted:
            self._out.append(Tell(gossip.source, self._telling.asked_for(gossip.wanted)))
        if gossip.more and self._beliefs.learnt > learnt:
            self.compare(gossip.source)
            return
        self._adopts.discard(gossip.source)
        if gossip.compared and gossip.source == self._follows:
            self._follows = ""

    def compare(self, node: str) -> None:
        """Compare all that is known with a member."""
        peer = self._beliefs.peers.get(node)
        if peer is not None:
            self._out.append(Exchange(node, peer.member.address, self._telling.summary_to(node)))

    def come_back(self, now: float) -> bool:
        """This node has a new life: go over to the side of who ended the last one; False where that is not known."""
        fencer, self._fencer = self._fencer, None
        self._adopts.clear()
        if fencer is None:
            return False
        self._follows, self._until = fencer[0], now + PATIENCE * self._rules.dial
        self._ask(*fencer)
        return True

    def insist(self, now: float) -> None:
        """The answer to that may have been lost: ask again."""
        peer = self._beliefs.peers.get(self._follows)
        if peer is not None and now < self._until:
            self._ask(self._follows, peer.member.address)

    def _ask(self, node: str, address: str) -> None:
        """Ask the other side for its table, with whom it has buried of those that this node knew."""
        self._out.append(Exchange(node, address, self._telling.summary_to(node, with_lost=True)))

    def _hear_of_this_node(self, gossip: Gossip, now: float, *, buried: bool, lonely: bool) -> None:
        was_fenced = self._own.fenced
        gives_way = not lonely and not (buried and self._outweighs(gossip))
        for update in gossip.updates:
            if update.node == self._own.me.node:
                if lonely and not was_fenced and self._own.would_end(update):
                    self._bury(gossip.source, now)
                self._own.told(update, now, gives_way=gives_way)
        if self._own.fenced and not was_fenced:
            self._fencer = self._reached(gossip.source)
            self._fenced()

    def _bury(self, node: str, now: float) -> None:
        """A member that reaches few has buried this node: one of the two has to come back anew."""
        peer = self._beliefs.peers.get(node)
        if peer is not None:
            self._beliefs.bury(peer, now)

    def _believes(self, source: str, now: float) -> bool:
        if self._follows and now >= self._until:
            self._follows = ""
        return self._follows in ("", source)

    def _reached(self, node: str) -> tuple[str, str] | None:
        """A member with its address, as far as that is known."""
        peer, lost = self._beliefs.known(node), self._beliefs.lost.get(node)
        address = peer.member.address if peer is not None else lost.address if lost is not None else ""
        return (node, address) if address else None

    def _hear_itself(self, gossip: Gossip, now: float) -> None:
        """The source of gossip is there, in the state of which it speaks."""
        peer = self._beliefs.peers.get(gossip.source)
        if peer is None or gossip.state not in OWN_WORD:
            return
        member = peer.member
        if gossip.life > member.life:  # another process: what it is, it tells when asked
            self.compare(gossip.source)
        elif gossip.life == member.life:
            known = (member.incarnation, RANKS[member.state])
            if (gossip.incarnation, RANKS[gossip.state]) > known:
                update = update_of(member, state=gossip.state, by=())
                self._beliefs.believe(msgspec.structs.replace(update, incarnation=gossip.incarnation, card=None), now)
            self._telling.told_edition(gossip.source, gossip.edition)
            self._beliefs.contact(peer)

    def _outweighs(self, gossip: Gossip) -> bool:
        """Whether this node's side is the one to stay, where each has buried the other."""
        if self._beliefs.living != gossip.living:
            return self._beliefs.living > gossip.living
        return self._own.me.node < gossip.source
