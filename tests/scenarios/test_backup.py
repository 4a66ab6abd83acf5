"""A node is backed up while it works, wiped, restored and booted: conversations, files and jobs are there."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import stat
import time
from contextlib import suppress
from pathlib import Path

import pytest
from node_process import booted, command, mk
from tiny_model import write_tiny_model

import microkernel
from microkernel.buffers import Array
from microkernel.cli.output import plain
from microkernel.portable import EntryPiece

HELLO = [{"role": "user", "content": "Hello"}]
ASKED = {"messages": HELLO, "max_tokens": 120, "temperature": 1.0, "seed": 11}
QUIET = 'disable = ["inference", "models", "cluster"]\n'


async def text_of(stream) -> str:
    return "".join([piece.text async for piece in stream])


async def tree_of(system, path: str = "/") -> list[dict]:
    """All that is in a folder, with owners and versions."""
    found = []
    for each in plain(await system.call("filesystem.list", path=path)):
        if each["path"] in {"/proc", "/dev", "/models", "/tmp"}:
            continue
        found.append({name: each[name] for name in ("path", "kind", "size", "version", "modified", "owner", "by")})
        if each["kind"] == "folder":
            found += await tree_of(system, each["path"])
    return found


async def read(system, path: str, version: int | None = None) -> bytes:
    pieces = system.stream("filesystem.read", path=path, version=version, result_type=bytes)
    return b"".join([piece async for piece in pieces])


@pytest.mark.timeout(600)
async def test_backup_wipe_restore_boot_conversations_files_and_jobs_are_there(tmp_path):
    root, archive, noted = tmp_path / "root", tmp_path / "node.tar", tmp_path / "noted"
    noted.mkdir()
    model = write_tiny_model(tmp_path / "tiny")
    # A model's name would else be that of its folder's copy; the cluster has nothing to do here.
    config = f'node = "n7"\ndisable = ["cluster"]\n[services.inference]\nmodel = "{model}"\n'
    mapped = {"function": "mapped:noted", "items": list(range(40)), "tasks": 40, "name": "nightly"}
    mapped["arguments"] = {"folder": str(noted)}
    large = random.Random(1).randbytes(3 << 20)
    with booted(tmp_path, root, config=config) as node:
        async with microkernel.connect(root=root) as system:
            made = await system.call("kernel.token_create", user="ana", allow=["filesystem.*"])
            async with microkernel.connect(node["url"], made.token) as ana:
                first = await ana.call("filesystem.write", path="/home/ana/letter", content=b"dear")
                await ana.call("filesystem.write", path="/home/ana/letter", content=b"dear bob")
            await system.call("filesystem.write", path="/data/large", content=large)
            await system.call("filesystem.write", path="/data/gone", content=b"was here")
            await system.call("filesystem.remove", path="/data/gone")
            await system.call("filesystem.snapshot", path="/", name="monday")
            await system.call("filesystem.set_quota", path="/", owner="ana", limit_bytes=5 << 20)
            await system.call("memory.set_quota", owner="ana", quota=0.5)
            whole = await text_of(system.stream("inference.chat", **ASKED))
            async with system.stream("inference.chat", **ASKED) as stream:
                begun = await anext(stream)
                while not begun.text:
                    begun = await anext(stream)
                await system.call("inference.pause", pid=begun.pid)
                await system.call("inference.save", pid=begun.pid, name="story")
            async with system.stream("scheduler.imap", **mapped) as stream:
                for _ in range(15):
                    await anext(stream)
            done = {path.name.partition(".")[0] for path in noted.iterdir()}
            before = await tree_of(system)
            writing = asyncio.create_task(write_on(system))
            try:
                made = await asyncio.to_thread(mk, tmp_path, "--root", str(root), "--json", "backup", str(archive))
            finally:
                writing.cancel()
                await asyncio.wait([writing])
            written = await tree_of(system, "/data/busy")
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.glob("node.tar*")] == ["node.tar"]
    told = json.loads(made.stdout)
    assert (told["node"], told["archive_bytes"], told["left_out"]) == ("n7", archive.stat().st_size, {})
    shutil.rmtree(root)
    restored = mk(tmp_path, "--root", str(root), "--json", "restore", str(archive))
    assert restored.returncode == 0, restored.stderr
    assert (root / "config.toml").read_text() == config
    runs = len(list(noted.iterdir()))
    with booted(tmp_path, root, config=config):
        async with microkernel.connect(root=root) as system:
            after = await tree_of(system)
            busy = [each for each in after if each["path"].startswith("/data/busy/")]
            assert [each for each in after if not each["path"].startswith("/data/busy")] == before
            assert 0 < len(busy) <= len(written), "as it was at one moment of the writing"
            names = sorted(int(each["path"].rpartition("/")[2]) for each in busy)
            assert names == list(range(len(names)))
            assert await read(system, "/home/ana/letter") == b"dear bob"
            assert await read(system, "/home/ana/letter", first.version) == b"dear"
            assert await read(system, "/data/large") == large
            history = plain(await system.call("filesystem.history", path="/data/gone"))
            assert [each["action"] for each in history] == ["removed", "written"]
            assert [each.name for each in await system.call("filesystem.snapshots", path="/")] == ["monday"]
            usage = {each.owner: each.limit_bytes for each in await system.call("filesystem.usage", path="/")}
            assert usage["ana"] == 5 << 20
            quotas = {each.owner: each.set for each in (await system.call("memory.quotas")).quotas}
            assert quotas["ana"] == "live"
            assert [each.name for each in await system.call("inference.contexts")] == ["story"]
            async with system.stream("inference.restore", name="story") as stream:
                assert await text_of(stream) == whole
            assert await system.call("scheduler.map", **mapped) == list(range(40))
    again = len(list(noted.iterdir())) - runs
    assert again <= 40 - 15, "what was done before the backup is not done again"
    assert len(done) >= 15


@pytest.mark.timeout(300)
async def test_a_node_that_is_lost_with_its_disk_is_restored_from_another_one(tmp_path):
    lost, other, archive = tmp_path / "lost", tmp_path / "other", tmp_path / "n1.tar"
    kept = 'disable = ["inference", "models"]\n[services.backup.replicas]\nto = "nodes"\nevery_seconds = 0.2\n'
    joins = tmp_path / "joins"
    joins.mkdir()
    mapped = {"function": "mapped:square", "items": list(range(30)), "tasks": 30, "name": "nightly"}
    with booted(tmp_path, lost, config=f'node = "n1"\n{kept}') as first:
        async with microkernel.connect(root=lost) as system:
            invitation = await system.call("cluster.invite")
            joining = (
                f'node = "n2"\n{kept}[services.cluster]\njoin = ["{invitation.url}"]\ntoken = "{invitation.token}"\n'
            )
            with booted(joins, other, config=joining):
                await system.call("filesystem.write", path="/home/ana/letter", content=b"dear bob")
                await system.call("filesystem.write", path="/data/large", content=os.urandom(3 << 20))
                assert await system.call("scheduler.map", **mapped) == [item * item for item in range(30)]
                before = await tree_of(system)
                async with microkernel.connect(root=other) as second:
                    await renewed(second, "n1", after=time.time())
                first["process"].kill()
                shutil.rmtree(lost)
                told = await asyncio.to_thread(mk, joins, "--root", str(other), "backup", "--replicas")
                asked = ("--root", str(other), "--json", "backup", str(archive), "--of", "n1")
                made = await asyncio.to_thread(mk, joins, *asked)
                forget = ("--root", str(other), "backup", "--forget")
                wrong = await asyncio.to_thread(mk, joins, *forget, "n9")
                forgotten = await asyncio.to_thread(mk, joins, *forget, "n1")
    assert told.returncode == 0, told.stderr
    assert ["n1", "n2"] in [line.split()[:2] for line in told.stdout.splitlines()]
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["node"] == "n1"
    assert (wrong.returncode, "no node keeps a replica of 'n9'" in wrong.stderr) == (1, True)
    assert (forgotten.returncode, forgotten.stdout) == (0, "n2 keeps none of n1 any more\n")
    restored = mk(tmp_path, "--root", str(lost), "restore", str(archive))
    assert restored.returncode == 0, restored.stderr
    with booted(tmp_path, lost, config=f'node = "n1"\n{QUIET}'):
        async with microkernel.connect(root=lost) as system:
            assert await tree_of(system) == before
            assert await read(system, "/home/ana/letter") == b"dear bob"
            assert await system.call("scheduler.map", **mapped) == [item * item for item in range(30)]


async def renewed(system, node: str, *, after: float) -> None:
    """Return when the node that is asked has a replica of another one that was begun after that."""
    async with asyncio.timeout(60):
        while True:
            kept = [each.replica for each in await system.call("backup.replicas")]
            if any(each.node == node and each.at > after + 1 for each in kept):
                return
            await asyncio.sleep(0.05)


async def write_on(system) -> None:
    """A file after another, until it is told to stop."""
    number = 0
    while True:
        await system.call("filesystem.write", path=f"/data/busy/{number}", content=os.urandom(30_000))
        number += 1


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A node with 120 MB of files, which runs."""
    folder = tmp_path_factory.mktemp("node")
    root = folder / "root"
    with booted(folder, root, config=QUIET) as said:
        for number in range(6):
            (folder / "part").write_bytes(os.urandom(20 << 20))
            put = mk(folder, "--root", str(root), "fs", "put", str(folder / "part"), f"/data/{number}")
            assert put.returncode == 0, put.stderr
        yield folder, root, said


