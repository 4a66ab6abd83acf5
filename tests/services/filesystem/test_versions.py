"""Every change is a version: history, rollback, snapshots, differences."""

from __future__ import annotations

import os

import pytest

from microkernel.errors import AlreadyExists, Denied, Invalid, NotFound


async def test_the_history_of_a_file_tells_who_did_what_the_newest_first(root, ann):
    first = await ann.write("/data/a", b"1")
    second = await ann.write("/data/a", b"22")
    moved = await root.ask("rename", "/data/a", to="/data/b")
    history = await root.ask("history", "/data/b")
    told = [(each.version, each.path, each.action, each.by, each.size) for each in history]
    assert told == [
        (moved.version, "/data/b", "renamed", "root", 2),
        (second.version, "/data/a", "written", "ann", 2),
        (first.version, "/data/a", "written", "ann", 1),
    ]
    assert [each.until for each in history] == [None, moved.version, second.version]
    assert history[2].digest == first.digest


async def test_a_removed_file_has_a_history_and_comes_back(root):
    kept = await root.write("/data/a", b"1")
    await root.ask("remove", "/data/a")
    removed, written = await root.ask("history", "/data/a")
    assert (removed.action, written.action, written.version) == ("removed", "written", kept.version)
    await root.ask("roll_back", "/data/a", version=kept.version)
    assert await root.read("/data/a") == b"1"
    assert [each.action for each in await root.ask("history", "/data/a")] == ["rolled back", "removed", "written"]


async def test_a_file_is_read_as_it_was_at_a_version(root):
    versions = [(await root.write("/data/a", content)).version for content in (b"1", os.urandom(300_000), b"333")]
    assert await root.read("/data/a", version=versions[0]) == b"1"
    assert len(await root.read("/data/a", version=versions[1])) == 300_000
    assert (await root.ask("stat", "/data/a", version=versions[1])).size == 300_000
    assert await root.read("/data/a") == b"333"
    with pytest.raises(NotFound):
        await root.read("/data/a", version=versions[0] - 1)
    with pytest.raises(Invalid, match="there is no version"):
        await root.read("/data/a", version=versions[-1] + 1)


async def test_a_folder_is_listed_as_it_was_at_a_version(root):
    await root.write("/data/f/a", b"1")
    before = (await root.write("/data/f/b", b"1")).version
    await root.ask("rename", "/data/f/a", to="/data/f/c")
    await root.ask("rename", "/data/f", to="/data/g")
    assert await root.names("/data/g") == ["b", "c"]
    assert await root.names("/data/f", version=before) == ["a", "b"]
    assert await root.names("/data/f", version=before, limit=1) == ["a"]
    assert await root.names("/data/f", version=before, after="a") == ["b"]


async def test_a_folder_goes_back_to_what_it_was(root):
    await root.write("/data/f/kept", b"k")
    await root.write("/data/f/changed", b"old")
    await root.write("/data/f/in/removed", b"r")
    before = (await root.write("/data/f/in/moved", b"m")).version
    await root.write("/data/f/changed", b"new")
    await root.write("/data/f/added", b"a")
    await root.ask("remove", "/data/f/in/removed")
    await root.ask("rename", "/data/f/in/moved", to="/data/outside")
    await root.ask("make_folder", "/data/f/more")
    assert await root.ask("roll_back", "/data/f", version=before) == 5
    assert await root.names("/data/f") == ["changed", "in", "kept"]
    assert await root.names("/data/f/in") == ["moved", "removed"]
    assert await root.read("/data/f/changed") == b"old"
    assert await root.read("/data/f/in/moved") == await root.read("/data/outside") == b"m"
    assert await root.collect("diff", path="/data/f", since=before) == []


async def test_a_removed_folder_comes_back_whole_also_under_another_one(root):
    await root.write("/data/f/in/deep/x", b"x")
    before = (await root.write("/data/f/y", b"y")).version
    await root.ask("rename", "/data/f/in", to="/data/elsewhere")
    await root.write("/data/elsewhere/deep/x", b"later")
    await root.ask("remove", "/data/f", recursive=True)
    await root.ask("roll_back", "/data/f", version=before)
    assert await root.read("/data/f/in/deep/x") == b"x"
    assert await root.read("/data/elsewhere/deep/x") == b"later", "what was moved away stays as it is"
    await root.ask("remove", "/data", recursive=True)
    await root.ask("roll_back", "/data", version=before)
    assert await root.read("/data/f/y") == b"y"


