"""The same through aiohttp: a door that serves websockets, and clients that dial nodes by their names."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from certified import DAY, NOW, Cluster, forged

from services.cluster.certificates.contexts import (
    ServerTls,
    certificate_of,
    client_context,
    joining_context,
    peer_of,
)
from services.cluster.certificates.names import host_of
from services.cluster.certificates.refusals import Refusals


class WebDoor:
    """Serves `/mk`: says who has come, and lets nobody in who is refused."""

    def __init__(self, tls: ServerTls, refusals: Refusals) -> None:
        self.refusals = refusals
        self.requests = 0
        application = web.Application()
        application.router.add_get("/mk", self.serve)
        self.server = TestServer(application)
        self.tls = tls

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        peer = certificate_of(request.transport)
        if peer is not None and self.refusals.covers(peer):
            return web.Response(status=403)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            await socket.send_str(str(peer_of(request.transport)))
        return socket


@pytest.fixture
async def door(cluster, tmp_path):
    door = WebDoor(ServerTls(cluster.node("n1")), Refusals(tmp_path / "refused.json", now=NOW))
    await door.server.start_server(ssl=door.tls.context)
    yield door
    await door.server.close()


@pytest.fixture
async def http():
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(http, door, context, node="n1"):
    url = door.server.make_url("/mk")
    async with http.ws_connect(url, ssl=context, server_hostname=host_of(node)) as socket:
        await socket.send_str("who")
        return await socket.receive_str(timeout=30)


async def test_a_node_is_known_by_its_name_on_a_websocket(cluster, door, http):
    assert await ask(http, door, client_context(cluster.node("n2"))) == "n2"


async def test_a_node_that_has_not_joined_is_nobody_on_a_websocket(cluster, door, http):
    assert await ask(http, door, joining_context(cluster.authority.roots(NOW)[0])) == "None"


async def test_a_node_of_another_authority_never_becomes_a_request(cluster, door, http, tmp_path):
    context = client_context(Cluster(tmp_path / "other").node("n2"))
    context.load_verify_locations(cadata=cluster.authority.roots(NOW)[0])
    with pytest.raises(aiohttp.ClientError):
        await ask(http, door, context)
    assert door.requests == 0


async def test_an_expired_certificate_never_becomes_a_request(cluster, door, http):
    with pytest.raises(aiohttp.ClientError):
        await ask(http, door, client_context(cluster.node("n2", at=NOW - 2 * DAY)))
    assert door.requests == 0


async def test_a_certificate_that_a_node_signed_itself_never_becomes_a_request(cluster, door, http, tmp_path):
    context = client_context(forged(tmp_path / "forged.pem", "n2", [host_of("n2")]))
    context.load_verify_locations(cadata=cluster.authority.roots(NOW)[0])
    with pytest.raises(aiohttp.ClientError):
        await ask(http, door, context)
    assert door.requests == 0


async def test_another_node_than_the_one_that_was_meant_is_sent_no_request(cluster, door, http):
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await ask(http, door, client_context(cluster.node("n2")), "n3")
    assert door.requests == 0


async def test_who_forgets_to_name_the_node_is_refused_and_not_let_through(cluster, door, http):
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        async with http.ws_connect(door.server.make_url("/mk"), ssl=client_context(cluster.node("n2"))):
            pass
    assert door.requests == 0


async def test_a_node_that_was_removed_opens_no_link_with_a_certificate_that_is_still_valid(cluster, door, http):
    own = client_context(cluster.node("n2", at=NOW - 10))
    assert await ask(http, door, own) == "n2"
    door.refusals.refuse("n2", now=NOW - 5)
    with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
        await ask(http, door, own)
    assert await ask(http, door, client_context(cluster.node("n2", at=NOW))) == "n2"  # it was let in again


async def test_a_renewed_certificate_is_used_while_a_websocket_stays_open(cluster, door, http):
    own = client_context(cluster.node("n2"))
    url, name = door.server.make_url("/mk"), host_of("n1")
    async with http.ws_connect(url, ssl=own, server_hostname=name) as old:
        fresh = cluster.node("n1")
        door.tls.renew(fresh)
        async with http.ws_connect(url, ssl=own, server_hostname=name) as new:
            serials = [certificate_of(socket.get_extra_info("ssl_object")).serial for socket in (old, new)]
        assert serials[0] != serials[1] == fresh.serial
        await old.send_str("who")
        assert await old.receive_str(timeout=30) == "n2"