@pytest.fixture(scope="module")
def archive(node) -> Path:
    folder, root, _ = node
    made = mk(folder, "--root", str(root), "backup", str(folder / "whole.tar"))
    assert made.returncode == 0, made.stderr
    return folder / "whole.tar"


@pytest.mark.parametrize("after", [0, 30, *(pytest.param(mib, marks=pytest.mark.slow) for mib in (1, 60, 90, 110))])
def test_a_backup_that_is_killed_leaves_nothing_under_its_name(node, tmp_path, after):
    """After so many MiB."""
    folder, root, _ = node
    target = tmp_path / "x.tar"
    with command(folder, "--root", str(root), "backup", str(target)) as process:
        until(lambda: any(path.stat().st_size >= after << 20 for path in tmp_path.glob("x.tar.*.part")))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not target.exists()


@pytest.mark.parametrize(("words", "told"), [((), "which file"), (("x.tar", "--replicas"), "makes no archive")])
def test_a_backup_without_a_file_or_with_one_too_many_says_so(node, words, told):
    folder, root, _ = node
    asked = mk(folder, "--root", str(root), "backup", *words)
    assert asked.returncode == 1
    assert told in asked.stderr


def test_an_older_archive_stays_until_a_whole_one_takes_its_place(node, archive, tmp_path):
    folder, root, _ = node
    target = tmp_path / "x.tar"
    shutil.copy(archive, target)
    before = target.read_bytes()
    with command(folder, "--root", str(root), "backup", str(target)) as process:
        until(lambda: any(path.stat().st_size >= 10 << 20 for path in tmp_path.glob("x.tar.*.part")))
        process.send_signal(signal.SIGINT)
        process.wait()
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"], "what was interrupted has cleared away"


