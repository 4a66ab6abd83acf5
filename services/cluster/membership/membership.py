"""One node's part in the membership of its cluster: what happens goes in, what is to be done comes out (hot).

SWIM (Das, Gupta and Motivala, DSN 2002) with Lifeguard (Dadgar, Phillips and Currey, 2018) and fencing. There is no
loop, clock or socket: times are given, in seconds of one steady clock, and so is chance. `due()` is when `tick` has
something to do. Every call returns what is to be done because of it, in order.

A node contradicts a suspicion with a higher incarnation. It cannot contradict its death: where others have buried it,
it is fenced, has to end all that it does for them, and comes back with a new life. When two parts of a cluster that
could not reach each other meet again, each has buried the other; the one with fewer members gives way, and forgets
whom it has buried (`hearing.py`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import msgspec

from services.cluster.membership.actions import Action, Exchange, Probe
from services.cluster.membership.beliefs import Beliefs, Due, Key, update_of
from services.cluster.membership.detector import Health
from services.cluster.membership.dialling import Dialling
from services.cluster.membership.hearing import Hearing
from services.cluster.membership.own import Own
from services.cluster.membership.probing import Probing
from services.cluster.membership.rules import Rules
from services.cluster.membership.telling import Telling
from services.cluster.membership.timers import Timers
from services.cluster.messages import Card, Gossip, Load, Member, MemberState, Summary
from services.cluster.protocol import speak

__all__ = ["Membership"]

FAREWELLS = 2.0  # messages for each doubling of the members, when a node leaves


class Membership:
    """The members of a cluster, as one node sees them."""

    def __init__(
        self,
        node: str,
        incarnation: int,
        address: str,
        *,
        now: float,
        chance: random.Random,
        card: Card | None = None,
        version: str = "",
        protocol: int = 1,
        protocol_min: int = 1,
        seeds: Sequence[str] = (),
        rules: Rules | None = None,
    ) -> None:
        """`incarnation` is higher than any that the node had. What `Changed` says of it has to be kept for the next.

        `seeds` are addresses at which members of the cluster should be; they are tried while none has them.
        """
        self.rules = rules = rules or Rules()
        self._chance = chance
        self._seen = now
        self._out: list[Action] = []
        self._timers: Timers[Key] = Timers()
        self._health = Health()
        self._beliefs = Beliefs(node, rules, self._timers, self._out)
        me = Member(
            node=node,
            incarnation=incarnation,
            life=incarnation,
            state=MemberState.ALIVE,
            address=address,
            version=version,
            protocol=protocol,
            protocol_min=protocol_min,
            card=msgspec.structs.replace(card or Card(), edition=1),
        )
        self._own = Own(me, self._beliefs.rumours, self._health, self._out)
        self._telling = Telling(self._own, self._beliefs, rules)
        self._probing = Probing(
            self._beliefs,
            self._health,
            rules,
            self._timers,
            chance,
            self._out,
            gossip_to=self._telling.gossip_to,
            may_probe=lambda peer: speak(self._own.me, peer.member),
        )
        self._beliefs.met = self._probing.met
        self._hearing = Hearing(self._own, self._beliefs, self._telling, rules, self._out, fenced=self._probing.stop)
        self._dialling = Dialling(self._beliefs, rules, chance, seeds, now)
        self._beliefs.rumours.put(update_of(me))
        self._start(now)

    # What is known

    @property
    def me(self) -> Member:
        """This node."""
        return self._own.me

    @property
    def fenced(self) -> bool:
        """Whether this node's life is over, and it has not come back yet."""
        return self._own.fenced

    def __len__(self) -> int:
        """How many members are there, this one too."""
        return self._beliefs.present

    def member(self, node: str) -> Member | None:
        """The member of that name; one that is dead or has left is known for a while yet."""
        if node == self.me.node:
            return self.me
        peer = self._beliefs.known(node)
        return None if peer is None else peer.member

    def members(self) -> list[Member]:
        """All, this node first, with those that went a moment ago."""
        return [self.me, *(peer.member for peer in self._beliefs.all_peers())]

    def buried(self, node: str, life: int) -> bool:
        """Whether that life of a node is over."""
        return self._beliefs.buried(node, life)

    def due(self) -> float:
        """When `tick` has something to do; infinity once this node has left."""
        return math.inf if self._own.left else self._timers.first()

    # What is told to others

    def gossip_to(self, node: str) -> Gossip:
        """What goes along with an answer to a member, and with a probe for somebody else."""
        return self._telling.gossip_to(node)

    def summary_to(self, node: str = "") -> Summary:
        """All that is known, in short: how a node comes to a cluster. Without `node`, it is not known who reads it."""
        return self._telling.summary_to(node)

    # What happens

    def tick(self, now: float) -> list[Action]:
        """Do what is due. To be called at `due()`, and late rather than not at all."""
        now = self._wake(now)
        if not self._own.left:
            for due, node in self._timers.due(now):
                self._do(due, node, now)
        return self._take()

    def heard(self, gossip: Gossip, now: float) -> list[Action]:
        """Somebody's gossip has come, with a probe or alone."""
        self._hearing.hear(gossip, self._wake(now))
        return self._take()

    def compared(self, summary: Summary, now: float) -> tuple[Gossip, list[Action]]:
        """Another node's summary has come; the gossip is the answer to it."""
        self._hearing.hear(summary.gossip, self._wake(now))
        return self._telling.answer_to(summary, settled=self._hearing.settled), self._take()

    def joined(self, gossip: Gossip, now: float) -> list[Action]:
        """A member has answered the summary with which this node comes: what it says is news to this node alone."""
        self._hearing.adopt(gossip.source)
        return self.heard(gossip, now)

    def answered(
        self,
        node: str,
        incarnation: int,
        rtt: float | None,
        now: float,
        gossip: Gossip | None = None,
        load: Load | None = None,
    ) -> list[Action]:
        """A member answered a probe, `rtt` seconds after it was sent; None where another one has asked it."""
        now = self._wake(now)
        peer = self._beliefs.peers.get(node)
        if peer is not None and incarnation >= peer.member.life:
            if load is not None:
                peer.member = msgspec.structs.replace(peer.member, load=load)
            self._probing.answered(peer, rtt)
            self._beliefs.contact(peer)
        if gossip is not None:
            self._hearing.hear(gossip, now)
        return self._take()

    def unreached(self, node: str, via: str, now: float) -> list[Action]:
        """A helper says that it got no answer from `node` either."""
        self._wake(now)
        self._probing.unreached(node, via)
        return self._take()

    def failed(self, node: str, now: float) -> list[Action]:
        """A probe failed, or had no answer in its time."""
        self._probing.failed(node, self._wake(now))
        return self._take()

    def link_lost(self, node: str, now: float, *, refused: bool, life: int | None = None) -> list[Action]:
        """The connection to a member broke, or a new one was `refused`: no process listens there any more.

        `life` is that of the member when it was dialled, so that a refusal that comes late does not count against its
        next life. One that is refused again and again is only suspect: it may be a wall that answers in its place.
        """
        now = self._wake(now)
        peer = self._beliefs.peers.get(node)
        if peer is None or self.fenced or self._own.left or (life is not None and life < peer.member.life):
            return self._take()
        if not refused:
            self._probing.begin(peer, now)
        elif self._beliefs.flaps(peer, now):
            self._probing.begin(peer, now)
            self._probing.failed(node, now)
        else:
            self._beliefs.fell(peer, now)
            self._beliefs.bury(peer, now)
        return self._take()

    # What this node itself does

    def describe(self, card: Card, now: float) -> list[Action]:
        """This node has something else to offer; the edition is counted here."""
        self._wake(now)
        self._own.become(card=msgspec.structs.replace(card, edition=self.me.card.edition + 1))
        return self._take()

    def drain(self, now: float) -> list[Action]:
        """This node takes no more work."""
        self._wake(now)
        if self.me.state is MemberState.ALIVE:
            self._own.become(state=MemberState.DRAINING)
        return self._take()

    def leave(self, now: float) -> list[Action]:
        """This node goes, and says so to some, who tell the others. After that it does nothing any more."""
        self._wake(now)
        if not self._own.left:
            self._own.become(state=MemberState.LEFT)
            self._probing.stop()
            count = math.ceil(FAREWELLS * math.log2(self._beliefs.present + 1))
            for node in [] if self.fenced else self._probing.some(count):
                self._out.append(Probe(node, self.rules.ceiling, self.gossip_to(node)))
        return self._take()

    def rejoin(self, now: float) -> list[Action]:
        """All work for others has ended: come back with a new life."""
        now = self._wake(now)
        if self.fenced and not self._own.left:
            self._own.reborn()
            self._beliefs.begin_anew(now)
            self._start(now)
            if not self._hearing.come_back(now):
                for node in self._probing.some(self.rules.helpers):
                    self._hearing.compare(node)
                self._dial(now)
        return self._take()

    def _start(self, now: float) -> None:
        self._probing.start(now)
        self._timers.set((Due.EXCHANGE, ""), now + self.rules.exchange * self._chance.uniform(0.5, 1.5))
        self._timers.set((Due.DIAL, ""), now + self.rules.dial * self._chance.uniform(0.5, 1.5))
        self._timers.set((Due.SWEEP, ""), now + self.rules.buried / 16)

    def _wake(self, now: float) -> float:
        """Take note of the time. What this node did not hear because it was away is held against nobody."""
        now = max(now, self._seen)
        late = now - max(self.due(), self._seen)
        self._seen = now
        if late > 0.0 and not self._own.left:
            self._health.late(late)
            if late > self.rules.away:
                self._health.worse()
                self._probing.shift(late)
                self._beliefs.shift(late)
                if late > self.rules.buried / 2 and not self.fenced:  # others may have forgotten that they buried it
                    self._fence(now)
        return now

    def _take(self) -> list[Action]:
        taken = self._out.copy()
        self._out.clear()
        return taken

    # What is due

    def _do(self, due: Due, node: str, now: float) -> None:
        match due:
            case Due.PROBE:
                self._probing.turn(now)
            case Due.ROUND:
                self._probing.go_on(node, now)
            case Due.AGAIN:
                self._probing.again(node, now)
            case Due.SUSPICION:
                self._judge(node, now)
            case Due.QUIET:
                self._beliefs.forgive(node, now)
            case Due.FORGET:
                self._beliefs.forget(node)
            case Due.EXCHANGE:
                self._timers.set((Due.EXCHANGE, ""), now + self.rules.exchange * self._chance.uniform(0.75, 1.25))
                for each in [] if self.fenced else self._probing.some(1):
                    self._hearing.compare(each)
            case Due.DIAL:
                self._timers.set((Due.DIAL, ""), now + self.rules.dial * self._chance.uniform(0.75, 1.25))
                if not self.fenced:
                    self._hearing.insist(now)
                    self._dial(now)
            case Due.SWEEP:
                self._timers.set((Due.SWEEP, ""), now + self.rules.buried / 16)
                self._beliefs.graves.sweep(now)

    def _judge(self, node: str, now: float) -> None:
        """A suspect's time is over: bury it, if this node has tried it itself."""
        peer = self._beliefs.peers.get(node)
        if self.fenced or peer is None or peer.suspicion is None:
            return
        if now < peer.suspicion.ends:
            self._timers.set((Due.SUSPICION, node), peer.suspicion.ends)
        elif peer.suspicion.tried or not speak(self.me, peer.member):
            self._beliefs.bury(peer, now)
        else:
            self._probing.begin(peer, now)
            self._timers.set((Due.SUSPICION, node), now + self.rules.ceiling * self._health.multiplier)

    def _dial(self, now: float) -> None:
        """Try some of those that may be there although nobody knows."""
        for node, address in self._dialling.draw(self.me.address, now):
            self._out.append(Exchange(node, address, self.summary_to(node)))

    def _fence(self, now: float) -> None:
        """This node knows by itself that its life is over."""
        self._own.fence(self.me.node, now)
        self._probing.stop()
