"""Another node keeps what one has, and an archive is made of that when the first one is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from backup_archives import read
from linked_nodes import LinkedNode, linked
from portable_entries import restoring

from microkernel.capability import Rights
from microkernel.clock import Clock
from microkernel.errors import Denied, Invalid, MicrokernelError, NotFound
from microkernel.inputs import Inputs
from microkernel.portable import AHEAD, EntryPiece, Export, Import, Imported, check_restoring, put_file, read_entries
from microkernel.service import Placement, Service, handles, streams
from microkernel.testing import TestKernel
from services.backup.kept import KeptReplica
from services.backup.replicas import Replicas
from services.backup.service import Backup
from services.filesystem.service import Filesystem

SETTINGS = {"backup": {"replicas": {"to": "nodes", "every_seconds": 0.02}}}


class Shelf(Service):
    """Keeps what it is given in a file."""

    name = "shelf"
    placement = Placement.NODE
    fails = False

    @handles
    async def put(self, message: str) -> None:
        put_file(self.state_dir / "shelf", message.encode())

    @handles
    async def get(self) -> str:
        return (self.state_dir / "shelf").read_text()

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
        path = self.state_dir / "shelf"
        if path.exists():
            yield EntryPiece(name="shelf", content=path.read_bytes())
        if Shelf.fails:
            raise RuntimeError("the shelf has fallen")
        if message.secrets:
            yield EntryPiece(name="token", content=b"secret")

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:
        check_restoring(self)
        for content in (await read_entries(inputs, self.name, most=1 << 20)).values():
            put_file(self.state_dir / "shelf", content)
        yield Imported()


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "fails", False)


async def replicas(node: LinkedNode, **asked: Any) -> dict[tuple[str, str], Any]:
    return {(each.replica.node, each.kept_by): each for each in await node.call("backup.replicas", **asked)}


async def renewed(node: LinkedNode, *, at: LinkedNode) -> None:
    """Return when all that `node` had a moment ago is kept at the other one: after a replica that began later."""
    for _ in range(2):
        before = await _edition(at)
        async with asyncio.timeout(30):
            while await _edition(at) == before:
                await asyncio.sleep(0.01)


async def _edition(at: LinkedNode) -> float:
    """When the replica that the other node has came."""
    try:
        path = at.kernel.root / "backup" / "replicas" / "n1.sqlite"
        _, came = await asyncio.to_thread(KeptReplica(path).told)
    except NotFound:
        return 0.0
    return came


async def no_more_coming(at: LinkedNode) -> None:
    """Return when the node has noticed that the other one's link is gone."""
    async with asyncio.timeout(30):
        while at.kernel.calls_in_flight():
            await asyncio.sleep(0.01)


async def archive_of(node: LinkedNode, path: Path, **asked: Any) -> Any:
    summary = None
    with path.open("wb") as file:
        async for piece in node.kernel.stream("backup.create", of="n1", **asked):
            file.write(piece.content)
            summary = piece.summary or summary
    return summary


async def test_what_a_node_had_is_restored_from_another_one_when_it_is_lost(tmp_path: Path) -> None:
    async with linked((Backup, Shelf), (Backup, Shelf), services=SETTINGS) as (one, two):
        await one.call("shelf.put", "of the first")
        await two.call("shelf.put", "of the second")
        one.knows(two, "backup", "shelf")
        await renewed(one, at=two)
        await one.kernel.kernel.shutdown()
        summary = await archive_of(two, tmp_path / "x.tar")
    assert (summary.node, summary.secrets, summary.models) == ("n1", False, False)
    _, found = read(tmp_path / "x.tar")
    assert found == {"parts/shelf/shelf": b"of the first"}
    async with restoring(tmp_path / "other", Backup, Shelf) as port:
        steps = [step.stage async for step in port.stream("backup.restore", path=str(tmp_path / "x.tar"))]
    assert steps[-1] == "done"
    async with TestKernel(Shelf, root=tmp_path / "other") as restored:
        assert await restored.call("shelf.get") == "of the first"


async def test_changes_follow(tmp_path: Path) -> None:
    async with linked((Backup, Shelf), (Backup,), services=SETTINGS) as (one, two):
        one.knows(two, "backup")
        for text in ("one", "two"):
            await one.call("shelf.put", text)
            await renewed(one, at=two)
            await archive_of(two, tmp_path / "x.tar")
            assert read(tmp_path / "x.tar")[1] == {"parts/shelf/shelf": text.encode()}


async def test_an_archive_is_made_through_any_node_of_the_newest_replica(tmp_path: Path) -> None:
    async with linked((Backup, Shelf), (Backup,), (Backup,), services=SETTINGS) as (one, two, three):
        await one.call("shelf.put", "old")
        one.knows(two, "backup")
        await renewed(one, at=two)
        await one.forgets(two)
        one.knows(three, "backup")
        await one.call("shelf.put", "new")
        await renewed(one, at=three)
        await one.forgets(three)
        two.knows(three, "backup")
        assert {("n1", "n2"), ("n1", "n3")} <= set(await replicas(two, everywhere=True))
        assert {kept_by for _, kept_by in await replicas(two)} == {"n2"}
        await archive_of(two, tmp_path / "x.tar")
    assert read(tmp_path / "x.tar")[1] == {"parts/shelf/shelf": b"new"}


