"""The commands of compose.yaml and of the stateful set, run as processes: they become a cluster, and leave it well."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from deploy.manifests import compose, dockerfile, kubernetes
from deploy.processes import Processes, healthcheck

MANIFESTS = {"compose": compose, "kubernetes": kubernetes}
NAP = 2.0  # seconds


@pytest.fixture(scope="module", params=list(MANIFESTS))
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """All nodes of a manifest, started at the same moment, and ready."""
    with Processes(MANIFESTS[request.param](), tmp_path_factory.mktemp(request.param)) as running:
        running.until_ready()
        yield running


def test_three_nodes_become_one_cluster_by_the_secret_alone(cluster: Processes) -> None:
    first = next(iter(cluster.all.values()))
    with first.linked() as system:
        cluster.until(lambda: {each.node for each in system.call("cluster.list")} == set(cluster.all))
    nodes = first.json("nodes")
    assert {each["node"]: each["state"] for each in nodes} == dict.fromkeys(cluster.all, "alive")
    assert len(nodes) == 3
    assert {each["address"].partition(":")[0] for each in nodes} == {"wss"}


def test_every_probe_of_every_node_is_content(cluster: Processes) -> None:
    for each in cluster.all.values():
        assert {path: each.answers(path) for path in each.container.probes} == dict.fromkeys(each.container.probes, 200)


def test_the_check_of_the_image_finds_a_node_that_lives_and_one_that_does_not(cluster: Processes) -> None:
    command = dict(dockerfile())["HEALTHCHECK"].partition("CMD ")[2]
    assert healthcheck(command, next(iter(cluster.all.values())).port) == 0
    assert healthcheck(command, 1) != 0


def test_after_a_sigterm_what_others_have_running_there_ends_well_and_so_does_each_node(cluster: Processes) -> None:
    """The last test here: it ends the cluster."""
    first, *_, last = cluster.all.values()
    with first.linked() as system, last.linked() as there, ThreadPoolExecutor(1) as pool:
        cluster.until(lambda: all("slow" in each.services for each in system.call("cluster.list")))
        begun = there.subscribe("slow.begun")
        answer = pool.submit(system.call, f"slow.nap@{last.container.name}", seconds=NAP)
        next(iter(begun))
        last.stop()
        assert answer.result(30) == last.container.name
        assert last.process.wait(last.container.grace) == 0
        assert {each.node: each.state for each in system.call("cluster.list")}[last.container.name] == "left"
    others = [each for each in cluster.all.values() if each is not last]
    for each in others:
        each.stop()
    assert [each.process.wait(each.container.grace) for each in others] == [0, 0]
    assert [each.said() for each in cluster.all.values() if "Traceback" in each.said()] == []
