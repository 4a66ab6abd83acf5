"""Services, also of plugins, are backed up and restored by messages."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from backup_archives import archive, read
from isolation_services import Keeper
from portable_entries import restoring

from microkernel import durable
from microkernel.capability import Rights
from microkernel.config import Config
from microkernel.errors import (
    Aborted,
    DataLoss,
    Denied,
    Invalid,
    MicrokernelError,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from microkernel.inputs import Inputs
from microkernel.portable import (
    AHEAD,
    PIECE,
    EntryPiece,
    Export,
    Import,
    Imported,
    check_restoring,
    put_file,
    read_entries,
)
from microkernel.service import Service, handles, streams
from microkernel.testing import TestKernel
from services.backup.service import Backup


class Pairs(Service):
    """What a plugin's author would write: keeps pairs in a file."""

    name = "pairs"

    async def start(self) -> None:
        path = self.state_dir / "pairs.json"
        self.pairs = msgspec.json.decode(path.read_bytes()) if path.exists() else {}

    @handles
    async def put(self, message: dict) -> None:
        self.pairs |= message
        put_file(self.state_dir / "pairs.json", msgspec.json.encode(self.pairs))

    @handles
    async def get(self) -> dict:
        return self.pairs

    @streams
    async def export(self, message: Export) -> AsyncIterator[dict]:
        yield {"name": "pairs.json", "content": msgspec.json.encode(self.pairs)}
        if message.secrets:
            yield {"name": "secret", "content": b"x"}

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:
        check_restoring(self)
        entries = await read_entries(inputs, self.name, most=1 << 20)
        put_file(self.state_dir / "pairs.json", entries["pairs.json"])
        yield Imported(notes=("they were checked",))


class Plain(Service):
    """Keeps nothing."""

    name = "plain"


class Large(Service):
    """Gives 64 MiB, and takes them in."""

    name = "large"
    given = 0
    closed = False

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
        try:
            Large.given = 0
            for number in range(256):
                first = {"name": "a", "size": 256 * PIECE} if number == 0 else {}
                Large.given += 1
                yield EntryPiece(content=bytes(PIECE), **first)
        finally:
            Large.closed = True

    @streams(name="import", credit=AHEAD)
    async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:
        check_restoring(self)
        size = 0
        async for piece in inputs:
            size += len(piece.content)
        durable.create(self.state_dir.parent / "size", str(size).encode())
        yield Imported()


async def backed_up(system, path: Path, **asked):
    """The archive in a file; returns its summary."""
    summary, size = None, 0
    with path.open("wb") as file:
        async for piece in system.stream("backup.create", **asked):
            size += file.write(piece.content)
            summary = piece.summary or summary
    assert summary.archive_bytes == size
    return summary


async def restored(root: Path, path: Path, *kinds: type[Service], **asked):
    """The last word of a restore into `root`."""
    async with restoring(root, Backup, *kinds) as port:
        steps = [step async for step in port.stream("backup.restore", path=str(path), **asked)]
    assert [step.stage for step in steps][-1] == "done"
    return steps[-1]


async def test_a_plugin_takes_part_with_two_handlers(tmp_path):
    async with TestKernel(Backup, Pairs, Plain) as system:
        await system.call("pairs.put", a=1)
        summary = await backed_up(system, tmp_path / "x.tar")
        assert [(part.name, part.entries) for part in summary.parts] == [("kernel", 0), ("pairs", 1)]
        _, found = read(tmp_path / "x.tar")
        assert found == {"parts/pairs/pairs.json": b'{"a":1}'}
    last = await restored(tmp_path / "other", tmp_path / "x.tar", Pairs)
    assert last.summary == summary
    assert "pairs: they were checked" in last.notes
    async with TestKernel(Pairs, root=tmp_path / "other") as other:
        assert await other.call("pairs.get") == {"a": 1}


@pytest.mark.parametrize("isolation", ["task", "thread", "process"])
async def test_a_service_takes_part_wherever_it_runs(tmp_path, isolation):
    config = Config(isolation={"keeper": isolation})
    async with TestKernel(Backup, Keeper, config=config) as system:
        await backed_up(system, tmp_path / "x.tar")
    _, found = read(tmp_path / "x.tar")
    assert found == {"parts/keeper/a": b"1" * (1 << 20), "parts/keeper/b": b"2"}


async def test_secrets_and_weights_are_left_out_unless_they_are_asked_for(tmp_path):
    async with TestKernel(Backup, Pairs) as system:
        await backed_up(system, tmp_path / "x.tar")
        assert "parts/pairs/secret" not in read(tmp_path / "x.tar")[1]
        assert not [name for name in read(tmp_path / "x.tar")[1] if "token" in name]
        summary = await backed_up(system, tmp_path / "y.tar", secrets=True, models=True)
        reader, found = read(tmp_path / "y.tar")
    assert {"parts/pairs/secret", "parts/kernel/token.key"} <= found.keys()
    assert (reader.manifest.secrets, reader.manifest.models) == (summary.secrets, summary.models) == (True, True)


