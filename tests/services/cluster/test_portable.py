"""The keys of a cluster leave with secrets only, and let the node with which it began be another machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from clustered import clustered
from portable_entries import contents_of, exported, restoring, take_in

from microkernel.capability import Rights
from microkernel.errors import DataLoss, Denied
from microkernel.portable import EntryPiece
from microkernel.testing import TestKernel
from services.cluster.joining import place_of
from services.cluster.service import Cluster

BEYOND = {"host": "0.0.0.0", "advertise": "127.0.0.1"}


def pieces(entries: dict[str, bytes]) -> list[EntryPiece]:
    return [EntryPiece(name=name, content=entries[name]) for name in sorted(entries)]


async def test_the_node_with_which_a_cluster_began_is_lost_and_restored_and_the_others_go_on_with_it(
    tmp_path: Path,
) -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1", cluster=BEYOND)
        await cluster.join("n2", cluster=BEYOND)
        await cluster.all_see("n1", "n2")
        port = place_of((await first.call("cluster.invite")).url).port
        kept = await exported(first, "cluster", secrets=True)
        await cluster.stop("n1")
        async with restoring(tmp_path / "n1", Cluster) as restored:
            said = await take_in(restored, "cluster", kept)
        assert said.notes == ("it is 'n1' that lets nodes in, as before: the node that it was may not run any more",)
        own = {**BEYOND, "port": port}
        await cluster._boot("n1", (), {"cluster": own}, joins=False, root=tmp_path / "n1")
        await cluster.all_see("n1", "n2")
        await cluster.join("n3", cluster=BEYOND)
        await cluster.all_see("n1", "n2", "n3")


async def test_without_secrets_nothing_leaves() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1", cluster=BEYOND)
        assert await exported(first, "cluster") == []
        kept = contents_of(await exported(first, "cluster", secrets=True))
        assert set(kept) == {"authority/authority.pem", "standing.json"}
        assert b"PRIVATE KEY" in kept["authority/authority.pem"]


async def test_a_node_that_joined_has_nothing_that_lets_in() -> None:
    async with clustered() as cluster:
        await cluster.found("n1", cluster=BEYOND)
        second = await cluster.join("n2", cluster=BEYOND)
        assert await exported(second, "cluster", secrets=True) == []


async def test_a_node_of_one_machine_keeps_its_secret_without_an_authority(tmp_path: Path) -> None:
    async with TestKernel(Cluster) as node:
        kept = await exported(node, "cluster", secrets=True)
    assert [piece.name for piece in kept] == ["standing.json"]
    async with restoring(tmp_path / "other", Cluster) as restored:
        await take_in(restored, "cluster", kept)
    assert (tmp_path / "other" / "cluster" / "own" / "standing.json").stat().st_mode & 0o777 == 0o600


async def test_only_root_takes_the_keys() -> None:
    async with TestKernel(Cluster) as node:
        ann = node.kernel.port.narrow(caller="session ann", rights=Rights(), user="ann")
        with pytest.raises(Denied, match="only root"):
            await anext(ann.stream("cluster.export", secrets=True))


@pytest.mark.parametrize(
    "entries",
    [
        {"standing.json": b"{"},
        {"standing.json": b"\xff"},
        {"authority/authority.pem": b"x"},
        {"refused.json": b"x"},
        {"node.pem": b"x", "standing.json": b'{"node":"n1","secret":"s"}'},
        {"authority/authority.pem": b"x", "standing.json": b'{"node":"n1","secret":"s"}'},
        {"refused.json": b"x", "standing.json": b'{"node":"n1","secret":"s"}'},
    ],
)
async def test_damaged_keys_are_refused(tmp_path: Path, entries: dict[str, bytes]) -> None:
    async with restoring(tmp_path / "n1", Cluster) as restored:
        with pytest.raises(DataLoss, match="cluster: "):
            await take_in(restored, "cluster", pieces(entries))
