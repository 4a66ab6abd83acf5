"""A node that knows a fingerprint, and what it says to whom."""

from __future__ import annotations

import asyncio
import hashlib
import ssl

import pytest
from certified import NOW, Cluster, forged
from guarded_door import asked, opened

from microkernel.errors import Unauthenticated, Unavailable
from services.cluster.certificates.certificate import LONGEST_LIFETIME
from services.cluster.certificates.contexts import ServerTls, joining_context
from services.cluster.certificates.first_contact import find_root
from services.cluster.certificates.names import ADMITTING, host_of

HOST = "127.0.0.1"


async def test_who_knows_the_fingerprint_finds_the_root_and_joins_over_a_link_that_is_checked(cluster):
    async with opened(ServerTls(cluster.node("n1", admits=True))) as door:
        root = await find_root(HOST, door.port, cluster.authority.fingerprint(NOW))
        assert (root,) == cluster.authority.roots(NOW)
        assert await asked(door, joining_context(root), host=ADMITTING) == "None"


async def test_another_cluster_is_told_nothing(cluster, tmp_path):
    stranger = Cluster(tmp_path / "other")
    async with opened(ServerTls(stranger.node("n1", admits=True))) as door:
        with pytest.raises(Unauthenticated, match="not the cluster"):
            await find_root(HOST, door.port, cluster.authority.fingerprint(NOW))
        assert door.heard == b""


async def test_a_damaged_fingerprint_finds_nothing(cluster):
    fingerprint = bytearray(cluster.authority.fingerprint(NOW))
    fingerprint[31] ^= 1
    async with opened(ServerTls(cluster.node("n1", admits=True))) as door:
        with pytest.raises(Unauthenticated):
            await find_root(HOST, door.port, bytes(fingerprint))


async def test_who_only_shows_the_root_of_the_cluster_is_told_nothing_more(cluster, tmp_path):
    """Everybody can have the root, and append it to a certificate that it has not signed."""
    thief = forged(tmp_path / "thief.pem", "n1", [host_of("n1"), ADMITTING])
    thief.path.write_text(thief.path.read_text() + cluster.authority.roots(NOW)[0])
    async with opened(ServerTls(thief)) as door:
        root = await find_root(HOST, door.port, cluster.authority.fingerprint(NOW))
        with pytest.raises(ssl.SSLCertVerificationError):
            await asked(door, joining_context(root), host=ADMITTING)
        assert door.heard == b""


async def test_the_certificate_of_a_node_is_not_taken_for_the_root(cluster):
    """Its fingerprint finds it, and it vouches for nobody: not even for itself."""
    credentials = cluster.node("n1", admits=True)
    async with opened(ServerTls(credentials)) as door:
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(HOST, door.port, ssl=anybody)
        own = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
        found = await find_root(HOST, door.port, hashlib.sha256(own).digest())
        with pytest.raises(ssl.SSLCertVerificationError):
            await asked(door, joining_context(found), host=ADMITTING)


async def test_while_the_authority_rolls_over_the_fingerprint_is_of_the_root_that_signs(cluster):
    for begun in (NOW - LONGEST_LIFETIME - 60, NOW - LONGEST_LIFETIME + 60):
        other = Cluster(cluster.folder / str(begun))
        other.authority.roll_over(now=begun)
        async with opened(ServerTls(other.node("n1", admits=True))) as door:
            root = await find_root(HOST, door.port, other.authority.fingerprint(NOW))
            assert await asked(door, joining_context(root), host=ADMITTING) == "None"


async def test_what_does_not_speak_tls_is_no_cluster(unused_tcp_port):
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, HOST, 0)
    try:
        with pytest.raises(Unavailable, match=r"does not speak TLS 1\.3"):
            await find_root(HOST, server.sockets[0].getsockname()[1], bytes(32))
    finally:
        server.close()
        await server.wait_closed()
    with pytest.raises(Unavailable, match="nothing answers"):
        await find_root(HOST, unused_tcp_port, bytes(32))


async def test_who_takes_the_link_and_never_answers_is_waited_for_no_longer_than_told():
    held = []

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(hold, HOST, 0)
    try:
        with pytest.raises(Unavailable, match=r"no answer within 0\.1 s"):
            await find_root(HOST, server.sockets[0].getsockname()[1], bytes(32), timeout=0.1)
    finally:
        server.close()
        for writer in held:
            writer.transport.abort()
        await server.wait_closed()