async def test_a_service_that_is_down_is_not_left_out_without_a_word(tmp_path):
    class Fails(Pairs):
        name = "fails"
        restart_policy = "temporary"

        async def start(self) -> None:
            raise RuntimeError("no")

    async with TestKernel(Backup, Pairs, Fails, wait_ready=False) as system:
        await system.until("fails", "stopped", "quarantined")
        with pytest.raises(Unavailable, match="service 'fails' has something to be backed up"):
            await backed_up(system, tmp_path / "x.tar")
        summary = await backed_up(system, tmp_path / "x.tar", without=["fails"])
        assert summary.left_out == {"fails": "was left out as asked"}
        with pytest.raises(NotFound, match="'nobody'"):
            await backed_up(system, tmp_path / "x.tar", without=["nobody"])


async def test_what_another_node_of_the_cluster_has_is_told_of(tmp_path):
    async with TestKernel(Backup, Pairs) as system:
        await system.call("kernel.leave_to_others", name="pairs")
        summary = await backed_up(system, tmp_path / "x.tar")
    assert [part.name for part in summary.parts] == ["kernel"]
    assert "another node of the cluster" in summary.left_out["pairs"]


async def test_a_broken_plugin_is_told_of_and_keeps_nobody_from_a_backup(tmp_path):
    from microkernel.plugins import Plugin

    async with TestKernel(Backup, Plugin("odd", "odd.py", broken="SyntaxError"), wait_ready=False) as system:
        summary = await backed_up(system, tmp_path / "x.tar")
    assert summary.left_out == {"odd": "is broken: SyntaxError"}


@pytest.mark.parametrize("to", ["create", "check", "restore"])
async def test_only_root_makes_backups_and_reads_them(tmp_path, to):
    async with TestKernel(Backup) as system:
        ann = system.kernel.port.narrow(caller="session ann", rights=Rights(), user="ann")
        fields = {} if to == "create" else {"path": str(tmp_path)}
        with pytest.raises(Denied, match="only root"):
            await anext(ann.stream(f"backup.{to}", **fields))


async def test_a_node_that_runs_is_not_restored(tmp_path):
    async with TestKernel(Backup, Pairs) as system:
        await backed_up(system, tmp_path / "x.tar")
        with pytest.raises(PreconditionFailed, match="only while a node is restored"):
            await anext(system.stream("backup.restore", path=str(tmp_path / "x.tar")))


async def test_an_archive_is_checked_on_a_node_that_runs(tmp_path):
    async with TestKernel(Backup, Pairs) as system:
        await system.call("pairs.put", a=1)
        summary = await backed_up(system, tmp_path / "x.tar")
        steps = [step async for step in system.stream("backup.check", path=str(tmp_path / "x.tar"))]
        assert (steps[-1].stage, steps[-1].summary) == ("checked", summary)
        content = bytearray((tmp_path / "x.tar").read_bytes())
        content[content.index(b'{"a":1}')] ^= 1
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(DataLoss, match=r"x\.tar is no whole backup: 'parts/pairs/pairs\.json' is damaged"):
            [step async for step in system.stream("backup.check", path=str(tmp_path / "x.tar"))]
        with pytest.raises(NotFound, match="there is no"):
            await anext(system.stream("backup.check", path=str(tmp_path / "y.tar")))
        with pytest.raises(Invalid):
            await anext(system.stream("backup.check", path=str(tmp_path)))


class Wrong(Service):
    """Gives what is no entries."""

    name = "wrong"
    pieces: tuple = ()
    error: Exception | None = None

    @streams
    async def export(self, message: Export) -> AsyncIterator[EntryPiece]:
        for piece in Wrong.pieces:
            yield piece
        if Wrong.error is not None:
            raise Wrong.error


@pytest.mark.parametrize(
    ("pieces", "error", "why"),
    [
        ([EntryPiece(name="b"), EntryPiece(name="a")], None, "in the order of their names"),
        ([EntryPiece(name="../x")], None, "no name of an entry"),
        ([EntryPiece(name="a", size=2, content=b"1")], None, "too early"),
        (["x"], None, "Expected `object`"),
        ([EntryPiece(name="a", known=True)], None, "without its content"),
        ([EntryPiece(name="a")], DataLoss("the shelf is damaged", remedy="mend it"), "the shelf is damaged"),
        ([EntryPiece(name="a")], ValueError("odd"), "ValueError: odd"),
    ],
)
async def test_a_service_that_cannot_give_its_part_ends_the_backup_and_is_named(tmp_path, pieces, error, why):
    Wrong.pieces, Wrong.error = tuple(pieces), error
    async with TestKernel(Backup, Wrong) as system:
        with pytest.raises(MicrokernelError, match=f"(?s)what 'wrong' keeps cannot be backed up: .*{why}"):
            await backed_up(system, tmp_path / "x.tar")
        assert system.state("backup") == "ready"


