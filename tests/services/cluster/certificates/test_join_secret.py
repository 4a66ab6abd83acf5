"""The line that all machines of a cluster have: whom it vouches for, whom it lets in, and what it is to be."""

from __future__ import annotations

import secrets
import ssl
from pathlib import Path

import pytest
from certified import NOW, Cluster, forged
from guarded_door import asked, opened
from hypothesis import given
from hypothesis import strategies as st

from microkernel.errors import Invalid, PreconditionFailed, Unauthenticated, Unavailable
from microkernel.token import issue, make_block, narrow
from services.cluster.certificates.certificate import LONGEST_LIFETIME
from services.cluster.certificates.contexts import ServerTls, joining_context
from services.cluster.certificates.first_contact import find_vouched_root
from services.cluster.certificates.join_secret import JoinSecret, read_join_secret
from services.cluster.certificates.names import ADMITTING, host_of

HOST = "127.0.0.1"
TEXT = secrets.token_hex(32)
SECRET, OTHER = JoinSecret(TEXT), JoinSecret(secrets.token_hex(32))


# Whom it vouches for


async def test_who_has_the_secret_finds_the_root_and_joins_over_a_link_that_is_checked(cluster: Cluster) -> None:
    async with opened(ServerTls(cluster.node("n1", admits=True, secret=SECRET))) as door:
        root, name = await find_vouched_root(HOST, door.port, JoinSecret(TEXT))
        assert (root,) == cluster.authority.roots(NOW)
        assert await asked(door, joining_context(root), host=name) == "None"


async def test_the_first_contact_tells_nothing(cluster: Cluster) -> None:
    async with opened(ServerTls(cluster.node("n1", admits=True, secret=SECRET))) as door:
        await find_vouched_root(HOST, door.port, SECRET)
        assert door.heard == b""


@pytest.mark.parametrize("theirs", [OTHER, None])
async def test_a_cluster_with_another_secret_is_told_nothing(cluster: Cluster, theirs: JoinSecret | None) -> None:
    async with opened(ServerTls(cluster.node("n1", admits=True, secret=theirs))) as door:
        with pytest.raises(Unauthenticated, match="join secret"):
            await find_vouched_root(HOST, door.port, SECRET)
        assert door.heard == b""


async def test_a_name_that_was_copied_vouches_for_no_other_root(cluster: Cluster, tmp_path: Path) -> None:
    """The name is public: who reaches the port can read it."""
    copied = SECRET.vouched_host(cluster.authority.fingerprint(NOW))
    thief = forged(tmp_path / "thief.pem", "n1", [host_of("n1"), ADMITTING, copied])
    async with opened(ServerTls(thief)) as door:
        with pytest.raises(Unauthenticated):
            await find_vouched_root(HOST, door.port, SECRET)


async def test_a_name_that_was_copied_beside_the_root_is_found_out_by_the_second_link(
    cluster: Cluster, tmp_path: Path
) -> None:
    copied = SECRET.vouched_host(cluster.authority.fingerprint(NOW))
    thief = forged(tmp_path / "thief.pem", "n1", [host_of("n1"), ADMITTING, copied])
    thief.path.write_text(thief.path.read_text() + cluster.authority.roots(NOW)[0])
    async with opened(ServerTls(thief)) as door:
        root, name = await find_vouched_root(HOST, door.port, SECRET)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asked(door, joining_context(root), host=name)
        assert door.heard == b""


async def test_a_node_that_does_not_admit_vouches_for_nothing(cluster: Cluster) -> None:
    async with opened(ServerTls(cluster.node("n2", secret=SECRET))) as door:
        with pytest.raises(Unauthenticated):
            await find_vouched_root(HOST, door.port, SECRET)


async def test_while_the_authority_rolls_over_it_vouches_for_the_root_that_signs(cluster: Cluster) -> None:
    for begun in (NOW - LONGEST_LIFETIME - 60, NOW - LONGEST_LIFETIME + 60):
        other = Cluster(cluster.folder / str(begun))
        other.authority.roll_over(now=begun)
        async with opened(ServerTls(other.node("n1", admits=True, secret=SECRET))) as door:
            root, name = await find_vouched_root(HOST, door.port, SECRET)
            assert await asked(door, joining_context(root), host=name) == "None"


async def test_where_nothing_answers_there_is_no_root(unused_tcp_port: int) -> None:
    with pytest.raises(Unavailable, match="nothing answers"):
        await find_vouched_root(HOST, unused_tcp_port, SECRET)


# Whom it lets in


def test_what_it_makes_permits_to_join_and_nothing_else() -> None:
    identity = SECRET.identity(SECRET.token())
    assert identity is not None
    assert identity.rights.permits("cluster.join")
    assert identity.user == "node"
    assert identity.rights.allow == ("cluster.join",)
    assert (identity.rights.publish, identity.rights.subscribe) == ((), ())


@given(st.text(max_size=200) | st.sampled_from([TEXT, "", "mk1.", OTHER.token(), SECRET.token()[:-1]]))
def test_nothing_else_is_taken(token: str) -> None:
    assert SECRET.identity(token) is None


def test_a_token_of_the_node_is_none_of_the_secret() -> None:
    assert SECRET.identity(issue(bytes(32), make_block(user="node", allow=("cluster.join",)))) is None


def test_what_was_narrowed_to_nothing_permits_nothing() -> None:
    identity = SECRET.identity(narrow(SECRET.token(), make_block(allow=())))
    assert identity is not None
    assert not identity.rights.permits("cluster.join")


def test_one_text_is_one_secret() -> None:
    again = JoinSecret(TEXT)
    assert again.identity(SECRET.token()) is not None
    assert again.vouched_host(bytes(32)) == SECRET.vouched_host(bytes(32))
    assert OTHER.vouched_host(bytes(32)) != SECRET.vouched_host(bytes(32)) != SECRET.vouched_host(bytes([1]) * 32)


# What it is to be


@pytest.mark.parametrize(
    "weak",
    ["", "x" * 31, "a" * 64, "0123" * 16, TEXT[:31], f"{TEXT} {TEXT}", TEXT * 17, f"{TEXT[:40]}é"],
    ids=["empty", "short", "one letter", "a pattern", "cut off", "with a blank", "long", "not ASCII"],  # it is random
)
def test_what_could_be_guessed_is_refused(weak: str) -> None:
    with pytest.raises(Invalid, match="random characters"):
        JoinSecret(weak)


def test_a_file_may_end_its_line(tmp_path: Path) -> None:
    file = tmp_path / "join"
    file.write_text(f"{TEXT}\n")
    assert read_join_secret(file).identity(SECRET.token()) is not None


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "join"
    file.write_bytes(bytes(range(256)) * 256)
    with pytest.raises(Invalid):
        read_join_secret(file)


@pytest.mark.parametrize("name", ["nothing", ""])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(PreconditionFailed, match="join secret"):
        read_join_secret(tmp_path / name)


def test_no_text_is_made_of_it() -> None:
    assert TEXT not in f"{SECRET!r} {SECRET} {vars(SECRET)}"
