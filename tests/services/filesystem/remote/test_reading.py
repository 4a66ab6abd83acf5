"""Other storage is read through the tree: from memory, folders, archives and a web server."""

from __future__ import annotations

import asyncio
import os
import zipfile
from contextlib import aclosing

import pytest

from microkernel.errors import Aborted, Denied, Invalid, NotFound, Overloaded, PreconditionFailed, Unavailable

SIZE = 3_500_000
RANGES = [(0, 1), (5, 5), (1_048_575, 1_048_577), (100, None), (3_499_999, 9_999_999), (10**9, None)]


@pytest.fixture(params=["memory", "file", "zip", "web", "web without parts"])
async def content(request, root, server, memory, folder):
    """A large file of each kind of store, mounted at /mnt/x as big.bin, with a folder beside it."""
    content = os.urandom(SIZE)
    if request.param == "memory":
        memory.pipe({"/top/big.bin": content, "/top/sub/a.txt": b"a"})
        url = "memory://top"
    elif request.param == "file":
        (folder / "big.bin").write_bytes(content)
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_bytes(b"a")
        url = folder.as_uri()
    elif request.param == "zip":
        with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("top/big.bin", content)
            archive.writestr("top/sub/a.txt", b"a")
        url = f"zip://top::{(folder / 'x.zip').as_uri()}"
    else:
        server.files = {"/top/big.bin": content, "/top/sub/a.txt": b"a"}
        server.parts = request.param == "web"
        url = f"{server.url}/top"
    await root.ask("mount", "/mnt/x", url=url)
    return content


async def test_a_file_is_read_whole(root, content):
    assert await root.read("/mnt/x/big.bin") == content
    assert await root.read("/mnt/x/big.bin") == content
    assert await root.read("/mnt/x/sub/a.txt") == b"a"


@pytest.mark.parametrize(("start", "stop"), RANGES)
async def test_a_range_is_read_as_a_slice_is(root, content, start, stop):
    assert await root.read("/mnt/x/big.bin", start=start, stop=stop) == content[start:stop]


async def test_a_folder_is_listed_and_what_is_in_it_is_told(root, content):
    assert await root.names("/mnt/x") == ["big.bin", "sub"]
    assert await root.names("/mnt/x", limit=1, after="big.bin") == ["sub"]
    assert await root.names("/mnt/x/sub") == ["a.txt"]
    assert await root.names("/mnt") == ["x"]
    told = await root.ask("stat", "/mnt/x/big.bin")
    assert (told.path, told.kind, told.size, told.owner) == ("/mnt/x/big.bin", "file", SIZE, "root")
    assert (await root.ask("stat", "/mnt/x/sub")).kind == "folder"
    assert (await root.ask("stat", "/mnt/x")).about


async def test_what_is_not_there_is_said_with_its_whole_path(root, content):
    for path in ("/mnt/x/nothing", "/mnt/x/sub/nothing", "/mnt/x/big.bin/x"):
        with pytest.raises(NotFound, match=f"there is no {path}"):
            await root.read(path)
    with pytest.raises(Invalid, match="is a folder"):
        await root.read("/mnt/x/sub")
    with pytest.raises((Invalid, NotFound), match=r"is a file|there is no"):
        await root.names("/mnt/x/big.bin")


async def test_nothing_is_written_where_that_was_not_said(root, content):
    for change in (
        root.write("/mnt/x/y", b"1"),
        root.ask("remove", "/mnt/x/big.bin"),
        root.ask("make_folder", "/mnt/x/y"),
        root.ask("rename", "/mnt/x/big.bin", to="/mnt/x/y"),
        root.ask("copy", "/mnt/x/big.bin", to="/mnt/x/y"),
    ):
        with pytest.raises(PreconditionFailed, match="cannot be written to"):
            await change


async def test_a_file_is_copied_out_of_a_mount(root, content):
    await root.ask("copy", "/mnt/x/big.bin", to="/data/big.bin")
    assert await root.read("/data/big.bin") == content


