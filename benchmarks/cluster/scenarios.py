"""What happens to a virtual cluster of a size, and what is counted meanwhile."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from benchmarks.cluster.virtual import Host, Meter, Network, Weather
from services.cluster.membership.actions import Action, Changed, Fenced
from services.cluster.messages import Card, Gossip, MemberState, Update

__all__ = ["STORM", "Cluster", "Plan", "known", "quiet", "wrongly_dead"]

STORM = Weather(loss=0.05, spikes=0.01, spike=2.0)
SLOW_SHARE = 0.02  # of the nodes have a host that is slow
SLOW = 1.0  # seconds that a message to one takes longer, at most
PART = 500  # members that a node is told of at once before anything begins
WARM = 6.0  # seconds until all have told of themselves, and have round trips
PATIENCE = 60.0  # seconds after which what not all know counts as never known
LOOK = 0.25  # seconds between two looks whether all know


class Plan:
    """How long and how often, for a size."""

    def __init__(self, nodes: int, *, quick: bool = False) -> None:
        self.nodes = nodes
        self.quiet = 2.0 if quick else 10.0
        self.events = 1 if quick else max(2, min(20, 300 // nodes))
        self.storm = 5.0 if quick else min(600.0, max(20.0, 20_000 / nodes))


class Cluster:
    """Hosts that have met. Of the name that is `watched` it is noted who saw it in which state first, and when."""

    def __init__(self, nodes: int, seed: int = 0) -> None:
        self.network = Network(random.Random(seed))
        self.hosts: list[Host] = []
        self.watched = ""
        self.seen: dict[MemberState, dict[str, float]] = {}
        self.began = 0.0
        self.fenced = 0
        self.suspected: set[tuple[str, int]] = set()
        for place in range(nodes):
            self.add(f"node{place:04}")
        told = [self._own(host) for host in self.hosts]
        for host in self.hosts:
            for start in range(0, nodes, PART):
                part = Gossip(source="before", incarnation=1, life=1, updates=tuple(told[start : start + PART]))
                host.do(host.membership.joined(part, 0.0))
        self.run(WARM)

    def add(self, name: str) -> Host:
        """A node comes; it knows the first one."""
        host = Host(self.network, name, card=card_of(name), seeds=("node0000",), noted=self._noted)
        self.hosts.append(host)
        return host

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        self.network.run(self.network.now + seconds)

    def until_known(self, name: str, state: MemberState, happen: Callable[[], None]) -> list[float]:
        """Have it happen; how long each of the others took to see the member in that state, in seconds."""
        self.watched, self.seen, self.began = name, {each: {} for each in MemberState}, self.network.now
        happen()
        while len(self.seen[state]) < len(self.hosts) - 1 and self.network.now < self.began + PATIENCE:
            self.run(LOOK)
        self.watched = ""
        return self.took(name, state)

    def took(self, name: str, *states: MemberState) -> list[float]:
        """The same for the first of some states."""
        others = [host.name for host in self.hosts if host.name != name]
        return [min(self.seen[state].get(other, math.inf) for state in states) - self.began for other in others]

    def _noted(self, host: Host, action: Action) -> None:
        if isinstance(action, Changed):
            member = action.member
            if self.watched == member.node != host.name:
                self.seen[member.state].setdefault(host.name, self.network.now)
            if member.state is MemberState.SUSPECT:
                self.suspected.add((member.node, member.incarnation))
        elif isinstance(action, Fenced):
            self.fenced += 1

    @staticmethod
    def _own(host: Host) -> Update:
        return host.membership.summary_to().gossip.updates[0]


def card_of(name: str) -> Card:
    """A card of ten services, two devices and three models."""
    services = ("devices", "filesystem", "gateway", "inference", "memory", "models", "monitor", "scheduler", "training")
    return Card(
        services=(*services, f"own-{name}"),
        devices=("cpu0", "cuda0"),
        models=("smollm2-135m-instruct", "qwen3-4b-instruct", f"adapter-of-{name}"),
        cores=16,
    )


def quiet(cluster: Cluster, plan: Plan) -> dict[str, float]:
    """Nothing happens: what a node sends a second."""
    meter = cluster.network.meter = Meter()
    cluster.run(plan.quiet)
    cluster.network.meter = None
    share = plan.quiet * len(cluster.hosts)
    return {"messages": meter.messages / share, "bytes": meter.bytes / share}


def known(cluster: Cluster, plan: Plan) -> dict[str, float]:
    """Nodes come, drain, hang and are killed: seconds until another one knows; for half, for 99 of 100, for all."""
    times: dict[str, list[float]] = {name: [] for name in ("join", "drain", "suspect", "hang", "kill")}
    for place in range(plan.events):
        host = cluster.add(f"late{place:04}")
        name = host.name
        times["join"] += cluster.until_known(name, MemberState.ALIVE, host.join)
        cluster.run(WARM)
        times["drain"] += cluster.until_known(name, MemberState.DRAINING, host.drain)
        times["hang"] += cluster.until_known(name, MemberState.DEAD, host.freeze)
        times["suspect"] += cluster.took(name, MemberState.SUSPECT, MemberState.DEAD)
        cluster.hosts.remove(host)
        host.kill()
        host = cluster.add(f"last{place:04}")
        cluster.until_known(host.name, MemberState.ALIVE, host.join)
        cluster.run(WARM)
        times["kill"] += cluster.until_known(host.name, MemberState.DEAD, host.kill)
        cluster.hosts.remove(host)
    return {
        f"{what} {name}": value
        for what, each in times.items()
        for name, value in (("p50", quantile(each, 50)), ("p99", quantile(each, 99)), ("all", max(each)))
    }


def wrongly_dead(cluster: Cluster, plan: Plan) -> dict[str, float]:
    """Messages are lost and late, some hosts are slow: how many of those that are well are suspect or taken for dead.

    For each node and hour: one that is suspect with several incarnations counts as often.
    """
    cluster.network.weather = STORM
    slow = random.Random(1).sample(cluster.hosts, round(SLOW_SHARE * plan.nodes))
    cluster.network.extra = {host.address: SLOW for host in slow}
    cluster.fenced = 0
    cluster.suspected.clear()
    cluster.run(plan.storm)
    hours = plan.storm * len(cluster.hosts) / 3600
    return {"wrongly dead": cluster.fenced / hours, "wrongly suspect": len(cluster.suspected) / hours, "hours": hours}


def quantile(numbers: Sequence[float], hundredths: int) -> float:
    """The smallest number that so many of a hundred do not exceed."""
    ordered = sorted(numbers)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * hundredths / 100) - 1)]