async def test_the_node_that_keeps_it_stays_the_same_while_it_is_there() -> None:
    async with linked((Backup, Shelf), *[(Backup,)] * 4, services=SETTINGS) as (one, *others):
        one.knows(others[0], "backup")
        await renewed(one, at=others[0])
        for other in others[1:]:
            one.knows(other, "backup")
        await renewed(one, at=others[0])
        assert not [other.name for other in others[1:] if await replicas(other)]


async def test_another_node_keeps_it_when_the_first_one_is_gone() -> None:
    async with linked((Backup, Shelf), (Backup,), (Backup,), services=SETTINGS) as (one, two, three):
        one.knows(two, "backup")
        await renewed(one, at=two)
        one.knows(three, "backup")
        await one.forgets(two)
        await renewed(one, at=three)


async def test_a_replica_has_no_secrets(tmp_path: Path) -> None:
    async with linked((Backup, Shelf), (Backup,), services=SETTINGS) as (one, two):
        one.knows(two, "backup")
        await renewed(one, at=two)
        await archive_of(two, tmp_path / "x.tar")
        for lacking in ("secrets", "models"):
            with pytest.raises(Invalid, match="neither secrets nor weights"):
                await archive_of(two, tmp_path / "y.tar", **{lacking: True})
    assert not read(tmp_path / "x.tar")[1]


async def test_a_service_that_cannot_give_its_part_leaves_the_last_replica(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked((Backup, Shelf), (Backup,), services=SETTINGS) as (one, two):
        await one.call("shelf.put", "whole")
        one.knows(two, "backup")
        await renewed(one, at=two)
        Shelf.fails = True
        async with asyncio.timeout(30):
            while "the shelf has fallen" not in caplog.text:
                await asyncio.sleep(0.02)
        await archive_of(two, tmp_path / "x.tar")
        assert read(tmp_path / "x.tar")[1] == {"parts/shelf/shelf": b"whole"}
        Shelf.fails = False
        await renewed(one, at=two)


async def test_contents_that_are_too_large_stay_out_and_are_named(tmp_path: Path) -> None:
    config = {"backup": {"replicas": {"to": "nodes", "every_seconds": 0.05, "largest_bytes": 1 << 20}}}
    async with linked((Backup, Filesystem), (Backup,), services=config) as (one, two):
        await one.call("filesystem.write", path="/data/small", content=b"1" * (1 << 20))
        await one.call("filesystem.write", path="/data/large", content=b"2" * ((1 << 20) + 1))
        one.knows(two, "backup")
        await renewed(one, at=two)
        summary = await archive_of(two, tmp_path / "x.tar")
    assert "filesystem: 1 contents have more than 1048576 bytes, and are not in the backup" in summary.notes
    async with restoring(tmp_path / "other", Backup, Filesystem) as port:
        steps = [step async for step in port.stream("backup.restore", path=str(tmp_path / "x.tar"))]
    assert any("too large" in note for note in steps[-1].notes)
    async with TestKernel(Filesystem, root=tmp_path / "other") as restored:
        listed = {each.path: each.size for each in await restored.call("filesystem.list", path="/data")}
        assert listed == {"/data/small": 1 << 20, "/data/large": (1 << 20) + 1}
        with pytest.raises(MicrokernelError):
            [piece async for piece in restored.stream("filesystem.read", path="/data/large")]


async def test_alone_or_with_others_on_this_machine_only_nothing_is_sent_anywhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = {"backup": {"replicas": {"every_seconds": 0.01}}}
    async with linked((Backup, Shelf), (Backup,), services=settings) as (one, two):
        one.knows(two, "backup")
        await asyncio.sleep(0.2)
        assert await two.call("backup.replicas") == []
        assert "keeps" not in caplog.text


async def test_what_is_kept_is_forgotten_on_demand_and_after_a_while(tmp_path: Path) -> None:
    async with linked((Backup, Shelf), (Backup,), services=SETTINGS) as (one, two):
        one.knows(two, "backup")
        await renewed(one, at=two)
        await one.forgets(two)
        await no_more_coming(two)
        await two.call("backup.forget", node="n1")
        with pytest.raises(NotFound, match="there is no replica of 'n1' here"):
            await two.call("backup.forget", node="n1")
        with pytest.raises(NotFound, match="no node keeps what 'n1' had"):
            await archive_of(two, tmp_path / "x.tar")
        one.knows(two, "backup")
        await renewed(one, at=two)
        await one.forgets(two)
        await no_more_coming(two)
        kept = Replicas("n2", two.kernel.root / "backup" / "replicas", Clock(asyncio.get_running_loop()))
        assert await kept.forget_older(60) == []
        assert await kept.forget_older(-1) == ["n1"]
        assert await two.call("backup.replicas") == []


async def test_only_nodes_have_something_kept_and_only_root_sees_it() -> None:
    async with TestKernel(Backup) as system:
        with pytest.raises(Denied, match="only another node"):
            await anext(system.stream("backup.keep", at=0, made_by="0.1.0", parts=()))
        ann = system.kernel.port.narrow(caller="session ann", rights=Rights(), user="ann")
        for to, fields in (("replicas", {}), ("forget", {"node": "n1"})):
            with pytest.raises(Denied, match="only root"):
                await ann.call(f"backup.{to}", **fields)


@pytest.mark.parametrize("node", ["../n1", "", "n1/../n2", "n" * 65])
async def test_no_name_of_a_node_leads_out_of_the_folder(node: str) -> None:
    async with TestKernel(Backup) as system:
        with pytest.raises(Invalid):
            await system.call("backup.forget", node=node)
        with pytest.raises(Invalid):
            await anext(system.stream("backup.create", of=node))