async def test_an_archive_on_a_server_is_a_folder(root, server, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/a.txt", b"packed" * 1000)
    server.files["/x.zip"] = (tmp_path / "x.zip").read_bytes()
    server.keep_alive = False
    await root.ask("mount", "/mnt/z", url=f"zip://::{server.url}/x.zip")
    assert await root.names("/mnt/z/folder") == ["a.txt"]
    assert await root.read("/mnt/z/folder/a.txt") == b"packed" * 1000


async def test_a_page_begins_behind_a_name_that_is_gone_by_then(root, folder):
    for name in ("a", "B", "c", "d"):
        (folder / name).write_text("1")
    await root.ask("mount", "/mnt/f", url=folder.as_uri())
    assert await root.names("/mnt/f", limit=2) == ["a", "B"]
    (folder / "B").unlink()
    assert await root.names("/mnt/f", limit=2, after="B") == ["c", "d"]


async def test_who_may_read_is_said_by_the_mount(root, ann, memory):
    memory.pipe({"/top/a": b"1"})
    await root.ask("mount", "/mnt/ours", url="memory://top", users=["ann"])
    await root.ask("mount", "/mnt/roots", url="memory://top", users=[])
    assert await ann.read("/mnt/ours/a") == b"1"
    for path in ("/mnt/roots/a", "/mnt/roots/nothing"):
        with pytest.raises(Denied, match=f"only root may read {path}"):
            await ann.read(path)
    with pytest.raises(Denied):
        await ann.names("/mnt/roots")
    assert await ann.names("/mnt") == ["ours", "roots"]
    assert [each.path for each in await ann.port.call("filesystem.mounts")] == ["/mnt/ours"]


async def test_names_that_are_none_here_are_not_listed(root, folder, memory):
    for name in ("ok", "a\\b", "trailing ", "con", "%2e%2e", "a\u202eb", "e\u0301", ".partial-1234"):
        (folder / name).write_text("1")
    await root.ask("mount", "/mnt/files", url=folder.as_uri())
    assert await root.names("/mnt/files") == ["ok"]
    memory.pipe({"/top/ok": b"1", "/top/a\nb": b"1", "/top/%2e%2e": b"1"})
    await root.ask("mount", "/mnt/memory", url="memory://top")
    assert await root.names("/mnt/memory") == ["ok"]


async def test_letters_that_are_patterns_elsewhere_are_names(root, folder, memory, server):
    names = ["*", "a?b", "[ab]", "a#b", "50%", "ä ö", "a&b=c;d", "{x}", "a@b"]
    for name in names:
        (folder / name).write_text(name)
        memory.pipe({f"/top/{name}": name.encode()})
        server.files[f"/{name}"] = name.encode()
    (folder / "zz").write_text("not this one")
    for place, url in {"f": folder.as_uri(), "m": "memory://top", "w": server.url}.items():
        await root.ask("mount", f"/mnt/{place}", url=url)
        for name in names:
            assert await root.read(f"/mnt/{place}/{name}") == name.encode()
    for path in ("/mnt/m/a*", "/mnt/f/z?", "/mnt/w/a*"):
        with pytest.raises(NotFound):
            await root.read(path)


@pytest.mark.parametrize("name", ["zip::x", "memory::top", "file::", "ab::cd"])
async def test_a_name_that_fsspec_reads_as_a_chain_is_refused(root, memory, name):
    memory.pipe({"/top/x": b"1"})
    await root.ask("mount", "/mnt/m", url="memory://")
    with pytest.raises(Invalid, match="for something else"):
        await root.read(f"/mnt/m/{name}/x")


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (404, NotFound, "there is no /mnt/w/a"),
        (403, Denied, "does not let this node"),
        (429, Overloaded, "come back later"),
        (500, Unavailable, "failed"),
    ],
)
async def test_what_a_server_answers_is_said_as_what_it_is(root, server, status, kind, told):
    server.status = status
    await root.ask("mount", "/mnt/w", url=server.url)
    with pytest.raises(kind, match=told) as refused:
        await root.read("/mnt/w/a")
    assert kind is not Overloaded or refused.value.retry_after == 7


