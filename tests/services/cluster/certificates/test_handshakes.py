"""Real handshakes over real sockets: who gets in, as whom, and who does not."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from certified import BOTH, DAY, NOW, Cluster, forged
from cryptography.x509.oid import ExtendedKeyUsageOID
from guarded_door import REFUSED, asked, dialled, opened

from microkernel.errors import PreconditionFailed
from services.cluster.certificates.contexts import (
    ServerTls,
    certificate_of,
    client_context,
    joining_context,
    peer_of,
)
from services.cluster.certificates.names import ADMITTING, host_of
from services.cluster.certificates.pem import read

NOBODY = "None"


@pytest.fixture
def server(cluster):
    return ServerTls(cluster.node("n1", admits=True))


async def test_a_node_with_a_certificate_gets_in_and_is_known_by_its_name(cluster, server):
    async with opened(server) as door:
        assert await asked(door, client_context(cluster.node("n2"))) == "n2"


async def test_a_node_without_one_gets_in_as_nobody(cluster, server):
    async with opened(server) as door:
        assert await asked(door, joining_context(cluster.authority.roots(NOW)[0])) == NOBODY


async def test_the_node_that_was_dialled_is_known_by_its_name_too(cluster, server):
    async with opened(server) as door, dialled(door, client_context(cluster.node("n2"))) as link:
        assert peer_of(link.transport) == "n1"
        assert peer_of(link.transport.get_extra_info("ssl_object")) == "n1"


async def test_what_the_certificate_at_the_other_end_says_can_be_read(cluster, server):
    own = cluster.node("n2")
    async with opened(server) as door, dialled(door, client_context(own)) as link:
        await link.ask()
        peer = certificate_of(link.transport)
        assert peer is not None
        assert (peer.node, peer.issued, peer.expires) == ("n1", int(NOW), int(NOW + DAY))
        assert peer.serial != own.serial


@pytest.mark.parametrize("name", ["a", "7", "xn--node", "a" * 63, "rack-7-node-12"])
async def test_every_name_that_a_node_can_have_holds_in_a_handshake(cluster, name):
    async with opened(ServerTls(cluster.node(name))) as door:
        assert await asked(door, client_context(cluster.node("n2")), name) == "n2"


async def test_a_node_of_another_authority_does_not_get_in(cluster, server, tmp_path):
    stranger = Cluster(tmp_path / "other").node("n2")
    context = client_context(stranger)
    context.load_verify_locations(cadata=cluster.authority.roots(NOW)[0])  # it knows whom it talks to
    async with opened(server) as door:
        with pytest.raises(REFUSED):
            await asked(door, context)
        assert door.links == []


async def test_a_node_of_another_authority_is_not_talked_to(cluster, tmp_path):
    other = Cluster(tmp_path / "other")
    async with opened(ServerTls(other.node("n1"))) as door:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asked(door, client_context(cluster.node("n2")))
        assert door.heard == b""


async def test_a_node_with_an_expired_certificate_does_not_get_in(cluster, server):
    async with opened(server) as door:
        with pytest.raises(REFUSED):
            await asked(door, client_context(cluster.node("n2", at=NOW - 2 * DAY)))
        assert door.links == []


async def test_a_node_with_an_expired_certificate_is_not_talked_to(cluster):
    async with opened(ServerTls(cluster.node("n1", at=NOW - 2 * DAY))) as door:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await asked(door, client_context(cluster.node("n2")))
        assert door.heard == b""


async def test_a_node_with_a_certificate_of_tomorrow_does_not_get_in(cluster, server):
    async with opened(server) as door:
        with pytest.raises(REFUSED):
            await asked(door, client_context(cluster.node("n2", at=NOW + DAY)))
        assert door.links == []


async def test_a_certificate_of_a_clock_that_is_four_minutes_ahead_is_good(cluster, server):
    async with opened(server) as door:
        assert await asked(door, client_context(cluster.node("n2", at=NOW + 240))) == "n2"


async def test_a_node_with_a_certificate_that_it_signed_itself_does_not_get_in(cluster, server, tmp_path):
    context = client_context(forged(tmp_path / "forged.pem", "n2", [host_of("n2")]))
    context.load_verify_locations(cadata=cluster.authority.roots(NOW)[0])
    async with opened(server) as door:
        with pytest.raises(REFUSED):
            await asked(door, context)
        assert door.links == []


async def test_a_node_with_a_certificate_that_it_signed_itself_is_not_talked_to(cluster, tmp_path):
    async with opened(ServerTls(forged(tmp_path / "forged.pem", "n1", [host_of("n1")]))) as door:
        with pytest.raises(ssl.SSLCertVerificationError):
            await asked(door, client_context(cluster.node("n2")))
        assert door.heard == b""


async def test_a_node_that_has_the_certificate_of_another_one_is_not_talked_to(cluster):
    async with opened(ServerTls(cluster.node("n3"))) as door:
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            await asked(door, client_context(cluster.node("n2")), "n1")
        assert door.heard == b""


async def test_the_address_of_a_node_is_not_its_name(cluster, server):
    async with opened(server) as door:
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            await asked(door, client_context(cluster.node("n2")), host="127.0.0.1")


async def test_only_the_node_that_lets_others_join_answers_to_that_name(cluster, server):
    joining = joining_context(cluster.authority.roots(NOW)[0])
    async with opened(server) as door:
        assert await asked(door, joining, host=ADMITTING) == NOBODY
    async with opened(ServerTls(cluster.node("n3"))) as door:
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            await asked(door, joining, host=ADMITTING)
        assert door.heard == b""


async def test_a_certificate_for_two_nodes_is_for_nobody(cluster, server):
    both = cluster.made_by_hand("both", [host_of("n2"), host_of("n3")], BOTH)
    async with opened(server) as door:
        assert await asked(door, client_context(both)) == NOBODY
        assert door.links == [None]


async def test_a_certificate_for_servers_only_lets_nobody_in(cluster, server):
    half = cluster.made_by_hand("half", [host_of("n2")], [ExtendedKeyUsageOID.SERVER_AUTH])
    async with opened(server) as door:
        with pytest.raises(REFUSED):
            await asked(door, client_context(half))
        assert door.links == []


async def test_the_root_speaks_for_no_name_outside_of_clusters(cluster):
    public = cluster.made_by_hand("public", ["www.example.com"], BOTH)
    async with opened(ServerTls(public)) as door:
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
            await asked(door, client_context(cluster.node("n2")), host="www.example.com")


async def test_a_node_signs_no_certificate_of_another_one(cluster, server, tmp_path):
    key, own, root = read(cluster.node("n2").path)
    child = forged(tmp_path / "child.pem", "n3", [host_of("n3")], key, own)
    child.path.write_text(child.path.read_text() + root)
    context = client_context(child)
    context.load_verify_locations(cadata=root)
    async with opened(server) as door:
        with pytest.raises(REFUSED):
            await asked(door, context)
        assert door.links == []


async def test_only_tls_1_3_is_spoken(cluster, server):
    old = joining_context(cluster.authority.roots(NOW)[0])
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with opened(server) as door:
        with pytest.raises(REFUSED):
            await asked(door, old)
        async with dialled(door, client_context(cluster.node("n2"))) as link:
            assert link.transport.get_extra_info("ssl_object").version() == "TLSv1.3"


async def test_no_session_is_resumed_by_what_an_earlier_handshake_has_found(cluster, server):
    async with opened(server) as door, dialled(door, client_context(cluster.node("n2"))) as link:
        await link.ask()
        session = link.transport.get_extra_info("ssl_object").session
        assert session is None or not session.has_ticket


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python tells that the name is no text
async def test_a_first_word_with_a_server_name_that_is_no_text_ends_that_link_and_no_other(cluster, server):
    outgoing = ssl.MemoryBIO()
    client = joining_context(cluster.authority.roots(NOW)[0]).wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="placeholder"
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    first_word = outgoing.read()
    assert first_word.count(b"placeholder") == 1
    async with opened(server) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(first_word.replace(b"placeholder", b"\xff" * 11))
        assert (await reader.read())[:1] in {b"", b"\x15"}  # an alert, and the end
        writer.close()
        assert await asked(door, client_context(cluster.node("n2"))) == "n2"
        assert door.links == ["n2"]


def test_the_roots_of_the_system_are_not_believed(cluster):
    for context in (client_context(cluster.node("n2")), joining_context(cluster.authority.roots(NOW)[0])):
        assert len(context.get_ca_certs()) == 1


def test_a_link_without_tls_is_of_nobody():
    assert certificate_of(asyncio.Transport()) is None


def test_files_that_cannot_be_used_are_named(cluster):
    credentials = cluster.node("n2")
    credentials.path.write_text("no PEM")
    with pytest.raises(PreconditionFailed, match=r"node\.pem"):
        client_context(credentials)
    credentials.path.unlink()
    with pytest.raises(PreconditionFailed, match=r"node\.pem"):
        ServerTls(credentials)
    with pytest.raises(PreconditionFailed, match="roots"):
        joining_context("no PEM")
