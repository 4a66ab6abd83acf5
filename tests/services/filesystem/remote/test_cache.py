"""What is read from elsewhere is kept on disk: within a limit, checked, and for all readers at once."""

from __future__ import annotations

import asyncio
import os

import pytest
from tree_user import TreeUser

from microkernel.errors import MicrokernelError, Unavailable
from microkernel.testing import TestKernel
from services.filesystem.remote.cache import BLOCK
from services.filesystem.service import Filesystem

SIZE = 3 * BLOCK + 5


def blocks_of(system) -> list:
    return sorted(path for path in (system.root / "filesystem" / "remote").glob("*/blocks/??/*") if path.is_file())


@pytest.fixture
async def content(root, server):
    server.files["/big"] = os.urandom(SIZE)
    await root.ask("mount", "/mnt/w", url=server.url, cache_seconds=3600.0)
    return server.files["/big"]


async def cached(root) -> int:
    return (await root.port.call("filesystem.mounts"))[0].cached_bytes


@pytest.mark.parametrize("parts", [True, False])
async def test_what_was_read_once_is_not_asked_for_again(root, server, content, parts):
    server.parts = parts
    await root.read("/mnt/w/big")
    await root.read("/mnt/w/big")
    asked = dict(server.asked)
    assert await root.read("/mnt/w/big") == content
    assert await root.read("/mnt/w/big", start=BLOCK, stop=BLOCK + 9) == content[BLOCK : BLOCK + 9]
    assert dict(server.asked) == asked
    assert await cached(root) == SIZE + 4 * 16


async def test_a_part_of_a_file_costs_its_blocks_and_no_others(root, server, content):
    assert await root.read("/mnt/w/big", start=BLOCK + 5, stop=BLOCK + 6) == content[BLOCK + 5 : BLOCK + 6]
    assert server.ranges == [f"bytes={BLOCK}-{2 * BLOCK - 1}"]


async def test_a_reader_in_order_has_more_and_more_come_at_once(root, server):
    server.files["/big"] = os.urandom(16 * BLOCK)
    await root.ask("mount", "/mnt/w", url=server.url)
    assert await root.read("/mnt/w/big") == server.files["/big"]
    assert len(server.ranges) <= 6


async def test_many_readers_have_a_block_come_once(root, server, content):
    server.hold = asyncio.Event()
    readers = [asyncio.create_task(root.read("/mnt/w/big")) for _ in range(20)]
    await server.begun.wait()
    server.hold.set()
    for reader in readers:
        assert await reader == content
    assert server.asked["HEAD"] == 1
    assert len(server.ranges) == len(set(server.ranges)) <= 3


async def test_a_reader_that_goes_away_takes_nothing_from_the_others(root, server, content):
    server.hold = asyncio.Event()
    readers = [asyncio.create_task(root.read("/mnt/w/big")) for _ in range(3)]
    await server.begun.wait()
    readers[0].cancel()
    await asyncio.wait([readers[0]])
    server.hold.set()
    assert await readers[1] == await readers[2] == content
    assert server.given_up == 0


@pytest.mark.parametrize("place", [0, 16, 500_000, -1])
async def test_a_damaged_block_is_fetched_again(root, system, server, content, place):
    await root.read("/mnt/w/big")
    before = len(server.ranges)
    for path in blocks_of(system):
        kept = bytearray(path.read_bytes())
        if len(kept) > 500_000:
            kept[place] ^= 1
            path.write_bytes(kept)
    assert await root.read("/mnt/w/big") == content
    assert len(server.ranges) > before
    asked = len(server.ranges)
    assert await root.read("/mnt/w/big") == content
    assert len(server.ranges) == asked


async def test_blocks_in_each_others_places_and_cut_ones_are_fetched_again(root, system, content):
    await root.read("/mnt/w/big")
    large = [path for path in blocks_of(system) if path.stat().st_size > BLOCK]
    first, second = large[0].read_bytes(), large[1].read_bytes()
    large[0].write_bytes(second)
    large[1].write_bytes(first)
    large[2].write_bytes(large[2].read_bytes()[:-7])
    assert await root.read("/mnt/w/big") == content


async def test_above_the_limit_the_blocks_that_were_read_longest_ago_go(root, system, server):
    server.files = {f"/{name}": os.urandom(BLOCK) for name in "abc"}
    await root.ask("mount", "/mnt/w", url=server.url, cache_bytes=2 * (BLOCK + 16), cache_seconds=3600.0)
    for name in "abac":
        await root.read(f"/mnt/w/{name}")
    assert await cached(root) == 2 * (BLOCK + 16)
    assert len(blocks_of(system)) == 2
    before = len(server.ranges)
    await root.read("/mnt/w/a")
    assert len(server.ranges) == before
    assert await root.read("/mnt/w/b") == server.files["/b"]
    assert len(server.ranges) == before + 1


async def test_a_file_that_is_larger_than_the_cache_is_read(root, server):
    server.files["/big"] = os.urandom(8 * BLOCK)
    await root.ask("mount", "/mnt/w", url=server.url, cache_bytes=2 * BLOCK)
    assert await root.read("/mnt/w/big") == server.files["/big"]
    assert await cached(root) <= 2 * BLOCK


async def test_of_folders_of_this_machine_nothing_is_kept(root, system, folder):
    (folder / "a").write_bytes(os.urandom(SIZE))
    await root.ask("mount", "/mnt/f", url=folder.as_uri())
    await root.read("/mnt/f/a")
    assert blocks_of(system) == []


async def test_a_fetch_that_fails_leaves_nothing(root, system, server, content):
    await root.ask("stat", "/mnt/w/big")
    server.status = 500
    with pytest.raises(Unavailable):
        await root.read("/mnt/w/big")
    assert blocks_of(system) == []
    server.status = 0
    assert await root.read("/mnt/w/big") == content


async def test_what_a_server_sends_too_little_of_is_not_taken_for_the_whole(root, server, content):
    await root.ask("stat", "/mnt/w/big")
    server.files["/big"] = content[:-1]
    server.etag = lambda path: '"the same"'
    with pytest.raises(MicrokernelError):
        await root.read("/mnt/w/big")


async def test_a_server_that_tells_no_versions_is_asked_again_after_a_while(root, server):
    server.marks = False
    server.files["/a"] = b"1" * 1000
    await root.ask("mount", "/mnt/w", url=server.url, cache_seconds=0.0)
    assert await root.read("/mnt/w/a") == b"1" * 1000
    server.files["/a"] = b"2" * 1000
    assert await root.read("/mnt/w/a") == b"2" * 1000


async def test_the_cache_and_live_mounts_are_there_after_a_restart(tmp_path, server):
    server.files["/big"] = os.urandom(SIZE)
    server.keep_alive = False
    async with TestKernel(Filesystem, root=tmp_path) as system:
        root = TreeUser(system)
        await root.ask("mount", "/mnt/w", url=server.url)
        await root.ask("mount", "/mnt/gone", url=server.url)
        await root.read("/mnt/w/big")
        await root.read("/mnt/gone/big")
        await root.ask("unmount", "/mnt/gone")
    partial = tmp_path / "filesystem" / "remote"
    assert len([path for path in partial.iterdir() if path.is_dir()]) == 1
    before = dict(server.asked)
    async with TestKernel(Filesystem, root=tmp_path) as system:
        root = TreeUser(system)
        assert [each.path for each in await root.port.call("filesystem.mounts")] == ["/mnt/w"]
        assert await cached(root) == SIZE + 4 * 16
        assert await root.read("/mnt/w/big") == server.files["/big"]
    assert server.asked["GET"] == before["GET"]
