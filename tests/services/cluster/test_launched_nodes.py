"""Each machine of a launcher has a node, and has one again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from clustered import Clustered, clustered
from linked_nodes import Among

from microkernel.config import Config
from microkernel.errors import PreconditionFailed, Unavailable
from microkernel.launcher import Launcher, Machine, NodeStart
from microkernel.message import Message
from microkernel.plugins import Plugin
from services.cluster import kept_running, launched_nodes
from services.cluster.service import Cluster


class HostsSettings(Message, kw_only=True):
    names: tuple[str, ...]
    installed: bool = True


class Hosts(Launcher):
    """Machines that are this process: the nodes are real, and join over real links."""

    name = "hosts"
    Settings = HostsSettings
    settings: HostsSettings
    made: ClassVar[Hosts | None] = None

    async def open(self, owner: str, folder: Path) -> None:
        Hosts.made = self
        if not self.settings.installed:
            raise PreconditionFailed("there are no hosts here")
        self.owner = owner
        self.names = list(self.settings.names)
        self.broken = False
        self.starts: list[NodeStart] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.returns = True
        self._nodes: dict[str, asyncio.Task[None]] = {}

    async def machines(self) -> Sequence[Machine]:
        if self.broken:
            raise Unavailable("nobody answers")
        return [Machine(name) for name in self.names]

    async def run(self, machine: str, start: NodeStart) -> str:
        self.starts.append(start)
        if machine in self._nodes:
            await asyncio.wait({self._nodes[machine]})
        self.ends[machine] = end = asyncio.Event()
        self._nodes[machine] = node = asyncio.create_task(self._node(start, end))
        try:
            await asyncio.shield(node)
            if not self.returns:
                await asyncio.Event().wait()
        finally:
            end.set()
        return "it was told to"

    async def close(self) -> None:
        for end in self.ends.values():
            end.set()
        await asyncio.gather(*self._nodes.values())

    @staticmethod
    async def _node(start: NodeStart, end: asyncio.Event) -> None:
        settings = {"cluster": {"join": (start.join,), "token": start.token}}
        async with Among(Cluster, config=Config(node=start.node, joins=True), settings=settings):
            await end.wait()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def discover(names: Sequence[str]) -> list[Plugin]:
        return [Plugin("hosts", "test", kind=Hosts)] if "hosts" in names else []

    monkeypatch.setattr(launched_nodes, "discover_launchers", discover)
    monkeypatch.setattr(launched_nodes, "LOOK", 0.05)
    monkeypatch.setattr(launched_nodes, "LOST", 0.2)
    monkeypatch.setattr(kept_running, "FIRST_PAUSE", 0.01)
    Hosts.made = None


@pytest.fixture
async def cluster() -> AsyncIterator[Clustered]:
    async with clustered() as found:
        yield found


async def launching(cluster: Clustered, *names: str) -> Hosts:
    await cluster.found("n1", cluster={"launchers": {"hosts": {"names": names}}})
    await see(cluster, *names)
    assert Hosts.made is not None
    return Hosts.made


async def see(cluster: Clustered, *names: str) -> None:
    """Until the first node has these others, and no more."""
    wanted = {"n1", *(f"hosts-{name}" for name in names)}
    await cluster.until("n1", lambda seen: {each.node for each in seen.values() if each.state == "alive"} == wanted)


async def test_each_machine_has_a_node(cluster: Clustered) -> None:
    await launching(cluster, "a", "b")


async def test_a_machine_that_comes_gets_a_node_and_one_that_is_gone_has_none(cluster: Clustered) -> None:
    hosts = await launching(cluster, "a")
    hosts.names = ["b"]
    await see(cluster, "b")


async def test_a_machine_that_is_there_again_gets_a_node_again(cluster: Clustered) -> None:
    hosts = await launching(cluster, "a")
    hosts.names = []
    await see(cluster)
    hosts.names = ["a"]
    await see(cluster, "a")


async def test_a_node_that_has_ended_is_started_again_with_a_token_of_its_own(cluster: Clustered) -> None:
    hosts = await launching(cluster, "a")
    hosts.ends["a"].set()
    await cluster.until("n1", lambda seen: seen["hosts-a"].state != "alive")
    await see(cluster, "a")
    first, second = hosts.starts
    assert first.node == second.node
    assert first.token != second.token


async def test_a_node_that_the_cluster_has_lost_is_started_anew_whatever_the_launcher_thinks(
    cluster: Clustered,
) -> None:
    hosts = await launching(cluster, "a")
    hosts.returns = False  # for the launcher, it runs
    await asyncio.sleep(0.3)  # several looks
    hosts.ends["a"].set()
    await cluster.until("n1", lambda seen: seen["hosts-a"].state != "alive")
    await see(cluster, "a")
    assert len(hosts.starts) == 2


async def test_nodes_are_let_alone_while_the_launcher_does_not_answer(cluster: Clustered) -> None:
    hosts = await launching(cluster, "a")
    hosts.broken, hosts.names = True, []
    await asyncio.sleep(0.3)  # several looks
    await see(cluster, "a")
    assert len(hosts.starts) == 1


async def test_what_is_wrong_with_a_launcher_is_told_once(cluster: Clustered, caplog: pytest.LogCaptureFixture) -> None:
    hosts = await launching(cluster, "a")
    hosts.broken = True
    await asyncio.sleep(0.3)  # several looks
    assert [each.getMessage() for each in caplog.records if "nobody answers" in each.getMessage()] == [
        "launcher 'hosts': nobody answers"
    ]


async def test_all_end_with_the_node_that_has_started_them() -> None:
    async with clustered() as cluster:
        hosts = await launching(cluster, "a", "b")
    assert all(end.is_set() for end in hosts.ends.values())


async def test_a_node_that_joins_starts_none(cluster: Clustered) -> None:
    await cluster.found("n1")
    await cluster.join("n2", cluster={"launchers": {"hosts": {"names": ["a"]}}})
    await asyncio.sleep(0.2)
    assert Hosts.made is None


async def test_its_word_for_the_node_is_the_same_over_boots_and_another_for_another_node(tmp_path: Path) -> None:
    words = []
    for root, name in (("one", "n1"), ("one", "n1"), ("other", "n1")):
        settings = {"cluster": {"launchers": {"hosts": {"names": []}}}}
        async with Among(Cluster, config=Config(node=name), settings=settings, root=tmp_path / root):
            async with asyncio.timeout(10):
                while Hosts.made is None:
                    await asyncio.sleep(0.01)
        words.append(Hosts.made.owner)
        Hosts.made = None
    assert words[0] == words[1] != words[2]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"hosts": {"names": ["a"], "installed": False}}, "launcher 'hosts' cannot be used: there are no hosts here"),
        ({"hosts": {"name": ["a"]}}, "unknown key 'services.cluster.launchers.hosts.name' (did you mean 'names'?)"),
        ({"others": {}}, "launcher 'others' cannot be used: no launcher of that name is installed"),
        ({"hosts": {"names": ["A b"]}}, "'hosts-A b' cannot be the name of a node"),
    ],
)
async def test_a_launcher_that_cannot_be_used_is_named_and_the_node_goes_on(
    cluster: Clustered, caplog: pytest.LogCaptureFixture, sections: dict[str, dict[str, object]], told: str
) -> None:
    caplog.set_level(logging.WARNING)
    await cluster.found("n1", cluster={"launchers": sections})
    async with asyncio.timeout(10):
        while told not in caplog.text:
            await asyncio.sleep(0.01)
    await see(cluster)


async def test_a_token_for_a_node_is_not_shown_with_its_start(cluster: Clustered) -> None:
    hosts = await launching(cluster, "a")
    assert hosts.starts[0].token not in repr(hosts.starts[0])
