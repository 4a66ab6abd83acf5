"""Files and folders of the tree, through the service: on disk, and in memory under /tmp."""

from __future__ import annotations

import asyncio
import os

import blake3
import pytest

from microkernel.errors import AlreadyExists, Invalid, NotFound, PreconditionFailed

SIZES = (0, 1, 65_536, 65_537, 262_144, 262_145, 3_000_000)
BOTH = pytest.mark.parametrize("top", ["/data", "/tmp"])


@BOTH
@pytest.mark.parametrize("size", SIZES)
async def test_what_was_written_is_read(root, top, size):
    content = os.urandom(size)
    written = await root.write(f"{top}/a/b.bin", content)
    assert (written.path, written.kind, written.size) == (f"{top}/a/b.bin", "file", size)
    assert written.digest == blake3.blake3(content).hexdigest()
    assert await root.read(f"{top}/a/b.bin") == content
    assert await root.ask("stat", f"{top}/a/b.bin") == written


@BOTH
@pytest.mark.parametrize("size", SIZES)
async def test_what_came_in_pieces_is_read(root, top, size):
    content = os.urandom(size)
    pieces = [content[place : place + 77_777] for place in range(0, size, 77_777)]
    written = await root.write_pieces(f"{top}/x", pieces)
    assert written.digest == blake3.blake3(content).hexdigest()
    assert await root.read(f"{top}/x") == content


@BOTH
@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (5, 5), (262_143, 262_145), (1_048_575, 1_048_577), (100, None), (2_999_999, 9_999_999), (10**9, None)],
)
async def test_a_range_is_read_as_a_slice_is(root, top, start, stop):
    content = os.urandom(3_000_000)
    await root.write(f"{top}/x", content)
    assert await root.read(f"{top}/x", start=start, stop=stop) == content[start:stop]


@BOTH
@pytest.mark.parametrize(("start", "size"), [(0, 3), (100_000, 300_000), (299_000, 5_000), (300_000, 7)])
async def test_bytes_are_put_in_place_of_others_from_where_they_begin(root, top, start, size):
    content, more = os.urandom(300_000), os.urandom(size)
    await root.write(f"{top}/x", content)
    written = await root.write_pieces(f"{top}/x", [more[:2], more[2:]], start=start)
    expected = content[:start] + more + content[start + size :]
    assert written.size == len(expected)
    assert await root.read(f"{top}/x") == expected


async def test_nothing_begins_behind_the_end_of_a_file(root):
    await root.write("/data/x", b"abc")
    with pytest.raises(Invalid, match="has 3 bytes"):
        await root.write_pieces("/data/x", [b"!"], start=4)
    with pytest.raises(NotFound):
        await root.write_pieces("/data/y", [b"!"], start=0)
    assert await root.read("/data/x") == b"abc"


@BOTH
async def test_a_folder_is_listed_by_name_and_in_pages(root, top):
    for name in ("b", "A", "c 10", "ä"):
        await root.write(f"{top}/folder/{name}")
    await root.ask("make_folder", f"{top}/folder/d")
    assert await root.names(f"{top}/folder") == ["A", "b", "c 10", "d", "ä"]
    assert await root.names(f"{top}/folder", limit=2) == ["A", "b"]
    assert await root.names(f"{top}/folder", limit=2, after="b") == ["c 10", "d"]
    assert await root.names(f"{top}/folder", after="ä") == []


async def test_the_root_has_what_is_mounted_in_its_place_by_name(root):
    names = await root.names("/")
    assert names == ["checkpoints", "contexts", "data", "dev", "home", "models", "proc", "tmp"]
    paged: list[str] = []
    while page := await root.names("/", limit=3, after=paged[-1] if paged else ""):
        paged += page
    assert paged == names


@BOTH
async def test_a_folder_is_made_with_those_on_the_way_and_once(root, top):
    made = await root.ask("make_folder", f"{top}/a/b/c")
    assert (made.kind, made.path) == ("folder", f"{top}/a/b/c")
    assert await root.names(f"{top}/a") == ["b"]
    with pytest.raises(AlreadyExists):
        await root.ask("make_folder", f"{top}/a/b")
    assert (await root.ask("make_folder", f"{top}/a/b", exist_ok=True)).kind == "folder"


@BOTH
async def test_a_renamed_folder_takes_along_what_is_in_it(root, top):
    await root.write(f"{top}/a/b/x", b"1")
    moved = await root.ask("rename", f"{top}/a", to=f"{top}/new/place")
    assert moved.path == f"{top}/new/place"
    assert await root.read(f"{top}/new/place/b/x") == b"1"
    with pytest.raises(NotFound):
        await root.ask("stat", f"{top}/a/b/x")


async def test_a_name_is_taken_only_where_that_was_asked_for(root):
    await root.write("/data/a", b"a")
    await root.write("/data/b", b"b")
    with pytest.raises(AlreadyExists):
        await root.ask("rename", "/data/a", to="/data/b")
    await root.ask("rename", "/data/a", to="/data/b", replace=True)
    assert await root.read("/data/b") == b"a"
    await root.ask("make_folder", "/data/folder")
    with pytest.raises(AlreadyExists):
        await root.ask("rename", "/data/b", to="/data/folder", replace=True)


