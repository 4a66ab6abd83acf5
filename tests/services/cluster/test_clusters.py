"""Whole clusters on a virtual network: how soon all know, who is wrongly taken for dead, how parts find together."""

from __future__ import annotations

import random

import pytest

from benchmarks.cluster.virtual import Host, Network, Weather
from services.cluster.membership.actions import Action, Changed, Fenced
from services.cluster.messages import Card, MemberState

ALIVE, SUSPECT, QUARANTINED, DRAINING, DEAD, LEFT = MemberState


class Cluster:
    """Hosts `n0`, `n1`, …, all of which have met; `seen` is when each first saw another one in a state."""

    def __init__(self, count: int, *, seed: int = 0, linked: bool = False, weather: Weather | None = None) -> None:
        self.network = Network(random.Random(seed))
        self.seen: dict[tuple[str, str, MemberState], float] = {}
        self.fenced: list[str] = []
        self.linked = linked
        self.hosts: dict[str, Host] = {}
        for place in range(count):
            self.add(f"n{place}")
        self.run(max(20.0, count / 2))
        self.network.weather = weather or Weather()
        self.seen.clear()

    def add(self, name: str, incarnation: int = 1, address: str = "") -> Host:
        host = Host(
            self.network,
            name,
            address,
            incarnation=incarnation,
            card=Card(services=(name,)),
            seeds=("n0", "n1"),
            noted=self.noted,
            linked=self.linked,
        )
        self.hosts[address or name] = host
        host.join()
        return host

    def noted(self, host: Host, action: Action) -> None:
        if isinstance(action, Changed):
            self.seen.setdefault((host.name, action.member.node, action.member.state), self.network.now)
        elif isinstance(action, Fenced):
            self.fenced.append(host.name)

    def run(self, seconds: float) -> None:
        self.network.run(self.network.now + seconds)

    def times(self, node: str, state: MemberState, since: float) -> list[float]:
        """How long each other host took to see that."""
        return sorted(
            when - since for (_, seen, as_what), when in self.seen.items() if (seen, as_what) == (node, state)
        )

    def whole(self) -> bool:
        """Whether all see all as they are."""
        return all(
            {each.node: each.life for each in host.membership.members() if each.state is ALIVE}
            == {each.name: each.membership.me.life for each in self.hosts.values()}
            for host in self.hosts.values()
        )


# How soon


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_one_that_hangs_is_suspect_within_a_second_and_a_half_and_dead_within_four(count, seed):
    cluster = Cluster(count, seed=seed)
    began = cluster.network.now
    cluster.hosts["n1"].freeze()
    cluster.run(10.0)
    suspected, buried = cluster.times("n1", SUSPECT, began), cluster.times("n1", DEAD, began)
    assert len(suspected) == len(buried) == count - 1
    assert suspected[-1] < 1.5
    assert buried[-1] < 4.0


@pytest.mark.parametrize("count", [3, 8])
def test_one_that_was_killed_is_dead_at_once_for_all_that_have_a_link(count):
    cluster = Cluster(count, linked=True)
    began = cluster.network.now
    cluster.hosts["n1"].kill()
    cluster.run(5.0)
    buried = cluster.times("n1", DEAD, began)
    assert len(buried) == count - 1
    assert buried[-1] < 0.05


def test_without_links_it_is_found_by_the_next_probe_and_told_to_the_others():
    cluster = Cluster(30)
    began = cluster.network.now
    cluster.hosts["n7"].kill()
    cluster.run(5.0)
    buried = cluster.times("n7", DEAD, began)
    assert len(buried) == 29
    assert buried[0] < 0.5
    assert buried[-1] < 2.0


def test_who_comes_drains_or_leaves_is_seen_so_by_all_within_moments():
    cluster = Cluster(30)
    began = cluster.network.now
    host = cluster.add("new")
    cluster.run(5.0)
    assert len(cluster.times("new", ALIVE, began)) == 30
    assert cluster.times("new", ALIVE, began)[-1] < 2.0
    for ask, state in ((host.membership.drain, DRAINING), (host.membership.leave, LEFT)):
        began = cluster.network.now
        host.do(ask(began))
        cluster.run(5.0)
        told = cluster.times("new", state, began)
        assert len(told) == 31, "itself too"
        assert told[-1] < 2.0
    assert cluster.fenced == []


def test_a_card_that_changes_is_known_to_all_and_nobodys_incarnation_is_touched():
    cluster = Cluster(12)
    host = cluster.hosts["n3"]
    host.do(host.membership.describe(Card(services=("n3", "more")), cluster.network.now))
    cluster.run(5.0)
    seen = [each.membership.member("n3") for each in cluster.hosts.values()]
    assert {(each.card.services, each.card.edition, each.incarnation) for each in seen} == {(("n3", "more"), 2, 1)}


# Who is wrongly taken for dead


