"""Certificates and roots that change while a node listens and links are open."""

from __future__ import annotations

import asyncio
import ssl
from itertools import permutations

import pytest
from certified import NOW, Cluster
from guarded_door import REFUSED, asked, dialled, opened

from microkernel.errors import PreconditionFailed
from services.cluster.certificates.certificate import LONGEST_LIFETIME
from services.cluster.certificates.contexts import ServerTls, certificate_of, client_context, peer_of
from services.cluster.certificates.credentials import Credentials
from services.cluster.certificates.pem import certificate_from, read


async def test_a_renewed_certificate_is_shown_from_the_next_handshake_on_and_open_links_go_on(cluster):
    first = cluster.node("n1")
    tls = ServerTls(first)
    own = client_context(cluster.node("n2"))
    async with opened(tls) as door, dialled(door, own) as old:
        assert await old.ask() == "n2"
        second = cluster.node("n1")
        tls.renew(second)
        async with dialled(door, own) as fresh:
            assert [certificate_of(link.transport).serial for link in (old, fresh)] == [first.serial, second.serial]
            assert [await link.ask() for link in (old, fresh)] == ["n2", "n2"]


async def test_handshakes_that_meet_a_renewal_all_succeed(cluster):
    """Renewals on a thread, one after the other, as long as 40 nodes are connecting."""
    credentials = cluster.node("n1")
    tls = ServerTls(credentials)
    own = client_context(cluster.node("n2"))
    done = False

    def renew() -> int:
        count = 0
        while not done:
            tls.renew(credentials)
            count += 1
        return count

    async with opened(tls) as door:
        renewing = asyncio.ensure_future(asyncio.to_thread(renew))
        try:
            names = [await asked(door, own) for _ in range(40)]
        finally:
            done = True
            count = await renewing
    assert names == ["n2"] * 40
    assert count > 1


async def test_a_renewal_that_cannot_be_used_leaves_what_was_there(cluster):
    tls = ServerTls(cluster.node("n1"))
    broken = cluster.node("n3")
    broken.path.write_text("no PEM")
    with pytest.raises(PreconditionFailed):
        tls.renew(broken)
    async with opened(tls) as door:
        assert await asked(door, client_context(cluster.node("n2"))) == "n2"


async def test_a_node_that_knows_of_the_next_root_and_one_that_does_not_yet_talk(cluster):
    before = cluster.node("n1", at=NOW - 60)
    cluster.authority.roll_over(now=NOW - 30)
    after = cluster.node("n2")
    assert [len(node.roots) for node in (before, after)] == [1, 2]
    await _assert_they_talk(before, after)


async def test_a_node_of_the_old_root_and_one_of_the_next_root_talk(cluster):
    an_hour_ago = NOW - 3600
    cluster.authority.roll_over(now=an_hour_ago - LONGEST_LIFETIME)  # since then, the next one signs
    before, after = cluster.node("n1", at=an_hour_ago - 60), cluster.node("n2")
    issuers = {certificate_from(read(node.path)[1]).issuer for node in (before, after)}
    assert len(issuers) == 2
    await _assert_they_talk(before, after)


async def _assert_they_talk(*nodes: Credentials) -> None:
    for server, client in permutations(nodes, 2):
        async with opened(ServerTls(server)) as door:
            assert await asked(door, client_context(client), server.node) == client.node


async def test_a_root_that_is_not_trusted_any_more_is_refused_from_the_next_handshake_on(cluster, tmp_path):
    """The door turns to another authority: the old one's nodes are out, their open links go on."""
    tls = ServerTls(cluster.node("n1"))
    old = client_context(cluster.node("n2"))
    other = Cluster(tmp_path / "other")
    async with opened(tls) as door, dialled(door, old) as open_link:
        assert await open_link.ask() == "n2"
        tls.renew(other.node("n1"))
        assert await open_link.ask() == "n2"
        old.load_verify_locations(cadata=other.authority.roots(NOW)[0])
        with pytest.raises(REFUSED):
            await asked(door, old)
        assert door.links == ["n2"]
        assert await asked(door, client_context(other.node("n2"))) == "n2"


async def test_a_client_that_names_no_server_is_shown_the_current_certificate_too(cluster):
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    credentials = cluster.node("n1")
    async with opened(ServerTls(credentials)) as door:
        _, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=anybody, server_hostname="")
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
    assert shown == ssl.PEM_cert_to_DER_cert(read(credentials.path)[1])


async def test_a_certificate_that_the_client_has_not_checked_says_nothing(cluster):
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    async with opened(ServerTls(cluster.node("n1"))) as door, dialled(door, anybody) as link:
        assert peer_of(link.transport) is None
