"""Tokens of a node: made, shown, expired, revoked, rotated; over restarts."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from microkernel import durable
from microkernel.authentication import Tokens
from microkernel.capability import ALL, Identity, Revoked, Rights, TokenFile
from microkernel.errors import Denied, Internal, Invalid, PreconditionFailed, Unauthenticated
from microkernel.testing import TestKernel
from microkernel.token import blocks_of, make_block, narrow


class Wall:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


def tokens_of(folder: Path, wall: Wall) -> Tokens:
    return Tokens(folder, TokenFile(folder / "token"), wall)


def some(tokens: Tokens, **fields: Any) -> str:
    return tokens.issue(make_block(user="ana", allow=["kv.*"], **fields))


def test_a_token_is_known_by_the_node_that_made_it_also_after_a_restart_and_by_no_other(tmp_path, wall) -> None:
    (tmp_path / "other").mkdir()
    token = some(tokens_of(tmp_path, wall))
    assert (tmp_path / "token.key").stat().st_mode & 0o777 == 0o600
    for tokens in (tokens_of(tmp_path, wall), tokens_of(tmp_path, wall)):
        who = tokens.authenticate(token)
        assert who is not None
        assert (who.user, who.rights.allow) == ("ana", ("kv.*",))
    assert tokens_of(tmp_path / "other", wall).authenticate(token) is None


def test_the_nodes_own_token_is_known_beside_signed_ones(tmp_path, wall) -> None:
    own = TokenFile(tmp_path / "token")
    tokens = Tokens(tmp_path, own, wall)
    assert tokens.authenticate(own.token) == Identity("root", ALL)
    for odd in ("", "mk1.", "mk1.x", "ü", "mk1.\ud800", own.token + "x", "mk1." + own.token):
        assert tokens.authenticate(odd) is None


def test_a_token_ends_at_its_expiry_and_says_so(tmp_path, wall) -> None:
    tokens = tokens_of(tmp_path, wall)
    token = some(tokens, expires=wall.now + 60)
    sooner = narrow(token, make_block(expires=wall.now + 10))
    later = narrow(token, make_block(expires=wall.now + 1000))
    wall.now += 9.9
    assert all(tokens.authenticate(each) for each in (token, sooner, later))
    wall.now += 0.1
    with pytest.raises(Unauthenticated, match="expired on 1970-01-12"):
        tokens.authenticate(sooner)
    assert tokens.authenticate(token)
    wall.now += 50
    for each in (token, sooner, later):
        with pytest.raises(Unauthenticated, match="expired"):
            tokens.authenticate(each)


async def test_a_revoked_token_takes_all_with_it_that_were_narrowed_from_it_and_no_other(tmp_path, wall) -> None:
    tokens = tokens_of(tmp_path, wall)
    parent = some(tokens)
    child, sibling = (narrow(parent, make_block(deny=["kv.put"])) for _ in range(2))
    grandchild = narrow(child, make_block(allow=["kv.get"]))
    told: list[Revoked] = []
    tokens.listeners.append(told.append)
    await tokens.revoke(blocks_of(child)[-1].id, by="root")
    assert [each.ends(tuple(block.id for block in blocks_of(grandchild))) for each in told] == [True]
    for restarted in (tokens, tokens_of(tmp_path, wall)):
        assert restarted.authenticate(parent)
        assert restarted.authenticate(sibling)
        for each in (child, grandchild, narrow(grandchild, make_block())):
            with pytest.raises(Unauthenticated, match="revoked"):
                restarted.authenticate(each)


async def test_a_token_dies_with_the_one_on_whose_authority_it_was_made(tmp_path, wall) -> None:
    from microkernel.token import within

    tokens = tokens_of(tmp_path, wall)
    parent = some(tokens)
    authority = tokens.authenticate(parent)
    assert authority is not None
    made = tokens.issue(within(authority, make_block(user="bob", allow=["kv.get", "maths.*"])))
    who = tokens.authenticate(made)
    assert who is not None
    assert (who.user, who.rights.allow) == ("bob", ("kv.get",))
    await tokens.revoke(blocks_of(parent)[0].id, by="root")
    with pytest.raises(Unauthenticated, match="revoked"):
        tokens.authenticate(made)


async def test_a_new_key_ends_all_signed_tokens_and_forgets_what_was_revoked(tmp_path, wall) -> None:
    own = TokenFile(tmp_path / "token")
    tokens = Tokens(tmp_path, own, wall)
    old, revoked = some(tokens), some(tokens)
    await tokens.revoke(blocks_of(revoked)[0].id, by="root")
    told: list[Revoked] = []
    tokens.listeners.append(told.append)
    await asyncio.gather(*(tokens.rotate(by="root") for _ in range(5)))
    assert told == [Revoked(everything=True)] * 5
    fresh = some(tokens)
    for restarted in (tokens, tokens_of(tmp_path, wall)):
        assert restarted.authenticate(old) is None
        assert restarted.authenticate(revoked) is None
        assert restarted.authenticate(fresh)
        assert restarted.authenticate(own.token)
        assert restarted.revocations == []
    assert (tmp_path / "token.key").stat().st_mode & 0o777 == 0o600


async def test_a_disk_that_is_full_is_told_and_the_token_is_revoked_all_the_same(tmp_path, wall, monkeypatch) -> None:
    tokens = tokens_of(tmp_path, wall)
    token = some(tokens)
    number = blocks_of(token)[0].id

    def full(path: Path, body: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "append", full)
        with pytest.raises(Internal, match=r"not on the disk \(No space left on device\): a restart undoes it"):
            await tokens.revoke(number, by="root")
    with pytest.raises(Unauthenticated):
        tokens.authenticate(token)
    await tokens.revoke(number, by="root")  # once more, as the error says
    with pytest.raises(Unauthenticated):
        tokens_of(tmp_path, wall).authenticate(token)


@pytest.mark.parametrize("damage", ["", "00", "xyz", "00" * 31, "00" * 33, "ü" * 32])
def test_a_damaged_key_ends_the_boot_and_is_not_repeated(tmp_path, wall, damage) -> None:
    (tmp_path / "token.key").write_text(damage)
    with pytest.raises(PreconditionFailed, match="is damaged") as caught:
        tokens_of(tmp_path, wall)
    assert not damage or damage not in str(caught.value).replace(str(tmp_path), "")


# Through the kernel's handlers


async def test_the_kernel_makes_shows_revokes_and_rotates_tokens(tmp_path) -> None:
    async with TestKernel(root=tmp_path) as system, system.subscribe("kernel.token.revoked") as revoked:
        made = await system.call("kernel.token_create", user="ana", allow=["kv.*"], rate=2.5, expires_in=60.0)
        who = await system.call("kernel.authenticate", token=made.token)
        assert (who.user, who.rate, who.burst, who.token_ids) == ("ana", 2.5, 5, (made.id,))
        assert who.expires == made.expires
        assert who.rights == Rights(allow=("kv.*",), publish=(), subscribe=())
        entry = await system.call("kernel.token_revoke", token=narrow(made.token, make_block()))
        assert entry.expires == made.expires
        assert (await anext(revoked)).body == Revoked((entry.id,))
        await system.call("kernel.token_revoke", id=made.id)
        assert (await anext(revoked)).body == Revoked((made.id,))
        with pytest.raises(Unauthenticated, match="revoked"):
            await system.call("kernel.authenticate", token=made.token)
        assert [each.id for each in await system.call("kernel.token_revoked")] == [entry.id, made.id]
        await system.call("kernel.token_rotate")
        assert (await anext(revoked)).body == Revoked(everything=True)
        assert await system.call("kernel.token_revoked") == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"user": "root"}, "that of the node's own token"),
        ({"user": "a b"}, "is no user"),
        ({"user": "ana", "allow": ["kv.g*"]}, "is no pattern of calls"),
        ({"user": "ana", "publish": ["a..b"]}, "is no subject"),
        ({"user": "ana", "burst": 3}, "rate and burst"),
        ({"user": "ana", "top_priority": 10}, "top_priority"),
        ({"user": "ana", "expires_in": -1.0}, "expires_in"),
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(fields, complaint) -> None:
    async with TestKernel() as system:
        with pytest.raises(Invalid, match=complaint):
            await system.call("kernel.token_create", fields)


async def test_only_one_of_id_and_token_says_what_to_revoke() -> None:
    async with TestKernel() as system:
        for fields in ({}, {"id": "a" * 32, "token": "mk1.x"}):
            with pytest.raises(Invalid, match="which token"):
                await system.call("kernel.token_revoke", fields)
        with pytest.raises(Invalid, match="no signed token of this node"):
            await system.call("kernel.token_revoke", token="mk1.AAAA")
        with pytest.raises(Invalid, match="is no id"):
            await system.call("kernel.token_revoke", id="../../etc")


async def test_who_may_make_tokens_makes_none_that_goes_beyond_their_own() -> None:
    async with TestKernel() as system:
        made = await system.call(
            "kernel.token_create",
            user="ana",
            allow=["kernel.token_create", "kernel.authenticate", "kv.*"],
            top_priority=4,
        )
        ana = await system.call("kernel.authenticate", token=made.token)
        port = system.kernel.port.narrow(caller="session s1", rights=ana.rights, user=ana.user)
        wish = {"user": "bob", "allow": ["*"], "publish": [">"], "subscribe": [">"]}
        with pytest.raises(Denied, match="on the authority of the asker's own"):
            await port.call("kernel.token_create", wish)
        for wrong in (system.token, "mk1.AAAA"):
            with pytest.raises(Denied, match="on the authority of the asker's own"):
                await port.call("kernel.token_create", {**wish, "authority": wrong})
        for_bob = await port.call("kernel.token_create", {**wish, "authority": made.token})
        bob = await system.call("kernel.authenticate", token=for_bob.token)
        assert set(bob.rights.allow) == {"kernel.token_create", "kernel.authenticate", "kv.*"}
        assert (bob.rights.publish, bob.rights.subscribe, bob.top_priority) == ((), (), 4)
        await system.call("kernel.token_revoke", id=made.id)
        with pytest.raises(Unauthenticated, match="revoked"):
            await system.call("kernel.authenticate", token=for_bob.token)
        with pytest.raises(Unauthenticated, match="revoked"):
            await port.call("kernel.token_create", {**wish, "authority": made.token})


async def test_a_token_that_is_not_valid_is_audited_with_the_address_it_came_from() -> None:
    async with TestKernel() as system, system.subscribe("audit.denied") as audited:
        made = await system.call("kernel.token_create", user="ana", allow=["kv.*"])
        await system.call("kernel.token_revoke", id=made.id)
        with pytest.raises(Unauthenticated):
            await system.call("kernel.authenticate", token=made.token, peer="192.0.2.7")
        assert await system.call("kernel.authenticate", token="mk1.AAAA", peer="192.0.2.8") is None
        first, second = (await anext(audited)).body, (await anext(audited)).body
    assert (first.act, first.user, first.why, first.peer) == (
        "authenticate", "ana", "the token was revoked", "192.0.2.7",
    )  # fmt: skip
    assert (second.user, second.why, second.peer) == (None, "the token is not valid here", "192.0.2.8")
    assert made.token not in repr((first, second))
