"""What this node believes of the others: the table, the graves, who is suspect, and what is passed on (hot).

An update holds against what is believed as in SWIM (Das, Gupta and Motivala, DSN 2002): the higher incarnation does, of
equals the worse state. Death ends a whole life, with all incarnations that it took to contradict suspicions: whoever
was buried comes back with a new life or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from itertools import chain

import msgspec

from services.cluster.membership.actions import Action, Changed
from services.cluster.membership.detector import RoundTrip
from services.cluster.membership.graves import Grave, Graves, Lost
from services.cluster.membership.rules import Rules
from services.cluster.membership.rumours import Rumours
from services.cluster.membership.suspicion import Conduct, Suspicion
from services.cluster.membership.timers import Timers
from services.cluster.messages import Card, Load, Mark, Member, MemberState, Update

__all__ = ["Beliefs", "Due", "Key", "Peer", "card_of", "knows_better", "mark_of", "update_of"]

RANKS = {
    MemberState.ALIVE: 0,
    MemberState.QUARANTINED: 0,
    MemberState.DRAINING: 1,
    MemberState.SUSPECT: 2,
    MemberState.DEAD: 3,
    MemberState.LEFT: 3,
}
OVER = 3


class Due(IntEnum):
    """What there is to do at a time."""

    PROBE = 0  # the next in turn
    ROUND = 1  # the probes of one member go on, or have failed
    AGAIN = 2  # probe a suspect once more
    SUSPICION = 3
    QUIET = 4  # a quarantine may be over
    FORGET = 5
    EXCHANGE = 6
    DIAL = 7
    SWEEP = 8


Key = tuple[Due, str]


class Peer:
    """Another member, with all that is known of it."""

    __slots__ = ("conduct", "member", "round_trip", "suspicion")

    def __init__(self, member: Member) -> None:
        self.member = member
        self.round_trip: RoundTrip | None = None
        self.suspicion: Suspicion | None = None
        self.conduct: Conduct | None = None


class Beliefs:
    """The other members. All that changes is told by `Changed`, and passed on where it is news."""

    def __init__(self, node: str, rules: Rules, timers: Timers[Key], out: list[Action]) -> None:
        """For `node`, which is not in the table itself; what is to be done is added to `out`."""
        self.peers: dict[str, Peer] = {}  # those that are there, suspects too
        self.gone: dict[str, Peer] = {}  # those that went a moment ago
        self.graves = Graves(rules.most_graves, rules.buried)
        self.lost = Lost(rules.most_graves, rules.dialled)
        self.rumours = Rumours(rules.gossip_factor, rules.gossip_entries, rules.gossip_bytes)
        self.living = 1  # members that are neither suspect nor gone, this node too
        self.learnt = 0  # how often anything has changed
        self.met: Callable[[str], None] = _nothing  # is called with each member that comes
        self._node = node
        self._rules = rules
        self._timers = timers
        self._out = out

    @property
    def present(self) -> int:
        """How many members are there, this node too."""
        return len(self.peers) + 1

    def all_peers(self) -> Iterator[Peer]:
        """Those that are there, and those that went a moment ago."""
        return chain(self.peers.values(), self.gone.values())

    def known(self, node: str) -> Peer | None:
        """The member, whether it is there or went a moment ago."""
        return self.peers.get(node) or self.gone.get(node)

    def buried(self, node: str, life: int) -> bool:
        """Whether that life of the node is over."""
        if self.graves.holds(node, life):
            return True
        gone = self.gone.get(node)
        return gone is not None and life <= gone.member.incarnation

    def believe(self, update: Update, now: float, *, spread: bool = True) -> None:
        """Somebody tells of another member than this one; pass it on if it is news and `spread`."""
        if update.life > update.incarnation:
            return  # no node says so
        if update.state.over:
            self._bury(update, now, spread=spread)
            return
        if self.buried(update.node, update.life):
            return
        peer = self.peers.get(update.node)
        if peer is None:
            self._meet(update, now, spread=spread)
            return
        if _is_newer(update, peer.member):
            self._renew(peer, update, now, spread=spread)
            return
        if update.incarnation == peer.member.incarnation and update.state is MemberState.SUSPECT:
            for accuser in update.by:
                self._accuse(peer, accuser)
        if update.life == peer.member.life and _is_later(update.card, peer.member.card):
            self._take_card(peer, update, spread=spread)

    def suspect(self, peer: Peer, now: float) -> None:
        """This node got no answer from the member, which is not gone."""
        member = peer.member
        if peer.suspicion is None:
            self._become(peer, msgspec.structs.replace(member, state=MemberState.SUSPECT))
            self._doubt(peer, (self._node,), now)
            self.fell(peer, now)
            self._pass_on(peer)
        else:
            self._accuse(peer, self._node)
        assert peer.suspicion is not None
        peer.suspicion.tried = True

    def bury(self, peer: Peer, now: float) -> None:
        """This node finds that the member's life is over."""
        update = update_of(peer.member, state=MemberState.DEAD, by=(self._node,))
        self._bury(update, now, spread=True)

    def contact(self, peer: Peer) -> None:
        """The member itself has spoken: it is not buried before it is tried again."""
        if peer.suspicion is not None:
            peer.suspicion.tried = False

    def fell(self, peer: Peer, now: float) -> None:
        """Count against it that it is suspect, or was found gone."""
        if peer.conduct is None:
            peer.conduct = Conduct(self._rules)
        peer.conduct.fell(now, self._rules)

    def flaps(self, peer: Peer, now: float) -> bool:
        """Whether it has fallen too often."""
        return peer.conduct is not None and peer.conduct.quarantined(now)

    def forgive(self, node: str, now: float) -> None:
        """A quarantine is over, unless the member fell again meanwhile."""
        peer = self.peers.get(node)
        if peer is None or peer.conduct is None or peer.member.state is not MemberState.QUARANTINED:
            return
        if peer.conduct.quarantined(now):
            self._timers.set((Due.QUIET, node), peer.conduct.until)
        else:
            self._become(peer, msgspec.structs.replace(peer.member, state=MemberState.ALIVE))

    def forget(self, node: str) -> None:
        """Take it from the table, if it is gone; its grave stays."""
        self.gone.pop(node, None)

    def begin_anew(self, now: float) -> None:
        """Forget who was buried and who is suspect: another side has the right."""
        for peer in list(self.peers.values()):
            if peer.suspicion is not None:
                self._trust(peer)
                self._become(peer, msgspec.structs.replace(peer.member, state=MemberState.ALIVE))
                self.rumours.drop(peer.member.node)
        for node, peer in self.gone.items():
            if peer.member.state is MemberState.DEAD:
                self.lost.add(node, peer.member.address, now)
            self._timers.drop((Due.FORGET, node))
            self.rumours.drop(node)
        self.gone.clear()
        self.graves.clear()

    def shift(self, seconds: float) -> None:
        """So long nothing could be heard: suspicions last as much longer."""
        for peer in self.peers.values():
            if peer.suspicion is not None:
                peer.suspicion.since += seconds
                self._timers.set((Due.SUSPICION, peer.member.node), peer.suspicion.ends)

    def _meet(self, update: Update, now: float, *, spread: bool) -> None:
        """A member that was not there. Where the table is full, it is not taken."""
        if len(self.peers) >= self._rules.most_members:
            return
        peer = self.gone.get(update.node)
        if peer is not None:
            self._renew(peer, update, now, spread=spread)
            return
        member = Member(
            node=update.node,
            incarnation=update.incarnation,
            life=update.life,
            state=MemberState.DEAD,
            address=update.address,
        )
        self._renew(Peer(member), update, now, spread=spread, new=True)

    def _renew(self, peer: Peer, update: Update, now: float, *, spread: bool, new: bool = False) -> None:
        """What is told is newer than what was known."""
        before = peer.member
        address = update.address or before.address
        reborn = new or update.life != before.life or address != before.address
        if reborn:
            peer.round_trip = None
        card = Card() if reborn else before.card
        if _is_later(update.card, card):
            card = card_of(update)
        state: MemberState = MemberState.ALIVE if update.state is MemberState.QUARANTINED else update.state
        if state is MemberState.ALIVE and peer.conduct is not None and peer.conduct.quarantined(now):
            state = MemberState.QUARANTINED
            self._timers.set((Due.QUIET, before.node), peer.conduct.until)
        member = Member(
            node=before.node,
            incarnation=update.incarnation,
            life=update.life,
            state=state,
            address=address,
            version=update.version,
            protocol=update.protocol,
            protocol_min=update.protocol_min,
            card=card,
            load=Load() if reborn else before.load,
        )
        self._trust(peer)
        self._timers.drop((Due.FORGET, before.node))
        self.lost.found(before.node)
        self._become(peer, member, new=new)
        if state is MemberState.SUSPECT:
            self._doubt(peer, update.by, now)
            self.fell(peer, now)
        if spread:
            self._pass_on(peer)

    def _take_card(self, peer: Peer, update: Update, *, spread: bool) -> None:
        self._become(peer, msgspec.structs.replace(peer.member, card=card_of(update)))
        if spread and peer.suspicion is None:
            self._pass_on(peer)

    def _bury(self, update: Update, now: float, *, spread: bool) -> None:
        grave = self.graves.get(update.node)
        if grave is not None and grave.incarnation >= update.incarnation:
            return
        peer = self.peers.get(update.node)
        if peer is not None and peer.member.life > update.incarnation:
            peer = None  # that was an earlier life
        incarnation = update.incarnation if peer is None else max(update.incarnation, peer.member.incarnation)
        address = update.address if peer is None else peer.member.address
        by = update.by[0] if update.by else update.node
        self.graves.dig(update.node, Grave(incarnation, update.state, address, by, now))
        if peer is None:  # who is not there needs no farewell
            if gone := self.gone.get(update.node):
                gone.member = msgspec.structs.replace(gone.member, incarnation=incarnation)
            return
        self._trust(peer)
        peer.round_trip = None
        self._become(peer, msgspec.structs.replace(peer.member, state=update.state, incarnation=incarnation))
        self._timers.drop((Due.QUIET, update.node))
        self._timers.set((Due.FORGET, update.node), now + self._rules.shown)
        if update.state is MemberState.DEAD:
            self.lost.add(update.node, address, now)
        else:
            self.lost.found(update.node)
        self.rumours.drop(update.node)
        if spread:
            self.rumours.put(update_of(peer.member, by=(by,)))

    def _doubt(self, peer: Peer, accusers: tuple[str, ...], now: float) -> None:
        """It is suspect from now on, by the word of others or of this node."""
        trip = peer.round_trip
        rules = self._rules
        slow = 0.0 if trip is None else 2 * trip.usual(rules.first, rules.floor, rules.ceiling)
        peer.suspicion = Suspicion(now, rules, self.present, max(rules.period, slow))
        for accuser in accusers:
            peer.suspicion.accuse(accuser)
        self._timers.set((Due.SUSPICION, peer.member.node), peer.suspicion.ends)

    def _accuse(self, peer: Peer, accuser: str) -> None:
        """One more says that it does not answer."""
        if peer.suspicion is not None and peer.suspicion.accuse(accuser):
            self._timers.set((Due.SUSPICION, peer.member.node), peer.suspicion.ends)
            self._pass_on(peer)

    def _trust(self, peer: Peer) -> None:
        """It is not suspect any more."""
        peer.suspicion = None
        self._timers.drop((Due.SUSPICION, peer.member.node))
        self._timers.drop((Due.AGAIN, peer.member.node))

    def _pass_on(self, peer: Peer) -> None:
        by = () if peer.suspicion is None else tuple(peer.suspicion.accusers)
        self.rumours.put(update_of(peer.member, by=by))

    def _become(self, peer: Peer, member: Member, *, new: bool = False) -> None:
        """The one place where a member of the table changes."""
        before = peer.member
        peer.member = member
        self.learnt += 1
        self.living += _lives(member) - _lives(before)
        self._out.append(Changed(member, None if new else before))
        if before.state.over and not member.state.over:
            self.gone.pop(member.node, None)
            self.peers[member.node] = peer
            self.met(member.node)
        elif member.state.over and not before.state.over:
            del self.peers[member.node]
            self.gone[member.node] = peer
            if len(self.gone) > self._rules.most_members:
                self.forget(next(iter(self.gone)))


