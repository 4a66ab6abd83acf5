"""The tree leaves a node and comes into another one, by messages."""

from __future__ import annotations

import pytest
from portable_entries import contents_of, exported, restoring, take_in
from tree_user import TreeUser

from microkernel.errors import Denied, NotFound, PreconditionFailed
from microkernel.testing import TestKernel
from services.filesystem.service import Filesystem


async def test_another_node_has_the_same_files_users_snapshots_quotas_and_mounts(tmp_path, system, root, ann, bob):
    storage = tmp_path / "storage"
    storage.mkdir()
    (storage / "outside").write_text("there")
    first = await ann.write("/home/ann/letter", b"dear")
    await ann.write("/home/ann/letter", b"dear bob")
    await bob.write("/data/large", bytes(300_000))
    await root.write("/tmp/note", b"gone with the node")
    await root.ask("snapshot", "/", name="before")
    await root.ask("set_quota", "/", owner="bob", limit_bytes=400_000)
    await root.ask("mount", "/mnt/storage", url=f"file://{storage}", users=("ann",))
    await root.ask("change_access", "/data", grants={"bob": ["read"]})
    pieces = await exported(system, "filesystem")
    before = [await root.ask("history", path) for path in ("/home/ann/letter", "/data/large")]
    async with restoring(tmp_path / "other", Filesystem) as port:
        assert (await take_in(port, "filesystem", pieces)).notes == ()
    async with TestKernel(Filesystem, root=tmp_path / "other") as other:
        root, ann, bob = TreeUser(other), TreeUser(other, "ann"), TreeUser(other, "bob")
        assert [await root.ask("history", path) for path in ("/home/ann/letter", "/data/large")] == before
        assert await ann.read("/home/ann/letter") == b"dear bob"
        assert await ann.read("/home/ann/letter", version=first.version) == b"dear"
        assert await ann.read("/mnt/storage/outside") == b"there"
        assert (await root.ask("snapshots", "/"))[0].name == "before"
        assert [(each.owner, each.limit_bytes) for each in await bob.ask("usage", "/")] == [("bob", 400_000)]
        for user, path in ((bob, "/home/ann/letter"), (bob, "/mnt/storage/outside"), (root, "/tmp/note")):
            with pytest.raises((NotFound, Denied)):
                await user.read(path)
        assert [(each.user, each.rights) for each in (await root.ask("access", "/data")).grants] == [("bob", ("read",))]


async def test_only_root_takes_all_files_along(system, ann):
    with pytest.raises(Denied, match="only root"):
        await anext(ann.port.stream("filesystem.export"))


async def test_a_tree_that_is_there_is_not_replaced(system):
    pieces = await exported(system, "filesystem")
    with pytest.raises(PreconditionFailed, match="only while a node is restored"):
        await take_in(system, "filesystem", pieces)


async def test_what_a_cache_keeps_of_mounts_stays(tmp_path, system, root):
    (tmp_path / "x").write_text("there")
    await root.ask("mount", "/mnt/x", url=f"file://{tmp_path}", cache_bytes=1 << 20)
    assert await root.read("/mnt/x/x") == b"there"
    entries = contents_of(await exported(system, "filesystem"))
    assert not [name for name, content in entries.items() if b"there" in content]
    assert b"/mnt/x" in entries["mounts.json"]
