"""`/mk` on the same port, by the project's own client."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from microkernel.capability import Identity, Rights
from microkernel.errors import Denied, MicrokernelError, Unauthenticated, Unavailable
from microkernel.wire.client import connect


async def test_the_websocket_answers_calls_and_streams(site):
    async with connect(site.url, token=site.system.token) as system:
        status = await system.call("kernel.status")
        assert status.node == "node0"
        pieces = [
            piece.text async for piece in system.stream("inference.chat", messages=[{"role": "user", "content": "Hi"}])
        ]
    assert "".join(pieces) == "Hello, world"
    assert site.script.calls[0].user == "root"


async def test_a_wrong_token_is_refused(site):
    with pytest.raises(MicrokernelError) as failure:
        async with connect(site.url, token="mk-wrong-mk-wrong"):
            pass
    assert isinstance(failure.value, Unauthenticated | Unavailable)
    assert "token" in str(failure.value)


async def test_a_session_has_the_rights_of_its_token(site, monkeypatch):
    ana = Identity("ana", Rights(allow=("inference.*",)))
    monkeypatch.setattr(site.system.kernel.token, "authenticate", lambda token: ana if token == "mk-ana" else None)
    async with connect(site.url, token="mk-ana") as system:
        assert system.user == "ana"
        assert await system.call("inference.list")
        with pytest.raises(Denied):
            await system.call("kernel.shutdown")


async def test_another_origin_may_not_connect(open_site):
    async with open_site(allowed_origins=["https://lab.example"]) as site, site.http(None) as client:
        with pytest.raises(aiohttp.WSServerHandshakeError) as failure:
            await client.ws_connect("/mk", protocols=["mk.v1"], origin="https://evil.example")
        assert failure.value.status == 403
        async with client.ws_connect("/mk", protocols=["mk.v1"], origin="https://lab.example") as socket:
            assert (await socket.receive_json())["t"] == "hello"


async def test_the_limits_of_a_session_are_those_of_the_configuration(open_site):
    async with (
        open_site(wire={"inflight": 3, "rate": 50}) as site,
        site.http(None) as client,
        client.ws_connect("/mk", protocols=["mk.v1"]) as socket,
    ):
        told = (await socket.receive_json())["max"]
    assert (told["inflight"], told["rate"]) == (3, 50)


async def test_a_stop_of_the_gateway_ends_sessions_and_what_they_run(site):
    site.script.hold_after = 1

    async def read(system) -> None:
        async for _ in system.stream("inference.chat", messages=[{"role": "user", "content": "Hi"}]):
            pass

    async with connect(site.url, token=site.system.token) as system:
        reading = asyncio.create_task(read(system))
        await site.script.holding.wait()
        await site.system.restart("gateway")
        with pytest.raises(MicrokernelError):
            await reading
    assert site.system.calls_in_flight() == {}
