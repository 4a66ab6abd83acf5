"""Who may do what: owners, lists of rights, folders of one's own."""

from __future__ import annotations

import pytest

from microkernel.errors import Denied, Invalid, NotFound
from services.filesystem.messages import Grant


async def test_in_data_all_may_read_and_add_and_change_what_is_theirs(ann, bob):
    await ann.write("/data/a", b"ann's")
    assert await bob.read("/data/a") == b"ann's"
    await bob.write("/data/b", b"bob's")
    for change in (
        bob.write("/data/a", b"!"),
        bob.ask("remove", "/data/a"),
        bob.ask("rename", "/data/a", to="/data/c"),
        bob.ask("copy", "/data/b", to="/data/a"),
        bob.ask("rename", "/data/b", to="/data/a", replace=True),
        bob.write_pieces("/data/a", [b"!"]),
    ):
        with pytest.raises(Denied):
            await change
    await ann.write("/data/a", b"still ann's")
    assert await bob.read("/data/a") == b"still ann's"


@pytest.mark.parametrize("top", ["/home", "/contexts"])
async def test_a_home_is_seen_by_its_user_and_root_alone(root, ann, bob, top):
    await ann.write(f"{top}/ann/notes", b"private")
    assert await ann.names(top) == ["ann"]
    assert await bob.names(top) == []
    assert await root.read(f"{top}/ann/notes") == b"private"
    for look in (bob.read(f"{top}/ann/notes"), bob.ask("stat", f"{top}/ann"), bob.names(f"{top}/ann"),
                 bob.ask("history", f"{top}/ann/notes"), bob.ask("remove", f"{top}/ann/notes"),
                 bob.ask("access", f"{top}/ann/notes")):  # fmt: skip
        with pytest.raises(NotFound):
            await look
    for change in (bob.write(f"{top}/ann/x"), bob.write(f"{top}/carl/x"), bob.write(f"{top}/x")):
        with pytest.raises(Denied):
            await change


async def test_a_home_that_root_makes_is_the_users(root, ann):
    await root.write("/home/ann/welcome", b"hello")
    assert await ann.read("/home/ann/welcome") == b"hello"
    await ann.write("/home/ann/welcome", b"mine now")


async def test_in_tmp_all_see_what_is_theirs(root, ann, bob):
    await ann.write("/tmp/a", b"1")
    await bob.write("/tmp/b", b"2")
    assert (await ann.names("/tmp"), await bob.names("/tmp"), await root.names("/tmp")) == (["a"], ["b"], ["a", "b"])
    with pytest.raises(NotFound):
        await bob.read("/tmp/a")
    with pytest.raises(Denied):
        await bob.write("/tmp/a", b"!")


async def test_nobody_but_root_puts_anything_where_no_list_says_so(ann):
    for path in ("/x", "/newfolder/x"):
        with pytest.raises(Denied):
            await ann.write(path, b"")


async def test_an_owner_gives_rights_to_others_and_takes_them_back(ann, bob):
    await ann.write("/home/ann/shared/a", b"1")
    given = await ann.ask("change_access", "/home/ann/shared", grants={"bob": ("read", "write")})
    assert (given.owner, given.given_at, given.grants) == (
        "ann",
        "/home/ann/shared",
        (Grant(user="bob", rights=("read", "write")),),
    )
    assert await bob.read("/home/ann/shared/a") == b"1"
    await bob.write("/home/ann/shared/a", b"2")
    assert (await bob.ask("access", "/home/ann/shared/a")).given_at == "/home/ann/shared"
    with pytest.raises(NotFound):
        await bob.names("/home/ann")
    await ann.ask("change_access", "/home/ann/shared", grants=None)
    with pytest.raises(NotFound):
        await bob.read("/home/ann/shared/a")


async def test_the_nearest_list_decides_alone(root, ann, bob):
    await ann.write("/data/f/secret/a", b"1")
    await ann.ask("change_access", "/data/f/secret", grants={})
    assert await bob.names("/data/f") == []
    with pytest.raises(NotFound):
        await bob.read("/data/f/secret/a")
    await root.ask("change_access", "/data/f", grants={"bob": ("read", "add", "write")})
    with pytest.raises(Denied):
        await bob.ask("remove", "/data/f", recursive=True)
    with pytest.raises(Denied):
        await bob.ask("rename", "/data/f", to="/data/g")
    await ann.ask("change_access", "/data/f/secret", grants=None)
    await bob.ask("remove", "/data/f", recursive=True)


async def test_rights_are_given_by_owners_and_root_and_have_names(ann, bob):
    await ann.write("/data/a", b"1")
    with pytest.raises(Denied):
        await bob.ask("change_access", "/data/a", grants={"bob": ("write",)})
    with pytest.raises(Denied):
        await ann.ask("change_access", "/data", grants={"ann": ("write",)})
    with pytest.raises(Invalid, match="'execute' is no right"):
        await ann.ask("change_access", "/data/a", grants={"bob": ("execute",)})


async def test_versions_are_read_by_who_may_read_them(ann, bob):
    first = await ann.write("/home/ann/a", b"1")
    await ann.write("/home/ann/a", b"2")
    assert await ann.read("/home/ann/a", version=first.version) == b"1"
    with pytest.raises(NotFound):
        await bob.read("/home/ann/a", version=first.version)
    with pytest.raises(NotFound):
        await bob.ask("roll_back", "/home/ann/a", version=first.version)
    with pytest.raises(NotFound):
        await bob.ask("copy", "/home/ann/a", to="/data/mine", version=first.version)
    assert await bob.collect("diff", path="/home", since=first.version - 1) == []


async def test_only_root_looks_after_a_volume(ann):
    for ask in (
        ann.ask("collect", "/"),
        ann.ask("scrub", "/"),
        ann.ask("set_quota", "/", owner="ann", limit_bytes=None),
        ann.ask("forget_snapshot", "/", name="x"),
    ):
        with pytest.raises(Denied):
            await ask