async def test_a_whole_volume_goes_back(root, ann):
    before = (await root.write("/data/a", b"1")).version
    await root.write("/new/b", b"2")
    await root.ask("remove", "/data/a")
    with pytest.raises(Denied):
        await ann.ask("roll_back", "/", version=before)
    await root.ask("roll_back", "/", version=before)
    assert await root.read("/data/a") == b"1"
    assert "new" not in await root.names("/")


async def test_a_rollback_can_itself_be_rolled_back(root):
    one = (await root.write("/data/a", b"1")).version
    two = (await root.write("/data/a", b"2")).version
    await root.ask("roll_back", "/data/a", version=one)
    await root.ask("roll_back", "/data/a", version=two)
    assert await root.read("/data/a") == b"2"


async def test_what_never_was_is_not_rolled_back_to(root):
    there = (await root.write("/data/a", b"1")).version
    with pytest.raises(NotFound):
        await root.ask("roll_back", "/data/never", version=there)
    with pytest.raises(NotFound):
        await root.ask("roll_back", "/data/a", version=there - 1)
    with pytest.raises(NotFound):
        await root.ask("history", "/data/never")


async def test_a_snapshot_names_a_version_for_all_that_take_one(root, ann):
    await root.write("/data/a", b"1")
    taken = await root.ask("snapshot", "/", name="before-the-fall")
    await root.write("/data/a", b"2")
    assert await root.read("/data/a", version="before-the-fall") == b"1"
    assert await root.ask("snapshots", "/") == [taken]
    with pytest.raises(AlreadyExists):
        await root.ask("snapshot", "/", name="before-the-fall")
    with pytest.raises(NotFound, match="no snapshot is named"):
        await root.read("/data/a", version="other")
    with pytest.raises(Denied):
        await ann.ask("snapshot", "/", name="mine")
    await root.ask("roll_back", "/data/a", version="before-the-fall")
    assert await root.read("/data/a") == b"1"
    await root.ask("forget_snapshot", "/", name="before-the-fall")
    with pytest.raises(NotFound):
        await root.ask("forget_snapshot", "/", name="before-the-fall")


@pytest.mark.parametrize("name", ["", "7", "a b", "../x", "x" * 101])
async def test_a_snapshot_has_a_name_that_is_no_number(root, name):
    with pytest.raises(Invalid, match="no name for a snapshot"):
        await root.ask("snapshot", "/", name=name)


async def test_a_difference_tells_what_was_added_removed_and_changed(root):
    await root.write("/data/f/same", b"s")
    await root.write("/data/f/gone", b"gone")
    await root.write("/data/f/changed", b"1")
    before = (await root.ask("make_folder", "/data/f/empty")).version
    await root.write("/data/f/changed", b"22")
    await root.write("/data/f/in/added", b"333")
    await root.ask("remove", "/data/f/gone")
    found = await root.collect("diff", path="/data", since=before)
    assert [(each.path, each.how, each.before, each.size) for each in found] == [
        ("/data/f/changed", "changed", 1, 2),
        ("/data/f/gone", "removed", 4, None),
        ("/data/f/in", "added", None, None),
        ("/data/f/in/added", "added", None, 3),
    ]
    back = await root.collect("diff", path="/data", since=found and (await root.ask("stat", "/data/f/in")).version,
                              until=before)  # fmt: skip
    assert ("/data/f/in", "removed") in [(each.path, each.how) for each in back]


async def test_what_was_written_again_as_it_was_is_no_difference(root):
    await root.write("/data/f/small", b"same")
    before = (await root.write("/data/f/large", bytes(100_000))).version
    await root.write("/data/f/small", b"same")
    await root.write("/data/f/large", bytes(100_000))
    assert await root.collect("diff", path="/data/f", since=before) == []


async def test_no_versions_are_kept_of_what_is_live(root):
    for ask in (root.ask("history", "/proc/status"), root.ask("stat", "/proc/status", version=1),
                root.ask("roll_back", "/dev", version=1)):  # fmt: skip
        with pytest.raises(Invalid, match="no versions are kept"):
            await ask


@pytest.mark.parametrize("top", ["/data", "/tmp"])
async def test_what_is_there_is_read_by_the_version_that_its_stat_tells_for_as_long_as_it_is_there(root, top):
    kept = await root.write(f"{top}/a", b"1")
    await root.write(f"{top}/b", b"2")
    await root.ask("remove", f"{top}/b")
    await root.ask("collect", top, older_than=0.0)
    assert await root.read(f"{top}/a", version=kept.version) == b"1"
    assert await root.ask("stat", f"{top}/a", version=kept.version) == kept
    await root.write(f"{top}/a", b"3")
    await root.ask("collect", top, older_than=0.0)
    with pytest.raises(NotFound, match="is not kept any more"):
        await root.read(f"{top}/a", version=kept.version)
