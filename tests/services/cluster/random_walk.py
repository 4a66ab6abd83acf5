"""A small cluster to which all kinds of things happen, drawn from a seed, and what has to hold whatever happens."""

from __future__ import annotations

import random

from benchmarks.cluster.virtual import Host, Network, Power, Weather
from services.cluster.membership.actions import Action, Changed, Fenced
from services.cluster.membership.rules import Rules
from services.cluster.messages import Card, MemberState

RULES = Rules(quiet=5.0, quiet_most=20.0, exchange=10.0)
SEEDS = ("n0", "n1")  # these are always where they were
QUIET = 150.0  # seconds after which all should agree: suspicions, quarantines, dials and exchanges are over
MOST_SILENCE = 15.0  # seconds until a membership has something to do again

MOVES = {
    "freeze": 4, "thaw": 6, "kill": 2, "restart": 4, "cut": 3, "heal": 5, "storm": 2, "calm": 4, "slow": 1,
    "leave": 1, "drain": 1, "describe": 3, "break_link": 2, "wait": 6,
}  # fmt: skip


class Walk:
    """Some hosts, and what is known of each for certain."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.network = Network(self.chance, Weather())
        self.names = [f"n{place}" for place in range(self.chance.randint(3, 6))]
        self.hosts: dict[str, Host] = {}
        self.kept: dict[str, int] = {}  # the highest incarnation of each, as its service keeps it
        self.buried: dict[str, dict[str, int]] = {}  # by whom, who: up to which incarnation
        self.fenced: dict[str, int] = {}  # lives that were told to be over
        self.linked = self.chance.random() < 0.5
        for name in self.names:
            self.start(name)
        self.network.run(5.0)

    def walk(self, steps: int) -> None:
        """So many things happen."""
        for _ in range(steps):
            (move,) = self.chance.choices(tuple(MOVES), tuple(MOVES.values()))
            getattr(self, move)()
            self.network.run(self.network.now + self.chance.choice((0.05, 0.5, 1.0, 3.0, 8.0)))

    def settle(self) -> None:
        """All is well again, for long enough; seeds are there, or nobody who has moved could be found."""
        self.heal()
        self.calm()
        for name in SEEDS:
            if self.is_over(name):
                self.start(name)
        for host in self.hosts.values():
            host.thaw()
        self.network.run(self.network.now + QUIET)

    # What happens

    def start(self, name: str) -> None:
        if name in self.hosts:
            self.hosts[name].power = Power.OFF
        self.kept[name] = self.kept.get(name, 0) + 1
        self.buried[name] = {}
        self.fenced.pop(name, None)
        fixed = name in SEEDS or self.chance.random() < 0.5
        address = name if fixed else f"{name}:{self.kept[name]}"
        self.hosts[name] = Host(
            self.network,
            name,
            address,
            rules=RULES,
            incarnation=self.kept[name],
            card=Card(services=(name,)),
            noted=self.noted,
            seeds=SEEDS,
            linked=self.linked,
        )
        self.hosts[name].join()

    def freeze(self) -> None:
        self.one().freeze()

    def thaw(self) -> None:
        self.one().thaw()

    def kill(self) -> None:
        running = self.running()
        if len(running) > 2:
            self.chance.choice(running).kill()

    def restart(self) -> None:
        over = [name for name in self.names if self.is_over(name)]
        if over:
            self.start(self.chance.choice(over))

    def cut(self) -> None:
        self.network.side = {host.address: self.chance.randint(0, 2) for host in self.hosts.values()}

    def heal(self) -> None:
        self.network.side = {}

    def storm(self) -> None:
        self.network.weather = Weather(loss=self.chance.choice((0.02, 0.1, 0.3)), spikes=0.1)

    def calm(self) -> None:
        self.network.weather = Weather()
        self.network.extra = {}

    def slow(self) -> None:
        self.network.extra[self.one().address] = self.chance.choice((0.3, 1.0, 3.0))

    def leave(self) -> None:
        running = self.running()
        if len(running) > 3:
            host = self.chance.choice(running)
            host.do(host.membership.leave(self.network.now))

    def drain(self) -> None:
        host = self.one()
        if host.power is Power.RUNNING:
            host.do(host.membership.drain(self.network.now))

    def describe(self) -> None:
        host = self.one()
        if host.power is Power.RUNNING and not self.has_left(host):
            card = Card(services=(host.name, f"s{self.chance.randint(0, 99)}"))
            host.do(host.membership.describe(card, self.network.now))

    def break_link(self) -> None:
        one, other = self.chance.sample(self.names, 2)
        self.hosts[one].deliver(self.hosts[one].link_broke, other)

    def wait(self) -> None:
        pass

    # What holds at any time

    def noted(self, host: Host, action: Action) -> None:
        now, membership = self.network.now, host.membership
        if isinstance(action, Fenced):
            assert action.incarnation == membership.me.incarnation
            assert membership.fenced
            self.fenced[host.name] = membership.me.life
        elif isinstance(action, Changed):
            if action.member.node == host.name:
                self.note_own(host, action)
            elif action.member.state.over:
                buried = self.buried[host.name]
                buried[action.member.node] = max(buried.get(action.member.node, 0), action.member.incarnation)
            else:
                assert action.member.life > self.buried[host.name].get(action.member.node, -1), (
                    f"{host.name} believes in {action.member}, which it has buried"
                )
        if membership.me.state is not MemberState.LEFT:
            assert membership.due() <= now + MOST_SILENCE

    def note_own(self, host: Host, action: Changed) -> None:
        before = action.before
        assert before is not None
        assert (action.member.incarnation, action.member.card.edition) > (before.incarnation, before.card.edition) or (
            action.member.state is not before.state
        )
        self.kept[host.name] = max(self.kept[host.name], action.member.incarnation)
        if action.member.life != before.life:
            self.buried[host.name] = {}  # a new life forgets whom it has buried
            if host.name in self.fenced:
                assert action.member.life > before.incarnation
                del self.fenced[host.name]

    # What holds in the end

    def check(self) -> None:
        running = self.running()
        truth = {host.name: self.told(host.membership.me) for host in running}
        for host in running:
            membership = host.membership
            assert not membership.fenced, f"{host.name} did not come back"
            seen = {each.node: self.told(each) for each in membership.members() if not each.state.over}
            assert seen == truth, f"{host.name} does not see what is"
            for other in running:
                assert not membership._beliefs.buried(other.name, other.membership.me.life)
        assert not set(self.fenced) & set(truth)

    @staticmethod
    def told(member):
        return (member.incarnation, member.life, member.state, member.address, member.card)

    def running(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.power is not Power.OFF and not self.has_left(host)]

    def is_over(self, name: str) -> bool:
        return self.hosts[name].power is Power.OFF or self.has_left(self.hosts[name])

    def one(self) -> Host:
        return self.hosts[self.chance.choice(self.names)]

    @staticmethod
    def has_left(host: Host) -> bool:
        return host.membership.me.state is MemberState.LEFT