@pytest.mark.parametrize("loss", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("count", [3, 8, 20])
def test_nobody_is_taken_for_dead_because_of_lost_messages_and_spikes(count, loss):
    cluster = Cluster(count, weather=Weather(loss=loss, spikes=0.01))
    cluster.run(120.0)
    assert cluster.fenced == []
    assert not any(state is DEAD for _, _, state in cluster.seen)


@pytest.mark.parametrize("slow", [0.5, 1.0, 1.5])
def test_a_host_that_is_slow_is_not_taken_for_dead(slow):
    cluster = Cluster(5)
    cluster.network.extra["n1"] = slow
    cluster.run(300.0)
    assert cluster.fenced == []
    cluster.network.extra.clear()
    cluster.run(60.0)
    assert cluster.whole()


def test_a_node_that_hangs_takes_nobody_for_dead_when_it_goes_on():
    cluster = Cluster(5)
    for seconds in (0.6, 1.2, 60.0):
        cluster.hosts["n1"].freeze()
        cluster.run(seconds)
        cluster.hosts["n1"].thaw()
        cluster.run(20.0)
    others = {seen for host, seen, state in cluster.seen if state is DEAD}
    assert others == {"n1"}
    assert set(cluster.fenced) == {"n1"}


def test_a_whole_machine_that_sleeps_wakes_as_it_was():
    cluster = Cluster(5)
    for host in cluster.hosts.values():
        host.freeze()
    cluster.run(3600.0)
    for host in cluster.hosts.values():
        host.thaw()
    cluster.run(10.0)
    assert cluster.fenced == []
    assert cluster.whole()


# Parts


def test_two_clusters_that_began_apart_find_together_by_their_seeds():
    cluster = Cluster(0)
    cluster.network.side = {"n1": 1, "n3": 1}
    for place in range(4):
        cluster.add(f"n{place}")
    cluster.run(20.0)
    assert {len(host.membership) for host in cluster.hosts.values()} == {2}
    cluster.network.side.clear()
    cluster.run(20.0)
    assert cluster.whole()
    assert cluster.fenced == []


# Fencing


def test_stopped_for_ten_seconds_a_node_is_fenced_and_comes_back_with_a_new_life():
    cluster = Cluster(3)
    cluster.hosts["n1"].freeze()
    cluster.run(10.0)
    before = cluster.hosts["n1"].membership.me.life
    cluster.hosts["n1"].thaw()
    cluster.run(2.0)
    assert cluster.fenced == ["n1"]
    assert cluster.hosts["n1"].membership.me.life > before
    assert cluster.whole()


@pytest.mark.parametrize(("count", "cut"), [(3, 1), (9, 2), (10, 4), (40, 12)])
@pytest.mark.parametrize("seconds", [6.0, 60.0])
def test_a_part_that_was_cut_off_is_fenced_alone_and_the_larger_part_never_noticed(count, cut, seconds):
    cluster = Cluster(count)
    smaller = {f"n{place}" for place in range(cut)}
    cluster.network.side = dict.fromkeys(smaller, 1)
    cluster.run(seconds)
    cluster.network.side.clear()
    cluster.run(60.0)
    assert set(cluster.fenced) == smaller
    assert cluster.whole()


def test_when_all_were_alone_all_find_together():
    cluster = Cluster(5)
    cluster.network.side = {name: place for place, name in enumerate(cluster.hosts)}
    cluster.run(60.0)
    assert {len(host.membership) for host in cluster.hosts.values()} == {1}
    cluster.network.side.clear()
    cluster.run(60.0)
    assert cluster.whole()


def test_a_cut_between_two_that_others_reach_costs_nobody_anything():
    cluster = Cluster(5)
    reachable = cluster.network.reachable
    cluster.network.reachable = lambda one, other: {one, other} != {"n1", "n2"} and reachable(one, other)
    cluster.run(120.0)
    assert cluster.fenced == []
    assert not any(state in {SUSPECT, DEAD} for _, _, state in cluster.seen)


def test_a_node_that_starts_again_takes_the_place_of_its_earlier_life():
    cluster = Cluster(5)
    cluster.hosts["n2"].kill()
    cluster.run(0.3)
    cluster.add("n2", incarnation=2)
    cluster.run(10.0)
    assert cluster.fenced == []
    assert cluster.whole()


def test_of_two_processes_with_one_name_the_older_is_fenced_and_told_by_whom():
    cluster = Cluster(4)
    old = cluster.hosts["n2"]
    new = cluster.add("n2", incarnation=2, address="elsewhere")
    cluster.run(20.0)
    assert old.rivalled
    assert not new.rivalled
    assert all(cluster.hosts[name].membership.member("n2").address == "elsewhere" for name in ("n0", "n1", "n3"))


def test_one_whose_count_was_lost_comes_back_above_all_that_it_was():
    cluster = Cluster(4)
    cluster.hosts["n2"].kill()
    cluster.run(10.0)
    cluster.add("n2", incarnation=0)
    cluster.run(20.0)
    assert cluster.fenced == ["n2"]
    assert cluster.whole()
