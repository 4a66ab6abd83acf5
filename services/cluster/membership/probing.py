"""Who is probed when, and what follows from no answer (hot: for each probe).

After SWIM (Das, Gupta and Motivala, DSN 2002): a member that does not answer is asked again, and through others, before
it is suspect. In a small cluster everybody probes everybody, always in the same order, so that the longest gap is one
period; in a larger one each probes a few, in an order that is drawn anew each time through.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from services.cluster.membership.actions import Action, Probe, ProbeThrough
from services.cluster.membership.beliefs import Beliefs, Due, Key, Peer
from services.cluster.membership.detector import Health, RoundTrip
from services.cluster.membership.rules import Rules
from services.cluster.membership.timers import Timers
from services.cluster.messages import Gossip

__all__ = ["Probing"]

TRIES = 3  # probes of a round that a member itself gets
MOST_ROUNDS = 16  # at a time, with suspects that are probed out of turn
LONGEST = 4.0  # seconds of a round trip that count
LEAST_WAIT = 2.0  # seconds that an answer is waited for, to learn how late it is


class _Round:
    """The probes of one member, until one is answered or their time is over."""

    __slots__ = ("began", "ends", "helpers", "invalid", "next", "silent", "timeout", "tries")

    def __init__(self, began: float, timeout: float, ends: float) -> None:
        self.began = began
        self.timeout = timeout
        self.ends = ends
        self.next = began
        self.tries = 0
        self.helpers: list[str] | None = None  # those that were asked
        self.silent: set[str] = set()  # of these, those that have said nothing
        self.invalid = False  # this node was away meanwhile: what it took is no measure


class Probing:
    """The rounds of probes that this node does. It stops while the node is fenced."""

    def __init__(
        self,
        beliefs: Beliefs,
        health: Health,
        rules: Rules,
        timers: Timers[Key],
        chance: random.Random,
        out: list[Action],
        *,
        gossip_to: Callable[[str], Gossip],
        may_probe: Callable[[Peer], bool],
    ) -> None:
        """`gossip_to` gives what goes along to a member; `may_probe` whether this node can speak with one at all."""
        self._beliefs = beliefs
        self._health = health
        self._rules = rules
        self._timers = timers
        self._chance = chance
        self._out = out
        self._gossip_to = gossip_to
        self._may_probe = may_probe
        self._runs = False
        self._rounds: dict[str, _Round] = {}
        self._order: list[str] = []
        self._ordered: set[str] = set()  # all in it
        self._place = 0

    def start(self, now: float) -> None:
        """Probe from now on."""
        self._runs = True
        self._timers.set((Due.PROBE, ""), now + self._chance.random() * self._interval())

    def stop(self) -> None:
        """Probe nobody any more."""
        self._runs = False
        self._timers.drop((Due.PROBE, ""))
        for node in self._rounds:
            self._timers.drop((Due.ROUND, node))
        self._rounds.clear()

    def met(self, node: str) -> None:
        """A member has come: its turn is somewhere in this time through."""
        if node not in self._ordered:
            self._ordered.add(node)
            self._order.insert(self._chance.randint(self._place, len(self._order)), node)

    def turn(self, now: float) -> None:
        """Probe the next one."""
        self._timers.set((Due.PROBE, ""), now + self._interval())
        for _ in range(2):  # through what is left, and then through all
            while self._place < len(self._order):
                node = self._order[self._place]
                self._place += 1
                peer = self._beliefs.peers.get(node)
                if peer is not None and node not in self._rounds and self._may_probe(peer):
                    self.begin(peer, now)
                    return
            self._shuffle()

    def begin(self, peer: Peer, now: float) -> None:
        """Probe this one now, if that is not being done."""
        node = peer.member.node
        if not self._runs or node in self._rounds or not self._may_probe(peer):
            return
        timeout = self._timeout(peer)
        length = max(self._rules.period * self._health.multiplier, TRIES * timeout)
        self._rounds[node] = _Round(now, timeout, now + length)
        self._ask(node, self._rounds[node])

    def go_on(self, node: str, now: float) -> None:
        """Time has passed in the round of a member, or its probe is known to have failed."""
        each = self._rounds.get(node)
        peer = self._beliefs.peers.get(node)
        if each is None:
            return
        if peer is None:
            self._end(node)
        elif now >= each.ends:
            self._failed(peer, each, now)
        else:
            if each.helpers is None:
                _trip_of(peer).missed()
                self._ask_through_others(node, each, now)
            self._ask(node, each, now)

    def again(self, node: str, now: float) -> None:
        """A suspect has some time left, and may say that it is there: it is told of that with each probe."""
        peer = self._beliefs.peers.get(node)
        if peer is None or peer.suspicion is None:
            return
        if len(self._rounds) < MOST_ROUNDS:
            self.begin(peer, now)
        else:
            self._timers.set((Due.AGAIN, node), now + self._rules.period * self._health.multiplier)

    def answered(self, peer: Peer, took: float | None) -> None:
        """The member answered this node after so many seconds, or another one (None)."""
        each = self._rounds.get(peer.member.node)
        if took is not None and (each is None or not each.invalid):
            _trip_of(peer).took(min(took, LONGEST))
        if each is not None:
            self._end(peer.member.node)
            self._health.better()

    def failed(self, node: str, now: float) -> None:
        """A probe is known to have failed before its time: ask the others at once."""
        each = self._rounds.get(node)
        if each is not None and each.helpers is None and not each.invalid:
            self.go_on(node, now)

    def unreached(self, node: str, via: str) -> None:
        """A helper got no answer either: at least the way to the helper works."""
        each = self._rounds.get(node)
        if each is not None and each.helpers is not None:
            each.silent.discard(via)

    def some(self, count: int, without: str = "") -> list[str]:
        """Up to so many members that are there and not suspect, by chance."""
        found: list[str] = []
        order = self._order
        for place in self._chance.sample(range(len(order)), min(len(order), 4 * count)):
            peer = self._beliefs.peers.get(order[place])
            if peer is None or peer.suspicion is not None or order[place] in {without, *found}:
                continue
            if self._may_probe(peer):
                found.append(order[place])
                if len(found) == count:
                    break
        return found

    def shift(self, seconds: float) -> None:
        """So long nothing could be heard: rounds last as much longer."""
        for node, each in self._rounds.items():
            each.ends += seconds
            each.next += seconds
            each.invalid = True
            self._timers.set((Due.ROUND, node), each.next)

    def _interval(self) -> float:
        """Seconds from one member's turn to the next one's."""
        others = self._beliefs.present - 1
        each_period = others if self._small else self._rules.few
        return self._rules.period * self._health.multiplier / max(1, each_period)

    @property
    def _small(self) -> bool:
        return self._beliefs.present <= self._rules.everyone

    def _shuffle(self) -> None:
        """Begin a new time through."""
        self._place = 0
        peers = self._beliefs.peers
        self._order = [node for node in self._order if node in peers]
        if len(self._order) != len(peers):
            self._order = list(peers)
        self._ordered = set(self._order)
        if not self._small:
            self._chance.shuffle(self._order)

    def _timeout(self, peer: Peer) -> float:
        rules = self._rules
        trip = _trip_of(peer).timeout(rules.first, rules.floor, rules.ceiling)
        return (trip + self._health.lag) * self._health.multiplier

    def _ask(self, node: str, each: _Round, now: float | None = None) -> None:
        """A probe of its own for the member."""
        if each.tries < TRIES:
            each.tries += 1
            wait = max(LEAST_WAIT, 2 * (each.ends - each.began))
            self._out.append(Probe(node, wait, self._gossip_to(node)))
        now = each.began if now is None else now
        left = each.tries < TRIES and now + each.timeout < each.ends
        each.next = now + each.timeout if left else each.ends
        self._timers.set((Due.ROUND, node), each.next)

    def _ask_through_others(self, node: str, each: _Round, now: float) -> None:
        """Helpers have a part of what is left of the round, so that what they say comes in time."""
        each.helpers = self.some(self._rules.helpers, without=node)
        each.silent = set(each.helpers)
        timeout = max(0.6 * (each.ends - now), 0.01)
        self._out += [ProbeThrough(node, via, timeout) for via in each.helpers]

    def _failed(self, peer: Peer, each: _Round, now: float) -> None:
        node = peer.member.node
        self._end(node)
        # Helpers that are silent too say something about this node's own links.
        self._health.worse(len(each.silent) if each.helpers else 1)
        self._beliefs.suspect(peer, now)
        suspicion = peer.suspicion
        assert suspicion is not None
        if now >= suspicion.ends:
            self._beliefs.bury(peer, now)
        elif not self._small:  # in a small one its turn comes anyhow
            self._timers.set((Due.AGAIN, node), now + self._rules.period * self._health.multiplier)

    def _end(self, node: str) -> None:
        del self._rounds[node]
        self._timers.drop((Due.ROUND, node))


def _trip_of(peer: Peer) -> RoundTrip:
    if peer.round_trip is None:
        peer.round_trip = RoundTrip()
    return peer.round_trip
