"""A cluster that is not there: memberships over a virtual network, with a clock of its own (hot: once a message)."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import msgspec

from services.cluster.membership.actions import Action, Changed, Exchange, Fenced, Probe, ProbeThrough, Tell
from services.cluster.membership.membership import Membership
from services.cluster.membership.rules import Rules
from services.cluster.messages import Card, Gossip, Summary

__all__ = ["ENVELOPE", "Host", "Meter", "Network", "Power", "Weather"]

ENVELOPE = 90  # bytes of a call or of its result on a link beside what is in it: names, number, deadline, frame
JOIN_AGAIN = 1.0  # seconds until a node that comes asks another one

_encoder = msgspec.json.Encoder()


class Weather(msgspec.Struct):
    """What the network does. Times are in seconds, one way; `loss` is the share of messages that never come.

    One in a while is late by a `spike`, of up to so many seconds.
    """

    least: float = 0.0002
    mean: float = 0.0005
    loss: float = 0.0
    spikes: float = 0.0
    spike: float = 2.0


class Meter:
    """Messages and their bytes, of all nodes together."""

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0

    def count(self, content: Any) -> None:
        """One is sent."""
        self.messages += 1
        self.bytes += ENVELOPE + len(_encoder.encode(content))


class Power(Enum):
    """What a process does."""

    RUNNING = 1
    FROZEN = 2  # stopped, and its links are open
    OFF = 3  # it has ended, and what is sent there is refused


class Network:
    """All hosts, what is on its way between them, and the time."""

    def __init__(self, chance: random.Random, weather: Weather | None = None, meter: Meter | None = None) -> None:
        self.now = 0.0
        self.chance = chance
        self.weather = weather or Weather()
        self.meter = meter
        self.hosts: dict[str, Host] = {}  # by address
        self.side: dict[str, int] = {}  # who is cut off from whom, by address: those on different sides
        self.extra: dict[str, float] = {}  # seconds that a message to this address takes longer, at most
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = itertools.count()

    def at(self, when: float, what: Callable[..., None], *args: Any) -> None:
        """Have it done at that time."""
        heapq.heappush(self._events, (when, next(self._count), what, args))

    def run(self, until: float) -> None:
        """Let the time pass."""
        events = self._events
        while events and events[0][0] <= until:
            self.now, _, what, args = heapq.heappop(events)
            what(*args)
        self.now = until

    def reachable(self, one: str, other: str) -> bool:
        """Whether a message gets from one address to another."""
        return self.side.get(one, 0) == self.side.get(other, 0)

    def travel(self, source: str, target: str) -> float | None:
        """How long a message takes; None where it is lost."""
        weather, chance = self.weather, self.chance
        if not self.reachable(source, target) or (weather.loss and chance.random() < weather.loss):
            return None
        time = weather.least + chance.expovariate(1.0) * (weather.mean - weather.least)
        if weather.spikes and chance.random() < weather.spikes:
            time += chance.random() * weather.spike
        if self.extra:
            time += chance.random() * self.extra.get(target, 0.0)
        return time


class Host:
    """A node's process, at its address: what the service around a membership does, in a few lines."""

    def __init__(
        self,
        network: Network,
        name: str,
        address: str = "",
        *,
        rules: Rules | None = None,
        incarnation: int = 1,
        card: Card | None = None,
        noted: Callable[[Host, Action], None] | None = None,
        seeds: Sequence[str] = (),
        linked: bool = False,
        busy: float = 0.01,
    ) -> None:
        """`noted` is called with each action. `linked` nodes have links to all, and see at once when one breaks.

        `busy` is how long a node that is fenced takes to end its work, in seconds.
        """
        self.network = network
        self.name = name
        self.address = address or name
        self.power = Power.RUNNING
        self.linked = linked
        self.rivalled = False
        self._seeds = seeds
        self._busy = busy
        self._noted = noted
        self._armed = -1.0
        self._held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []  # came while it was frozen
        self.membership = Membership(
            name,
            incarnation,
            self.address,
            now=network.now,
            chance=random.Random(network.chance.random()),
            card=card,
            seeds=seeds,
            rules=rules,
        )
        network.hosts[self.address] = self
        self._arm()

    # What is done to it

    def join(self) -> None:
        """Come to the cluster by the seeds, all of them; again until somebody answers."""
        if self.power is Power.OFF or len(self.membership) > 1:
            return
        if self.power is Power.RUNNING and not self.membership.fenced:
            for seed in self._seeds:
                if seed != self.address:
                    self._ask_summary(seed, self.membership.summary_to(), joining=True)
        self.network.at(self.network.now + JOIN_AGAIN, self.join)

    def kill(self) -> None:
        """End the process; its links break."""
        self.power = Power.OFF
        for host in list(self.network.hosts.values()):
            if host is not self and host.linked and self.network.reachable(self.address, host.address):
                self.network.at(self.network.now + self.network.weather.least, host.deliver, host.link_broke, self.name)

    def freeze(self) -> None:
        """SIGSTOP."""
        if self.power is Power.RUNNING:
            self.power = Power.FROZEN

    def thaw(self) -> None:
        """SIGCONT: what came meanwhile is read now."""
        if self.power is Power.FROZEN:
            self.power = Power.RUNNING
            held, self._held = self._held, []
            for what, args in held:
                what(*args)
            self._tick(self._armed)

    def drain(self) -> None:
        """Take no more work."""
        self.do(self.membership.drain(self.network.now))

    def link_broke(self, name: str) -> None:
        """The link to a node has ended, for whatever reason."""
        if len(self.membership) > 1:
            self.do(self.membership.link_lost(name, self.network.now, refused=False))

    def do(self, actions: list[Action]) -> None:
        """What a membership asks for."""
        for action in actions:
            match action:
                case Probe():
                    self._probe(action.node, action.timeout, action.gossip)
                case ProbeThrough():
                    self._probe_through(action)
                case Exchange():
                    self._ask_summary(action.address, action.summary)
                case Tell():
                    self._send(self._address_of(action.node), "take_gossip", action.gossip)
                case Fenced():
                    self._fenced(action)
                case Changed():
                    pass
            if self._noted is not None:
                self._noted(self, action)
        self._arm()

    def deliver(self, what: Callable[..., None], *args: Any) -> None:
        """Something has come for the process."""
        if self.power is Power.RUNNING:
            what(*args)
        elif self.power is Power.FROZEN:
            self._held.append((what, args))

    # Timers

    def _arm(self) -> None:
        due = self.membership.due()
        if due != self._armed and due != float("inf"):
            self._armed = due
            self.network.at(max(due, self.network.now), self._tick, due)

    def _tick(self, due: float) -> None:
        if due == self._armed and self.power is Power.RUNNING:
            self._armed = -1.0
            self.do(self.membership.tick(self.network.now))

    # Probes

    def _probe(self, node: str, timeout: float, gossip: Gossip, ask: Any = None) -> None:
        """`ask` is (who, node) where somebody else wants to know."""
        address = self._address_of(node)
        member = self.membership.member(node)
        life = member.life if member else 0
        began = self.network.now
        took = self._travel(address, gossip)
        target = self.network.hosts.get(address)
        if took is None or target is None:
            self.network.at(began + timeout, self.deliver, self._no_answer, node, ask)
        elif target.power is Power.OFF:
            self.network.at(began + 2 * took, self.deliver, self._refused, node, life, ask)
        else:
            if target.power is Power.FROZEN:
                self.network.at(began + timeout, self.deliver, self._no_answer, node, ask)
            self.network.at(began + took, target.deliver, target.answer_probe, self, gossip, began, timeout, ask)

    def answer_probe(self, asker: Host, gossip: Gossip, began: float, timeout: float, ask: Any) -> None:
        """Somebody asks whether this node is there."""
        self.do(self.membership.heard(gossip, self.network.now))
        answer = self.membership.gossip_to(asker.name)
        took = self._travel(asker.address, answer)
        ends = began + timeout
        if took is None or self.network.now + took > ends:
            self.network.at(max(ends, self.network.now), asker.deliver, asker._no_answer, self.name, ask)
        else:
            self.network.at(self.network.now + took, asker.deliver, asker._answer, answer, began, ask)

    def _answer(self, gossip: Gossip, began: float, ask: Any) -> None:
        now = self.network.now
        actions = self.membership.answered(gossip.source, gossip.incarnation, now - began, now, gossip)
        if ask is not None:
            self._send(ask[0].address, "take_news", gossip.source, gossip.incarnation)
        self.do(actions)

    def _no_answer(self, node: str, ask: Any) -> None:
        if ask is not None:
            self._send(ask[0].address, "take_silence", node, self.name)
        self.do(self.membership.failed(node, self.network.now))

    def _refused(self, node: str, life: int, ask: Any) -> None:
        if ask is not None:
            self._send(ask[0].address, "take_silence", node, self.name)
        self.do(self.membership.link_lost(node, self.network.now, refused=True, life=life))

    def _probe_through(self, action: ProbeThrough) -> None:
        self._send(self._address_of(action.via), "probe_for", self, action.node, action.timeout)

    def probe_for(self, asker: Host, node: str, timeout: float) -> None:
        """Somebody got no answer from a node, and asks this one to try."""
        if self.membership.member(node) is not None:
            self._probe(node, timeout, self.membership.gossip_to(node), (asker, node))

    def take_news(self, node: str, incarnation: int) -> None:
        """A helper got an answer."""
        self.do(self.membership.answered(node, incarnation, None, self.network.now))

    def take_silence(self, node: str, via: str) -> None:
        """A helper got none."""
        self.do(self.membership.unreached(node, via, self.network.now))

    def take_gossip(self, gossip: Gossip) -> None:
        """What was asked for."""
        self.do(self.membership.heard(gossip, self.network.now))

    # Summaries

    def _ask_summary(self, address: str, summary: Summary, *, joining: bool = False) -> None:
        target = self.network.hosts.get(address)
        took = self._travel(address, summary)
        if took is not None and target is not None and target.power is not Power.OFF:
            self.network.at(self.network.now + took, target.deliver, target.answer_summary, self, summary, joining)

    def answer_summary(self, asker: Host, summary: Summary, joining: bool) -> None:
        """Somebody compares its table with this one's."""
        gossip, actions = self.membership.compared(summary, self.network.now)
        took = self._travel(asker.address, gossip)
        if took is not None:
            self.network.at(self.network.now + took, asker.deliver, asker.take_answer, gossip, joining)
        self.do(actions)

    def take_answer(self, gossip: Gossip, joining: bool) -> None:
        """What the other one knows better."""
        take = self.membership.joined if joining else self.membership.heard
        self.do(take(gossip, self.network.now))

    # Life

    def _fenced(self, action: Fenced) -> None:
        if action.rival is not None:
            self.rivalled = True
        else:
            self.network.at(self.network.now + action.wait + self._busy, self.deliver, self.rejoin)

    def rejoin(self) -> None:
        """Its work has ended."""
        self.do(self.membership.rejoin(self.network.now))

    # Messages

    def _address_of(self, node: str) -> str:
        member = self.membership.member(node)
        return "" if member is None else member.address

    def _send(self, address: str, handler: str, *args: Any) -> None:
        """One way, to whatever listens there."""
        target = self.network.hosts.get(address)
        took = self._travel(address, [each if isinstance(each, (str, int, float, Gossip)) else "" for each in args])
        if target is not None and took is not None and target.power is not Power.OFF:
            self.network.at(self.network.now + took, target.deliver, getattr(target, handler), *args)

    def _travel(self, address: str, content: Any) -> float | None:
        if self.network.meter is not None:
            self.network.meter.count(content)
        return self.network.travel(self.address, address)