def test_a_node_that_is_killed_while_it_is_backed_up_leaves_no_archive_and_a_word(tmp_path):
    root, target = tmp_path / "root", tmp_path / "x.tar"
    (tmp_path / "part").write_bytes(os.urandom(50 << 20))
    with booted(tmp_path, root, config=QUIET) as said:
        for number in range(2):
            mk(tmp_path, "--root", str(root), "fs", "put", str(tmp_path / "part"), f"/data/{number}")
        with command(tmp_path, "--root", str(root), "backup", str(target)) as process:
            until(lambda: any(path.stat().st_size >= 5 << 20 for path in tmp_path.glob("x.tar.*.part")))
            said["process"].kill()
            _, stderr = process.communicate()
        assert (process.returncode, stderr.count("\n")) == (1, 1)
        assert stderr.startswith("error: ")
    assert not list(tmp_path.glob("x.tar*"))


@pytest.mark.parametrize("after", [0.0, 0.3, *(pytest.param(part, marks=pytest.mark.slow) for part in (0.1, 0.6, 1.0))])
def test_a_restore_that_is_killed_leaves_no_folder_and_the_next_one_clears_away(archive, tmp_path, after):
    """After so many seconds of taking in; where it was quicker than that, the folder is whole."""
    root = tmp_path / "root"
    with command(tmp_path, "--root", str(root), "restore", str(archive)) as process:
        until(lambda: list(tmp_path.glob("root.restoring-*/filesystem")) or process.poll() is not None)
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if not root.exists():
        assert list(tmp_path.glob("root.restoring-*"))
        done = mk(tmp_path, "--root", str(root), "restore", str(archive))
        assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("root")] == ["root"]
    assert len(list((root / "filesystem" / "contents").glob("??/*"))) == 6