async def test_a_name_changes_its_case(root):
    await root.write("/data/readme", b"a")
    await root.ask("rename", "/data/readme", to="/data/README")
    assert await root.names("/data") == ["README"]


async def test_a_folder_does_not_go_into_itself(root):
    await root.ask("make_folder", "/data/a/b")
    with pytest.raises(Invalid, match="is in /data/a itself"):
        await root.ask("rename", "/data/a", to="/data/a/b/c")
    await root.ask("rename", "/data/a", to="/data/a")
    assert await root.names("/data") == ["a"]


@pytest.mark.parametrize(("path", "to"), [("/data/x", "/tmp/y"), ("/tmp/x", "/data/y"), ("/data/x", "/data/y")])
async def test_a_file_is_copied_and_moved_within_and_between_volumes(root, path, to):
    content = os.urandom(400_000)
    await root.write(path, content)
    await root.ask("copy", path, to=to)
    assert await root.read(to) == await root.read(path) == content
    await root.ask("remove", to)
    await root.ask("rename", path, to=to)
    assert await root.read(to) == content
    with pytest.raises(NotFound):
        await root.read(path)


async def test_a_folder_stays_in_its_volume(root):
    await root.ask("make_folder", "/tmp/a")
    with pytest.raises(PreconditionFailed, match="different volumes"):
        await root.ask("rename", "/tmp/a", to="/data/a")


@BOTH
async def test_a_folder_that_is_not_empty_is_removed_with_all_or_not(root, top):
    await root.write(f"{top}/a/b", b"1")
    with pytest.raises(PreconditionFailed, match="is not empty"):
        await root.ask("remove", f"{top}/a")
    await root.ask("remove", f"{top}/a", recursive=True)
    with pytest.raises(NotFound):
        await root.ask("stat", f"{top}/a/b")
    await root.write(f"{top}/a/c", b"2")
    assert await root.names(f"{top}/a") == ["c"], "a new folder of that name is empty"


@pytest.mark.parametrize("path", ["/", "/tmp", "/proc"])
async def test_what_is_mounted_stays(root, path):
    for change in (root.ask("remove", path, recursive=True), root.ask("rename", path, to="/data/x")):
        with pytest.raises(PreconditionFailed, match="mounted"):
            await change


async def test_files_are_no_folders_and_folders_no_files(root):
    await root.write("/data/a", b"1")
    with pytest.raises(Invalid, match="/data/a is a file"):
        await root.write("/data/a/b", b"2")
    with pytest.raises(Invalid, match="/data is a folder"):
        await root.write("/data", b"2")
    with pytest.raises(Invalid, match="is a folder"):
        await root.read("/data")
    with pytest.raises(Invalid, match="is a file"):
        await root.names("/data/a")


async def test_two_names_that_look_alike_are_one_too_many(root):
    await root.write("/data/straße", b"1")
    for twin in ("STRASSE", "Straße", "strasse"):
        with pytest.raises(AlreadyExists, match="is taken for the same name"):
            await root.write(f"/data/{twin}", b"2")
        with pytest.raises(NotFound):
            await root.read(f"/data/{twin}")


@pytest.mark.parametrize("path", ["/proc/x", "/dev/cpu0", "/models/m/x.gguf", "/proc/services"])
async def test_nothing_is_written_where_nothing_is_kept(root, path):
    with pytest.raises(PreconditionFailed, match="cannot be written to"):
        await root.write(path, b"")


async def test_a_write_that_expects_a_version_is_done_at_that_version_only(root):
    first = await root.write("/data/a", b"1", if_version=0)
    with pytest.raises(AlreadyExists):
        await root.write("/data/a", b"2", if_version=0)
    second = await root.write("/data/a", b"2", if_version=first.version)
    with pytest.raises(PreconditionFailed, match=f"is at version {second.version}, not {first.version}"):
        await root.write("/data/a", b"3", if_version=first.version)
    with pytest.raises(PreconditionFailed, match="there is no"):
        await root.write("/data/b", b"3", if_version=7)
    assert await root.read("/data/a") == b"2"


async def test_a_stream_that_breaks_off_leaves_what_was_there(root, system):
    await root.write("/data/a", b"before")
    async with root.port.stream("filesystem.write_stream", path="/data/a") as stream:
        reading = asyncio.create_task(anext(stream))
        await stream.send(os.urandom(2_000_000))
        reading.cancel()
        await asyncio.wait([reading])
    assert await root.read("/data/a") == b"before"
    partial = system.root / "filesystem" / "contents" / "partial"
    assert list(partial.iterdir()) == []


async def test_equal_contents_are_kept_once(root, system):
    content = os.urandom(1_000_000)
    for name in ("a", "b", "c"):
        await root.write(f"/data/{name}", content)
    contents = system.root / "filesystem" / "contents"
    assert sum(path.stat().st_size for path in contents.rglob("*") if path.is_file()) == len(content)