async def test_a_reader_that_takes_nothing_is_cut_and_services_let_go():
    async with TestKernel(Backup, Large, settings={"backup": {"patience_seconds": 0.05}}) as system:
        Large.closed = False
        async with system.stream("backup.create") as stream:
            await anext(stream)
            while not Large.closed:
                await asyncio.sleep(0.01)
            with pytest.raises(Aborted, match=r"nobody has taken anything of the backup for 0\.05 s"):
                [piece async for piece in stream]
        assert Large.given < 64


async def test_a_reader_that_leaves_ends_the_work():
    async with TestKernel(Backup, Large) as system:
        Large.closed = False
        async with system.stream("backup.create") as stream:
            async for piece in stream:
                if piece.part == "large":
                    break
            assert not Large.closed
        assert Large.closed


async def test_a_node_that_stops_ends_a_backup_with_a_cause():
    async with TestKernel(Backup, Large) as system:
        stream = system.stream("backup.create")
        await anext(stream)
        await system.kernel.shutdown()
        with pytest.raises(Unavailable):
            [piece async for piece in stream]


async def test_a_backup_and_a_restore_take_little_memory_whatever_they_carry(tmp_path):
    async with TestKernel(Backup, Large) as system:
        tracemalloc.start()
        try:
            await backed_up(system, tmp_path / "x.tar")
            _, making = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            await restored(tmp_path / "other", tmp_path / "x.tar", Large)
            _, taking = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (tmp_path / "other" / "size").read_text() == str(64 << 20)
    assert making < 16 << 20
    assert taking < 16 << 20


# Restoring


async def test_a_damaged_archive_is_refused_before_any_service_is_asked(tmp_path):
    async with TestKernel(Backup, Large, Pairs) as system:
        await backed_up(system, tmp_path / "x.tar")
    content = bytearray((tmp_path / "x.tar").read_bytes())
    content[-3000] ^= 1
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataLoss, match=r"x\.tar is no whole backup"):
        await restored(tmp_path / "other", tmp_path / "x.tar", Large, Pairs)
    assert not (tmp_path / "other" / "size").exists()


async def test_an_archive_that_is_changed_while_it_is_taken_in_is_noticed(tmp_path):
    path = tmp_path / "x.tar"

    class Changes(Service):
        name = "changes"

        @streams(name="import", credit=AHEAD)
        async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[Imported]:
            async for _ in inputs:
                with path.open("r+b") as file:
                    file.seek(40 << 20)
                    file.write(b"changed")
            yield Imported()

    path.write_bytes(archive({"changes": [EntryPiece(name="a", content=bytes(64 << 20))]}))
    with pytest.raises(DataLoss, match="'parts/changes/a' is damaged"):
        await restored(tmp_path / "other", path, Changes)


async def test_a_part_that_no_service_takes_in_is_named_or_left_out_as_asked(tmp_path):
    async with TestKernel(Backup, Pairs) as system:
        await backed_up(system, tmp_path / "x.tar")
    with pytest.raises(PreconditionFailed, match="no service here takes in what 'pairs' has kept"):
        await restored(tmp_path / "other", tmp_path / "x.tar")
    last = await restored(tmp_path / "other", tmp_path / "x.tar", without=["pairs"])
    assert "pairs: was left out" in last.notes
    with pytest.raises(NotFound, match="the backup has no part 'x'"):
        await restored(tmp_path / "other", tmp_path / "x.tar", without=["x"])


@pytest.mark.parametrize("how", ["raises", "says nothing", "returns early", "says something else"])
async def test_a_service_that_takes_its_part_in_in_its_own_way_is_named_where_that_is_wrong(tmp_path, how):
    class Odd(Service):
        name = "odd"

        @streams(name="import", credit=AHEAD)
        async def take_in(self, message: Import, inputs: Inputs[EntryPiece]) -> AsyncIterator[dict]:
            if how == "raises":
                raise DataLoss("I do not like it", remedy="ask it")
            if how == "returns early":
                yield {"notes": ("had enough",)}
            if how == "says something else":
                yield {"notes": 1}

    pieces = [EntryPiece(name=f"{number:05}", content=bytes(10_000)) for number in range(2000)]
    (tmp_path / "x.tar").write_bytes(archive({"odd": pieces}))
    if how == "returns early":
        assert (await restored(tmp_path / "o", tmp_path / "x.tar", Odd)).notes == ("odd: had enough",)
        return
    with pytest.raises(MicrokernelError, match="odd"):
        await restored(tmp_path / "o", tmp_path / "x.tar", Odd)


async def test_a_part_without_entries_is_taken_in_too(tmp_path):
    (tmp_path / "x.tar").write_bytes(archive({"large": []}))
    await restored(tmp_path / "o", tmp_path / "x.tar", Large)
    assert (tmp_path / "o" / "size").read_text() == "0"


async def test_a_restore_that_is_left_ends(tmp_path):
    (tmp_path / "x.tar").write_bytes(archive({"large": [EntryPiece(name="a", content=bytes(32 << 20))]}))
    asked = {"path": str(tmp_path / "x.tar")}
    async with restoring(tmp_path / "o", Backup, Large) as port, port.stream("backup.restore", asked) as steps:
        async for step in steps:
            if step.stage == "taking in":
                break
    assert not (tmp_path / "o" / "size").exists()