def test_an_interrupted_restore_clears_away_itself(archive, tmp_path):
    with command(tmp_path, "--root", str(tmp_path / "root"), "restore", str(archive)) as process:
        until(lambda: list(tmp_path.glob("root.restoring-*/filesystem")))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "")
    assert not list(tmp_path.glob("root*"))


def test_a_folder_that_is_there_stays_unless_it_is_to_be_put_aside(archive, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mine").touch()
    refused = mk(tmp_path, "--root", str(tmp_path / "root"), "restore", str(archive))
    assert refused.returncode == 1
    assert "is not empty" in refused.stderr
    forced = mk(tmp_path, "--root", str(tmp_path / "root"), "restore", str(archive), "--force")
    assert forced.returncode == 0, forced.stderr
    (aside,) = tmp_path.glob("root.before-*")
    assert (aside / "mine").exists()
    assert f"what was there is in {aside}" in forced.stdout
    assert f"mk boot --root {tmp_path / 'root'}" in forced.stdout


def test_a_running_node_is_not_restored_over(node, archive):
    folder, root, _ = node
    for more in ((), ("--force",)):
        done = mk(folder, "--root", str(root), "restore", str(archive), *more)
        assert done.returncode == 1
        assert "a node runs on the state folder" in done.stderr


def test_a_damaged_archive_is_refused_by_name_and_nothing_is_made(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bad.tar").write_bytes(content)
    for arguments in (("--check",), ("--root", str(tmp_path / "root"))):
        done = mk(tmp_path, "restore", str(tmp_path / "bad.tar"), *arguments)
        assert done.returncode == 1
        assert "bad.tar is no whole backup: 'parts/filesystem/contents/" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("root*"))
    assert mk(tmp_path, "restore", str(archive), "--check").returncode == 0


async def test_what_a_service_keeps_comes_over_a_link_with_contents_left_out_that_are_known(node):
    """What a second node needs to follow."""
    _, root, _ = node
    async with microkernel.connect(root=root) as system:
        first = [piece async for piece in system.stream("filesystem.export", result_type=EntryPiece, credit=8)]
        digests = [bytes.fromhex(piece.digest)[:16] for piece in first if piece.digest]
        asked = {"known": Array(b"".join(digests))}
        again = [piece async for piece in system.stream("filesystem.export", asked, result_type=EntryPiece)]
    assert sum(len(piece.content) for piece in first) > 120 << 20
    assert len([piece for piece in again if piece.known]) == len(digests) == 6
    assert sum(len(piece.content) for piece in again) < 10_000


def test_an_archive_goes_through_a_pipe_and_says_beside_what_is_in_it(node, archive, tmp_path):
    folder, root, _ = node
    arguments = ("--root", str(root), "backup", "-")
    with (tmp_path / "piped.tar").open("wb") as file, command(folder, *arguments, stdout=file) as process:
        _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "filesystem" in stderr
    summaries = [
        json.loads(mk(folder, "--json", "restore", str(path), "--check").stdout)
        for path in (tmp_path / "piped.tar", archive)
    ]
    assert summaries[0]["entries"] == summaries[1]["entries"]


def until(holds) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(FileNotFoundError):
            if holds():
                return
        time.sleep(0.005)
    pytest.fail("it did not come to that")
