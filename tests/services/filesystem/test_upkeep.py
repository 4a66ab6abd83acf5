"""Quotas, collection of old versions, and scrubs that find and repair what is damaged."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest
from tree_user import TreeUser

from microkernel.errors import DataLoss, Denied, NotFound, Overloaded
from microkernel.testing import TestKernel
from services.filesystem.service import Filesystem
from services.filesystem.stored.usage import ROW


def contents(system) -> list[Path]:
    folder = system.root / "filesystem" / "contents"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, place: int) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))


async def used(user: TreeUser, owner: str, path: str = "/") -> int:
    return next((each.bytes for each in await user.ask("usage", path) if each.owner == owner), 0)


async def test_an_owner_keeps_each_content_once_and_a_row_for_each_version(root, ann):
    await ann.write("/data/a", bytes(50_000))
    assert await used(root, "ann") == 50_000 + ROW
    await ann.ask("rename", "/data/a", to="/data/b")
    await ann.ask("copy", "/data/b", to="/data/c")
    await ann.write("/data/d", bytes(50_000))
    assert await used(root, "ann") == 50_000 + 4 * ROW
    await ann.ask("remove", "/data/b")
    assert await used(root, "ann") == 50_000 + 4 * ROW, "old versions are kept, and count"
    assert [each.owner for each in await ann.ask("usage", "/")] == ["ann"]


async def test_a_quota_refuses_what_is_too_much_before_and_while_it_comes(root, ann):
    await root.ask("set_quota", "/", owner="ann", limit_bytes=1_000_000)
    await ann.write("/data/a", bytes(600_000))
    with pytest.raises(Overloaded, match="'ann' keeps|left of the quota"):
        await ann.write("/data/b", os.urandom(600_000))
    sent = 0

    def endless():
        nonlocal sent
        while True:
            sent += 1
            yield os.urandom(100_000)

    with pytest.raises(Overloaded, match="left of the quota"):
        await ann.write_pieces("/data/b", endless())
    assert sent < 60
    with pytest.raises(NotFound):
        await root.ask("stat", "/data/b")
    await root.write("/data/c", bytes(2_000_000))
    await root.ask("set_quota", "/", owner="ann", limit_bytes=None)
    await ann.write("/data/b", os.urandom(600_000))


async def test_a_quota_holds_for_sixteen_writers_at_once(root, ann, system):
    limit = 500_000
    await root.ask("set_quota", "/", owner="ann", limit_bytes=limit)
    refused = 0

    async def write(number: int) -> None:
        nonlocal refused
        for turn in range(10):
            try:
                await ann.write(f"/data/{number}/{turn}", os.urandom(9_000))
            except Overloaded:
                refused += 1

    await asyncio.gather(*(write(number) for number in range(16)))
    kept = await used(root, "ann")
    assert limit - 12_000 < kept <= limit
    assert refused > 80
    there = [each for number in range(16) for each in await root.ask("list", f"/data/{number}")]
    assert len(there) == 160 - refused


async def test_quotas_of_the_settings_hold_for_who_is_named_and_for_all_others():
    settings = {"filesystem": {"quotas": {"ann": 100_000}, "default_quota": 10_000}}
    async with TestKernel(Filesystem, settings=settings) as system:
        ann, bob, root = TreeUser(system, "ann"), TreeUser(system, "bob"), TreeUser(system)
        await ann.write("/data/a", bytes(90_000))
        with pytest.raises(Overloaded):
            await bob.write("/data/b", bytes(11_000))
        await root.ask("set_quota", "/", owner="bob", limit_bytes=20_000)
        await bob.write("/data/b", bytes(11_000))
        limits = {each.owner: each.limit_bytes for each in await root.ask("usage", "/")}
        assert (limits["ann"], limits["bob"]) == (100_000, 20_000)


async def test_tmp_holds_so_much_and_no_old_versions(root):
    async with TestKernel(Filesystem, settings={"filesystem": {"tmp_bytes": 1_000_000}}) as system:
        root = TreeUser(system)
        for _ in range(5):
            await root.write("/tmp/a", os.urandom(700_000 - 10 * ROW))
            await root.ask("remove", "/tmp/a")
        await root.write("/tmp/a", os.urandom(700_000))
        with pytest.raises(Overloaded, match="are left of the quota"):
            await root.write("/tmp/b", os.urandom(700_000))
        await root.ask("remove", "/tmp/a")
        await root.write("/tmp/b", os.urandom(700_000))


async def test_a_collection_forgets_what_has_ended_and_a_dry_one_only_counts(root, system):
    await root.write("/data/a", os.urandom(100_000))
    await root.write("/data/a", os.urandom(200_000))
    await root.write("/data/f/b", os.urandom(300_000))
    await root.ask("remove", "/data/f", recursive=True)
    before = await used(root, "root")
    tried = await root.ask("collect", "/", older_than=0.0, dry_run=True)
    assert (tried.versions, tried.contents, tried.bytes) == (3, 2, 400_000)
    assert (len(contents(system)), await used(root, "root")) == (3, before)
    done = await root.ask("collect", "/", older_than=0.0)
    assert (done.versions, done.contents, done.bytes) == (tried.versions, tried.contents, tried.bytes)
    assert [path.stat().st_size for path in contents(system)] == [200_000]
    assert await used(root, "root") == before - 400_000 - 3 * ROW
    again = await root.ask("collect", "/", older_than=0.0)
    assert (again.versions, again.contents) == (0, 0)


async def test_equal_contents_of_a_folder_that_is_forgotten_count_as_one(root, ann):
    await ann.write("/data/kept", bytes(50_000))
    before = await used(root, "ann")
    await ann.write("/data/f/a", b"x" * 40_000)
    await ann.write("/data/f/b", b"x" * 40_000)
    await ann.ask("remove", "/data/f", recursive=True)
    await root.ask("collect", "/", older_than=0.0)
    assert await used(root, "ann") == before


async def test_versions_that_are_young_or_have_a_name_are_kept(root):
    first = await root.write("/data/a", b"1")
    await root.ask("snapshot", "/", name="kept")
    second = await root.write("/data/a", b"2")
    await root.write("/data/a", b"3")
    assert (await root.ask("collect", "/")).versions == 0, "they are not a month old"
    assert (await root.ask("collect", "/", older_than=0.0)).versions == 1
    assert await root.read("/data/a", version="kept") == await root.read("/data/a", version=first.version) == b"1"
    with pytest.raises(NotFound, match="is not kept any more"):
        await root.read("/data/a", version=second.version)
    await root.ask("forget_snapshot", "/", name="kept")
    assert (await root.ask("collect", "/", older_than=0.0)).versions == 1


async def test_a_content_that_a_version_has_is_never_collected(root, system):
    content = os.urandom(100_000)
    await root.write("/data/a", content)
    await root.ask("copy", "/data/a", to="/data/b")
    await root.ask("remove", "/data/a")
    await root.ask("collect", "/", older_than=0.0)
    assert await root.read("/data/b") == content
    await root.ask("remove", "/data/b")
    await root.ask("collect", "/", older_than=0.0)
    assert contents(system) == []


async def test_what_nobody_refers_to_is_collected_after_an_hour(root, system):
    await root.write("/data/a", os.urandom(100_000))
    (kept,) = contents(system)
    old, young = (kept.with_name("ab" * 32 + ending) for ending in ("-old", "-young"))
    for path in (old, young):
        path.write_bytes(b"of a node that died before it was named")
    os.utime(old, (1, 1))
    assert (await root.ask("collect", "/", dry_run=True)).contents == 1
    await root.ask("collect", "/")
    assert contents(system) == sorted([kept, young])


async def test_a_flipped_bit_is_never_read_and_a_scrub_names_its_place_and_its_files(root, system):
    content = os.urandom(1_000_000)
    await root.write("/data/whole", os.urandom(500_000))
    first = await root.write("/data/a", content)
    await root.ask("copy", "/data/a", to="/data/b")
    await root.write("/data/a", b"new")
    (damaged,) = [path for path in contents(system) if path.stat().st_size == len(content)]
    flip(damaged, 600_000)
    assert await root.read("/data/b", stop=524_288) == content[:524_288], "what is whole can be read"
    with pytest.raises(DataLoss, match="/data/b: bytes 524288 to 786432"):
        await root.read("/data/b")
    scrubbed = await root.ask("scrub", "/")
    assert (scrubbed.contents, scrubbed.bytes) == (3, 1_500_003)
    (damage,) = scrubbed.damages
    assert (damage.start, damage.stop, damage.repaired) == (524_288, 786_432, False)
    assert set(damage.paths) == {"/data/b", f"/data/a at version {first.version}"}


@pytest.mark.parametrize("size", [5_000, 600_000])
async def test_a_mirror_repairs_what_is_damaged(tmp_path, size):
    mirror = tmp_path / "mirror"
    content = os.urandom(size)
    async with TestKernel(Filesystem, settings={"filesystem": {"mirror": str(mirror)}}) as system:
        root = TreeUser(system)
        await root.write("/data/a", content)
        assert (await root.ask("scrub", "/")).damages == ()
        damage(system, content)
        with pytest.raises(DataLoss):
            await root.read("/data/a")
        (repaired,) = (await root.ask("scrub", "/")).damages
        assert (repaired.paths, repaired.repaired) == (("/data/a",), True)
        assert await root.read("/data/a") == content
        assert (await root.ask("scrub", "/")).damages == ()
        damage(system, content)
        (copy,) = (path for path in mirror.rglob("*") if path.is_file())
        flip(copy, 10)
        (lost,) = (await root.ask("scrub", "/")).damages
        assert not lost.repaired, "a mirror that is damaged itself repairs nothing"


def damage(system, content: bytes) -> None:
    files = contents(system)
    if files:
        flip(files[0], 4_000)
        return
    with sqlite3.connect(system.root / "filesystem" / "names.sqlite") as db:
        db.execute("UPDATE content SET inline = ?", (content[:-1] + bytes([content[-1] ^ 1]),))
    db.close()


async def test_a_content_that_is_missing_is_named(root, system):
    await root.write("/data/a", os.urandom(100_000))
    contents(system)[0].unlink()
    with pytest.raises(DataLoss, match="the content of /data/a is missing"):
        await root.read("/data/a")
    (damage,) = (await root.ask("scrub", "/")).damages
    assert damage.what.endswith("is missing")


async def test_a_row_that_was_changed_is_named_and_hides_nothing_else(root, system):
    await root.write("/data/a", b"1")
    await root.write("/data/b", b"2")
    with sqlite3.connect(system.root / "filesystem" / "names.sqlite") as db:
        db.execute("UPDATE entry SET size = 7 WHERE name = 'a'")
    db.close()
    with pytest.raises(DataLoss, match="the row of 'a'"):
        await root.read("/data/a")
    assert await root.read("/data/b") == b"2"
    listed = await root.ask("list", "/data")
    assert [(each.path, each.about) for each in listed] == [("/data/a", "its row is damaged"), ("/data/b", "")]
    (damage,) = (await root.ask("scrub", "/")).damages
    assert "the row of 'a'" in damage.what


async def test_what_is_forgotten_leaves_no_version_behind_but_in_snapshots(root, ann, bob, system):
    await ann.write("/data/a", os.urandom(100_000))
    await root.ask("snapshot", "/", name="kept")
    await ann.write("/data/a", os.urandom(100_000))
    await ann.write("/data/a", b"now")
    with pytest.raises(Denied):
        await bob.ask("forget_versions", "/data/a")
    assert (await ann.ask("forget_versions", "/data/a")).contents == 1
    assert [each.action for each in await root.ask("history", "/data/a")] == ["written", "written"]
    assert len(await root.read("/data/a", version="kept")) == 100_000
    await root.ask("forget_snapshot", "/", name="kept")
    await ann.ask("remove", "/data/a")
    await ann.ask("forget_versions", "/data/a")
    with pytest.raises(NotFound):
        await root.ask("history", "/data/a")
    with pytest.raises(NotFound):
        await ann.ask("forget_versions", "/data/a")
    assert contents(system) == []
