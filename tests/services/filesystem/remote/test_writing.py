"""Mounts that are writable are changed by root, whole or not at all where the store can."""

from __future__ import annotations

import asyncio
import os

import pytest

from microkernel.errors import AlreadyExists, Denied, Invalid, NotFound, PreconditionFailed


@pytest.fixture(params=["memory", "file"])
async def mounted(request, root, memory, folder):
    memory.makedirs("/top")
    url = "memory://top" if request.param == "memory" else folder.as_uri()
    return await root.ask("mount", "/mnt/x", url=url, writable=True)


async def test_what_was_written_is_read(root, mounted):
    assert mounted.atomic
    for size in (0, 1, 3_000_000):
        content = os.urandom(size)
        told = await root.write("/mnt/x/a/b/c.bin", content)
        assert (told.path, told.kind, told.size) == ("/mnt/x/a/b/c.bin", "file", size)
        assert await root.read("/mnt/x/a/b/c.bin") == content
    assert await root.names("/mnt/x/a/b") == ["c.bin"], "nothing of the writing is left"


async def test_pieces_are_one_file_and_put_in_place_of_bytes_of_it(root, mounted):
    content, more = os.urandom(2_500_000), os.urandom(100_000)
    await root.write_pieces("/mnt/x/a", [content[:1_500_000], content[1_500_000:]])
    assert await root.read("/mnt/x/a") == content
    await root.write_pieces("/mnt/x/a", [more[:5], more[5:]], start=1_000_000)
    assert await root.read("/mnt/x/a") == content[:1_000_000] + more + content[1_100_000:]
    with pytest.raises(Invalid, match="has 2500000 bytes"):
        await root.write_pieces("/mnt/x/a", [b"!"], start=2_500_001)


async def test_a_stream_that_breaks_off_leaves_what_was_there(root, system, mounted):
    await root.write("/mnt/x/a", b"before")
    async with root.port.stream("filesystem.write_stream", path="/mnt/x/a") as stream:
        reading = asyncio.create_task(anext(stream))
        await stream.send(os.urandom(2_000_000))
        reading.cancel()
        await asyncio.wait([reading])
    assert await root.read("/mnt/x/a") == b"before"
    assert await root.names("/mnt/x") == ["a"]
    incoming = (system.root / "filesystem" / "remote").glob("*/incoming/*")
    while list(incoming):
        await asyncio.sleep(0.005)


async def test_files_and_folders_are_renamed_copied_and_removed(root, mounted):
    await root.write("/mnt/x/a/b", b"1")
    await root.write("/mnt/x/c", b"2")
    with pytest.raises(AlreadyExists):
        await root.ask("rename", "/mnt/x/c", to="/mnt/x/a/b")
    await root.ask("rename", "/mnt/x/c", to="/mnt/x/a/b", replace=True)
    assert await root.read("/mnt/x/a/b") == b"2"
    await root.ask("rename", "/mnt/x/a", to="/mnt/x/new/place")
    assert await root.names("/mnt/x") == ["new"]
    assert await root.read("/mnt/x/new/place/b") == b"2"
    await root.ask("copy", "/mnt/x/new/place/b", to="/mnt/x/copy")
    assert await root.read("/mnt/x/copy") == b"2"
    with pytest.raises(PreconditionFailed, match="is not empty"):
        await root.ask("remove", "/mnt/x/new")
    await root.ask("remove", "/mnt/x/new", recursive=True)
    await root.ask("remove", "/mnt/x/copy")
    assert await root.names("/mnt/x") == []
    with pytest.raises(NotFound):
        await root.ask("remove", "/mnt/x/copy")


async def test_a_folder_is_made_and_taken_once(root, mounted):
    assert (await root.ask("make_folder", "/mnt/x/a/b")).kind == "folder"
    with pytest.raises(AlreadyExists):
        await root.ask("make_folder", "/mnt/x/a/b")
    await root.ask("make_folder", "/mnt/x/a/b", exist_ok=True)
    with pytest.raises(Invalid, match="is in /mnt/x/a itself"):
        await root.ask("rename", "/mnt/x/a", to="/mnt/x/a/b/c")
    await root.write("/mnt/x/f", b"1")
    with pytest.raises(Invalid, match="/mnt/x/f is a file"):
        await root.write("/mnt/x/f/g", b"1")
    with pytest.raises(Invalid, match="is a folder"):
        await root.write("/mnt/x/a", b"1")


async def test_a_file_moves_between_a_mount_and_the_tree(root, mounted):
    content = os.urandom(1_500_000)
    await root.write("/data/a", content)
    await root.ask("rename", "/data/a", to="/mnt/x/a")
    assert await root.read("/mnt/x/a") == content
    await root.ask("rename", "/mnt/x/a", to="/data/b")
    assert await root.read("/data/b") == content
    assert await root.names("/mnt/x") == []


async def test_a_file_keeps_the_rights_that_it_has_on_the_disk(root, folder):
    (folder / "a").write_bytes(b"1")
    (folder / "a").chmod(0o640)
    await root.ask("mount", "/mnt/f", url=folder.as_uri(), writable=True)
    await root.write("/mnt/f/a", b"2")
    assert (folder / "a").stat().st_mode & 0o777 == 0o640


async def test_a_write_expects_nothing_or_no_version_at_all(root, mounted):
    await root.write("/mnt/x/a", b"1", if_version=0)
    with pytest.raises(AlreadyExists):
        await root.write("/mnt/x/a", b"2", if_version=0)
    with pytest.raises(Invalid, match="no versions are kept"):
        await root.write("/mnt/x/a", b"2", if_version=3)
    with pytest.raises(Invalid, match="no versions are kept"):
        await root.ask("history", "/mnt/x/a")


async def test_users_read_and_only_root_writes(root, ann, mounted):
    await root.write("/mnt/x/a", b"1")
    assert await ann.read("/mnt/x/a") == b"1"
    for change in (
        ann.write("/mnt/x/b", b"1"),
        ann.write_pieces("/mnt/x/b", [b"1"]),
        ann.ask("remove", "/mnt/x/a"),
        ann.ask("make_folder", "/mnt/x/b"),
        ann.ask("rename", "/mnt/x/a", to="/mnt/x/b"),
        ann.ask("copy", "/mnt/x/a", to="/mnt/x/b"),
    ):
        with pytest.raises(Denied, match="only root may change"):
            await change
    assert await root.names("/mnt/x") == ["a"]


@pytest.mark.parametrize("name", ["*", "a?b", "[ab]", "50%"])
async def test_letters_that_are_patterns_elsewhere_change_no_other_file(root, mounted, name):
    await root.write("/mnt/x/ab", b"other")
    await root.write(f"/mnt/x/{name}", b"1")
    await root.ask("copy", f"/mnt/x/{name}", to="/mnt/x/[x]")
    await root.ask("rename", "/mnt/x/[x]", to="/mnt/x/*x")
    assert await root.read("/mnt/x/*x") == b"1"
    await root.ask("remove", "/mnt/x/*x")
    await root.ask("remove", f"/mnt/x/{name}")
    assert await root.names("/mnt/x") == ["ab"]
