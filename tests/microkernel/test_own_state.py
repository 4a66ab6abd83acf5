"""What the node itself keeps: its configuration, and its tokens where they are asked for."""

from __future__ import annotations

import os
import stat

import pytest
from portable_entries import contents_of, exported, restoring, take_in

from microkernel import own_state
from microkernel.authentication import Tokens
from microkernel.capability import TokenFile
from microkernel.config import read_config
from microkernel.errors import DataLoss, MicrokernelError, Unauthenticated
from microkernel.root import Root
from microkernel.testing import TestKernel
from microkernel.token import blocks_of, make_block

CONFIG = 'node = "n1"  # ours\n'


def tokens_of(folder) -> Tokens:
    return Tokens(folder, TokenFile(folder / "token"), lambda: 1_000_000.0)


async def test_without_secrets_the_configuration_leaves_and_nothing_that_opens_a_door(tmp_path):
    (tmp_path / "mk.toml").write_text(CONFIG)
    async with TestKernel(config=read_config(tmp_path / "mk.toml")) as system:
        found = contents_of(await exported(system, "kernel"))
        assert found == {"config.toml": CONFIG.encode()}
        secret = contents_of(await exported(system, "kernel", secrets=True))
        assert sorted(secret) == ["config.toml", "revoked.jsonl", "token", "token.key"]
        assert secret["token"].decode().strip() == system.token


async def test_a_node_that_has_the_secrets_of_another_knows_its_tokens_and_those_it_has_revoked(tmp_path):
    (tmp_path / "old").mkdir()
    tokens = tokens_of(tmp_path / "old")
    good, bad = (tokens.issue(make_block(user="ana", allow=["kv.*"])) for _ in range(2))
    await tokens.revoke(blocks_of(bad)[0].id, by="root")
    pieces = own_state.exported("", tokens, secrets=True)
    async with restoring(tmp_path / "new") as port:
        assert (await take_in(port, "kernel", pieces)).notes == ()
    restored = tokens_of(tmp_path / "new")
    assert restored.authenticate(good)
    with pytest.raises(Unauthenticated, match="revoked"):
        restored.authenticate(bad)
    assert (tmp_path / "new" / "token").read_bytes() == (tmp_path / "old" / "token").read_bytes()
    for name in ("token", "token.key", "revoked.jsonl"):
        assert stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) == 0o600


def test_a_token_of_the_environment_is_kept_nowhere(tmp_path):
    tokens = Tokens(tmp_path, TokenFile(tmp_path / "token", given="x" * 20), lambda: 0.0)
    assert sorted(contents_of(own_state.exported("", tokens, secrets=True))) == ["revoked.jsonl", "token.key"]


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ('url = "https://ana:se-cr:et@index/x"', 'url = "https://ana:***@index/x"'),
        ('a = "http://:pw@h"  # http://b:pw@i', 'a = "http://:***@h"  # http://b:***@i'),
        ('a = "http://host:7070/x@y"', 'a = "http://host:7070/x@y"'),
        ('a = "s3://bucket/x"\nb = "c@d:e@f"', 'a = "s3://bucket/x"\nb = "c@d:e@f"'),
    ],
)
def test_passwords_in_urls_of_the_configuration_stay_unless_secrets_are_asked_for(tmp_path, said, left):
    tokens = tokens_of(tmp_path)
    (piece,) = own_state.exported(said, tokens, secrets=False)
    assert piece.content.decode() == left
    assert ("passwords in URLs" in piece.note) == (said != left)
    assert contents_of(own_state.exported(said, tokens, secrets=True))["config.toml"].decode() == said
    notes = own_state.imported(Root(tmp_path), {"config.toml": piece.content})
    assert any("were left out" in note for note in notes) == (said != left)


def test_whoever_restores_without_the_key_is_told_that_tokens_end_and_where_the_configuration_is(tmp_path):
    notes = own_state.imported(Root(tmp_path), {"config.toml": CONFIG.encode()})
    assert (tmp_path / "config.toml").read_text() == CONFIG
    assert any("boot with --config" in note for note in notes)
    assert any("tokens that were given out are not valid here" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", b"= nothing"),
        ("config.toml", b"\xff"),
        ("token", b"short"),
        ("token", "ü".encode() * 20),
        ("token.key", b"00"),
        ("token.key", b"zz" * 32),
        ("revoked.jsonl", b"{}\n"),
        ("revoked.jsonl", b'{"id":"a","at":1.0,"by":"root"}'),
        ("node.json", b"{}"),
        ("lock", b""),
        ("filesystem/names.sqlite", b""),
    ],
)
def test_what_no_boot_could_read_or_is_not_the_nodes_own_is_refused_before_anything_is_written(tmp_path, name, content):
    entries = {name: content} | ({"revoked.jsonl": b""} if name == "token.key" else {})
    with pytest.raises(DataLoss, match=name):
        own_state.imported(Root(tmp_path), entries)
    assert not os.path.lexists(tmp_path / name)


def test_a_key_without_the_list_of_what_is_revoked_is_refused(tmp_path):
    with pytest.raises(MicrokernelError, match="would come back"):
        own_state.imported(Root(tmp_path), {"token.key": b"00" * 32})