async def test_a_server_that_is_not_there_fails_the_reader_and_nobody_else(root):
    await root.ask("mount", "/mnt/w", url="http://127.0.0.1:1/x")
    for reading in (root.read("/mnt/w/a"), root.names("/mnt/w")):
        with pytest.raises(Unavailable, match="cannot be reached") as refused:
            await reading
        assert refused.value.remedy
    assert await root.names("/mnt") == ["w"]


async def test_a_server_that_says_nothing_is_waited_for_only_so_long(server):
    from tree_user import TreeUser

    from microkernel.testing import TestKernel
    from services.filesystem.service import Filesystem

    server.files["/a"] = b"1"
    server.hold = asyncio.Event()
    said = {"mounts": {"/mnt/w": {"url": server.url, "timeout_seconds": 0.2}}}
    async with TestKernel(Filesystem, settings={"filesystem": said}) as system:
        with pytest.raises(Unavailable):
            await TreeUser(system).read("/mnt/w/a")


async def test_a_reader_that_goes_away_leaves_nothing_open(root, server):
    server.files["/big"] = os.urandom(SIZE)
    await root.ask("mount", "/mnt/w", url=server.url)
    server.hold = asyncio.Event()
    reading = asyncio.create_task(root.read("/mnt/w/big"))
    await server.begun.wait()
    reading.cancel()
    await asyncio.wait([reading])
    while not server.given_up:
        await asyncio.sleep(0.005)
    server.hold.set()
    assert (await root.port.call("filesystem.mounts"))[0].cached_bytes == 0
    assert await root.read("/mnt/w/big") == server.files["/big"]


async def test_who_reads_where_a_mount_ends_is_told(root, server):
    server.files["/big"] = os.urandom(SIZE)
    await root.ask("mount", "/mnt/w", url=server.url)
    pieces = root.port.stream("filesystem.read", path="/mnt/w/big")
    async with aclosing(pieces):
        await anext(pieces)
        server.hold = asyncio.Event()
        server.begun.clear()
        other = asyncio.create_task(root.read("/mnt/w/big", start=3_000_000))
        await root.ask("unmount", "/mnt/w")
        with pytest.raises((Unavailable, NotFound)):
            await other
    with pytest.raises(NotFound):
        await root.read("/mnt/w/big")
    assert await root.port.call("filesystem.mounts") == []


async def test_who_reads_in_pieces_where_a_mount_ends_is_told(root, content):
    pieces = root.port.stream("filesystem.read", path="/mnt/x/big.bin")
    got = []
    async with aclosing(pieces):
        got.append(await anext(pieces))
        await root.ask("unmount", "/mnt/x")
        with pytest.raises(Unavailable, match="removed"):
            got.extend([piece async for piece in pieces])
    assert content.startswith(b"".join(got))
    await root.ask("make_folder", "/mnt/x")
    assert await root.names("/mnt/x") == []


@pytest.mark.parametrize("parts", [True, False])
async def test_a_file_that_changes_is_never_put_together_from_two(root, server, parts):
    server.parts = parts
    server.files["/big"] = b"1" * SIZE
    await root.ask("mount", "/mnt/w", url=server.url, cache_seconds=3600.0)
    assert await root.read("/mnt/w/big", start=0, stop=10) == b"1" * 10
    server.files["/big"] = b"2" * SIZE
    with pytest.raises(Aborted, match="was changed while it was read"):
        await root.read("/mnt/w/big", start=2_500_000)


@pytest.mark.parametrize("kind", ["web", "file", "memory"])
async def test_a_changed_file_is_read_anew(root, server, folder, memory, kind):
    urls = {"web": server.url, "file": folder.as_uri(), "memory": "memory://top"}
    await root.ask("mount", "/mnt/x", url=urls[kind], cache_seconds=0.0, cache_bytes=10 << 20)
    for content in (b"1" * SIZE, b"2" * SIZE):
        server.files["/a"] = content
        (folder / "a").write_bytes(content)
        memory.pipe({"/top/a": content})
        assert await root.read("/mnt/x/a") == content
        assert await root.read("/mnt/x/a", start=10, stop=20) == content[10:20]