def _nothing(_: str) -> None:
    """Nobody wants to know."""


def update_of(
    member: Member, *, state: MemberState | None = None, by: tuple[str, ...] = (), whole: bool = False
) -> Update:
    """What is told of a member. Unless it is to be `whole`, the card goes with good news only: bad ones are short."""
    state = state or member.state
    if state is MemberState.QUARANTINED:
        state = MemberState.ALIVE  # each node counts for itself
    carded = whole or state is MemberState.ALIVE or state is MemberState.DRAINING
    return Update(
        node=member.node,
        incarnation=member.incarnation,
        life=member.life,
        state=state,
        address=member.address,
        version=member.version,
        protocol=member.protocol,
        protocol_min=member.protocol_min,
        card=member.card if carded and member.card.edition else None,
        by=by,
    )


def mark_of(member: Member) -> Mark:
    """The member in short."""
    return Mark(member.node, member.incarnation, member.life, RANKS[member.state], member.card.edition)


def knows_better(one: Mark, other: Mark) -> bool:
    """Whether the first of two marks of a member is of something that the other side should be told."""
    if one.rank == OVER:
        return other.incarnation < one.incarnation if other.rank == OVER else other.life <= one.incarnation
    if other.rank == OVER:
        return one.life > other.incarnation
    return (one.incarnation, one.rank, one.edition) > (other.incarnation, other.rank, other.edition)


def card_of(update: Update) -> Card:
    """The card that is told; an empty one where there is none."""
    return update.card or Card()


def _is_newer(update: Update, member: Member) -> bool:
    if update.incarnation != member.incarnation:
        return update.incarnation > member.incarnation and update.life >= member.life
    if update.address and update.address != member.address:
        return update.address > member.address  # two processes with one name: all have to choose the same
    return RANKS[update.state] > RANKS[member.state]


def _is_later(card: Card | None, known: Card) -> bool:
    return card is not None and card.edition > known.edition


def _lives(member: Member) -> int:
    return 0 if member.state is MemberState.SUSPECT or member.state.over else 1
