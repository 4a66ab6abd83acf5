"""What this node tells another one: news with every message, and by comparison what one of them has missed (hot)."""

from __future__ import annotations

from collections.abc import Iterable

from services.cluster.membership.beliefs import OVER, Beliefs, knows_better, mark_of, update_of
from services.cluster.membership.graves import Grave
from services.cluster.membership.own import Own
from services.cluster.membership.rules import Rules
from services.cluster.membership.rumours import size_of
from services.cluster.messages import MOST_UPDATES, Gossip, Mark, Member, Summary, Update

__all__ = ["Telling"]


class Telling:
    """Makes gossip and summaries from what is believed."""

    def __init__(self, own: Own, beliefs: Beliefs, rules: Rules) -> None:
        self._own = own
        self._beliefs = beliefs
        self._rules = rules
        self._editions: dict[str, int] = {}  # of cards that members have told of, and that were not here yet

    def told_edition(self, node: str, edition: int) -> None:
        """A member has such a card by its own word."""
        peer = self._beliefs.peers.get(node)
        if peer is not None and edition > peer.member.card.edition:
            if len(self._editions) > self._rules.most_members:
                self._editions.clear()  # of those that are gone; the others tell again
            self._editions[node] = edition
        else:
            self._editions.pop(node, None)

    def _is_behind(self, node: str) -> bool:
        """Whether a member has a newer card than is known here; news that every other one has heard may not come."""
        peer, edition = self._beliefs.peers.get(node), self._editions.get(node)
        if edition is None or peer is None or peer.member.card.edition >= edition:
            self._editions.pop(node, None)
            return False
        return True

    def gossip_to(self, node: str) -> Gossip:
        """News for a message to a member.

        First what concerns itself, so that it can contradict (Lifeguard's buddy system) or learn that it was buried.
        """
        first = self._about(node)
        updates = self._beliefs.rumours.pick(self._beliefs.present, without=node if first else "")
        stranger = node != "" and first is None and node not in self._beliefs.peers
        asks = stranger or self._is_behind(node)
        return self._gossip([first, *updates] if first else updates, wanted=[node] if asks else [])

    def summary_to(self, node: str, *, with_lost: bool = False) -> Summary:
        """All that is known, in short, with the news; and `with_lost` the names of those of which nothing is."""
        gossip = self.gossip_to(node)
        me = self._own.me
        others = [update for update in gossip.updates if update.node != me.node]
        marks = [mark_of(me), *(mark_of(peer.member) for peer in self._beliefs.all_peers())]
        if with_lost:
            marks += [Mark(name, 0, 0, 0) for name in self._beliefs.lost.names() if self._beliefs.known(name) is None]
        return Summary(
            gossip=self._gossip([update_of(me), *others], wanted=gossip.wanted),
            marks=tuple(marks),
        )

    def answer_to(self, summary: Summary, *, settled: bool) -> Gossip:
        """What is known better here, with the news, and whose news would be news here; to one who was buried, that.

        As long as this node is not `settled`, that is no whole answer.
        """
        source = summary.gossip.source
        gossip = self.gossip_to(source)
        if self._beliefs.graves.holds(source, summary.gossip.life):
            return gossip
        theirs = {mark.node: mark for mark in summary.marks}
        better, more = _fitting(self._better(theirs), self._rules.exchange_bytes)
        updates = {update.node: update for update in (*gossip.updates, *better)}
        return self._gossip(
            list(updates.values())[:MOST_UPDATES], wanted=self._wanted(theirs, source), compared=settled, more=more
        )

    def asked_for(self, wanted: Iterable[str]) -> Gossip:
        """What is known of these."""
        members = (self._member(node) for node in dict.fromkeys(wanted))
        found, _ = _fitting((self._told(each) for each in members if each), self._rules.exchange_bytes)
        return self._gossip(found)

    def _gossip(
        self, updates: list[Update], *, wanted: Iterable[str] = (), compared: bool = False, more: bool = False
    ) -> Gossip:
        me = self._own.me
        return Gossip(
            source=me.node,
            incarnation=me.incarnation,
            life=me.life,
            state=me.state,
            edition=me.card.edition,
            living=self._beliefs.living,
            updates=tuple(updates),
            wanted=tuple(wanted),
            compared=compared,
            more=more,
        )

    def _about(self, node: str) -> Update | None:
        """What a member has to know of itself."""
        peer = self._beliefs.peers.get(node)
        if peer is not None:
            suspicion = peer.suspicion
            return None if suspicion is None else update_of(peer.member, by=tuple(suspicion.accusers))
        grave = self._beliefs.graves.get(node)
        return None if grave is None else _death(node, grave)

    def _better(self, theirs: dict[str, Mark]) -> Iterable[Update]:
        """What they do not know, or not as well."""
        me = self._own.me
        for member in (me, *(peer.member for peer in self._beliefs.all_peers())):
            mark = theirs.get(member.node)
            if mark is None or knows_better(mark_of(member), mark):
                yield self._told(member)
        for node, mark in theirs.items():
            if mark.rank != OVER and self._beliefs.known(node) is None:
                grave = self._beliefs.graves.get(node)
                if grave is not None and mark.life <= grave.incarnation:
                    yield _death(node, grave)

    def _member(self, node: str) -> Member | None:
        peer = self._beliefs.known(node)
        return self._own.me if node == self._own.me.node else None if peer is None else peer.member

    def _told(self, member: Member) -> Update:
        """All that is known of a member."""
        grave = self._beliefs.graves.get(member.node) if member.state.over else None
        if grave is not None:
            return _death(member.node, grave)
        peer = self._beliefs.peers.get(member.node)
        by = () if peer is None or peer.suspicion is None else tuple(peer.suspicion.accusers)
        return update_of(member, by=by, whole=True)

    def _wanted(self, theirs: dict[str, Mark], source: str) -> list[str]:
        """Whose state they know better; of a member that was never known here, its end is no news."""
        graves = self._beliefs.graves
        wanted = []
        for node, mark in theirs.items():
            if node in (source, self._own.me.node):
                continue
            peer = self._beliefs.known(node)
            if peer is None:
                news = mark.rank != OVER and not graves.holds(node, mark.life)
            else:
                news = knows_better(mark, mark_of(peer.member))
            if news:
                wanted.append(node)
                if len(wanted) == MOST_UPDATES:
                    break
        return wanted


def _death(node: str, grave: Grave) -> Update:
    return Update(
        node=node,
        incarnation=grave.incarnation,
        life=grave.incarnation,
        state=grave.state,
        address=grave.address,
        by=(grave.by,),
    )


def _fitting(updates: Iterable[Update], room: int) -> tuple[list[Update], bool]:
    """As many as a message has room for, at least one; and whether that is not all."""
    found: list[Update] = []
    for update in updates:
        room -= size_of(update)
        if found and (room < 0 or len(found) == MOST_UPDATES):
            return found, True
        found.append(update)
    return found, False
