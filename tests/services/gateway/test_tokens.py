"""Signed tokens at the door: rights, ceiling, rate, expiry and revocation, and what is audited of those kept out."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import openai
import pytest

from microkernel.errors import Denied, MicrokernelError, Overloaded, Unauthenticated
from microkernel.token import make_block, narrow
from microkernel.wire.client import connect

HELLO = {"model": "beta", "messages": [{"role": "user", "content": "Hello"}]}


async def made(site: Any, **fields: Any) -> Any:
    return await site.system.call("kernel.token_create", {"user": "ana", "allow": ["inference.*"], **fields})


async def test_a_signed_token_opens_the_door_for_its_user(site):
    token = (await made(site)).token
    async with site.openai(token) as client:
        await client.chat.completions.create(model="beta", messages=HELLO["messages"])
    async with connect(site.url, token=token) as system:
        assert system.user == "ana"
        await system.call("inference.list")
        with pytest.raises(Denied):
            await system.call("kernel.status")
    assert site.script.calls[0].user == "ana"


async def test_a_token_that_its_holder_has_narrowed_does_less_and_no_node_was_asked(site):
    token = narrow((await made(site)).token, make_block(allow=["inference.list"]))
    async with site.openai(token) as client:
        assert [model.id async for model in client.models.list()]
        with pytest.raises(openai.PermissionDeniedError, match="no right to call inference.chat"):
            await client.chat.completions.create(model="beta", messages=HELLO["messages"])


@pytest.mark.parametrize("over", ["http", "wire"])
async def test_no_call_is_more_urgent_than_the_token_allows(site, over):
    token = (await made(site, top_priority=7)).token
    if over == "http":
        async with site.http(token) as client, client.post("/v1/chat/completions", json=HELLO) as response:
            assert response.status == 200
    else:
        async with connect(site.url, token=token) as system:
            async for _ in system.stream("inference.chat", HELLO, priority=0):
                pass
    assert [call.priority for call in site.script.calls] == [7]


async def test_a_token_is_asked_with_no_more_often_than_its_rate_whoever_narrows_it(site):
    token = (await made(site, rate=0.01, burst=3)).token
    others = [narrow(token, make_block(rate=1000.0, burst=1000)) for _ in range(3)]
    statuses = []
    for each in [token, *others, token]:
        async with site.http(each) as client, client.get("/v1/models") as response:
            statuses.append(response.status)
            again = response.headers.get("Retry-After")
    assert statuses == [200, 200, 200, 429, 429]
    assert int(again) > 1
    async with site.http() as client, client.get("/v1/models") as response:
        assert response.status == 200


async def test_links_and_requests_with_one_token_share_its_rate(site):
    token = (await made(site, rate=0.01, burst=4)).token
    async with connect(site.url, token=token) as one, connect(site.url, token=narrow(token, make_block())) as two:
        for system in (one, two, one):
            assert await system.call("inference.list")
        async with site.http(token) as client, client.get("/v1/models") as response:
            assert response.status == 200
        for system in (one, two):
            with pytest.raises(Overloaded, match="token") as caught:
                await system.call("inference.list")
            assert (caught.value.retry_after or 0) > 1


async def test_an_expired_token_is_told_that_it_is(site, monkeypatch):
    token = (await made(site, expires_in=60.0)).token
    wall = site.system.kernel.tokens._wall
    monkeypatch.setattr(site.system.kernel.tokens, "_wall", lambda: wall() + 61)
    async with site.http(token) as client, client.get("/v1/models") as response:
        assert response.status == 401
        assert "expired" in (await response.json())["error"]["message"]
    with pytest.raises(Unauthenticated, match="expired"):
        async with connect(site.url, token=token):
            pass


async def test_an_answer_that_is_being_streamed_ends_when_its_token_is_revoked_and_no_other_does(site):
    site.script.hold_after = 1
    token, other = (await made(site)).token, (await made(site)).token
    async with site.http(narrow(token, make_block())) as client, site.http(other) as bystander:
        async with (
            client.post("/v1/chat/completions", json={**HELLO, "stream": True}) as response,
            bystander.get("/v1/models") as models,
        ):
            assert (response.status, models.status) == (200, 200)
            await site.script.holding.wait()
            await site.system.call("kernel.token_revoke", token=token)
            with pytest.raises(aiohttp.ClientError):
                await response.content.read()
        await site.script.ended.wait()
        async with client.get("/v1/models") as response:
            assert response.status == 401
            assert "revoked" in (await response.json())["error"]["message"]
        async with bystander.get("/v1/models") as response:
            assert response.status == 200


async def test_who_is_kept_out_is_audited_with_the_address_they_came_from(site):
    revoked = (await made(site)).token
    await site.system.call("kernel.token_revoke", token=revoked)
    async with site.system.subscribe("audit.denied") as audited:
        for token in ("mk-wrong", None, revoked, "x" * 5000):
            async with site.http(token) as client, client.get("/v1/models") as response:
                assert response.status == 401
        async with site.http() as client, client.get("/livez", headers={"Host": "evil.example"}) as response:
            assert response.status == 421
        with pytest.raises(Unauthenticated):
            async with connect(site.url, token="mk-wrong-as-well"):
                pass
        told = [(await asyncio.wait_for(anext(audited), 10)).body for _ in range(5)]
    assert [(each.act, each.target, each.user) for each in told] == [
        ("authenticate", "token", None),
        ("authenticate", "/v1/models", None),
        ("authenticate", "token", "ana"),
        ("authenticate", "token", None),
        ("connect", "/livez", None),
    ]
    assert {each.peer for each in told} == {"127.0.0.1"}
    assert told[2].why == "the token was revoked"


async def test_a_wrong_token_over_the_websocket_is_audited_with_its_address(site):
    async with site.system.subscribe("audit.denied") as audited:
        with pytest.raises(Unauthenticated):
            async with connect(site.url, token="mk-wrong-mk-wrong"):
                pass
        denial = (await anext(audited)).body
    assert (denial.act, denial.peer) == ("authenticate", "127.0.0.1")


async def test_events_over_the_wire_follow_rights_of_their_own(site):
    token = (await made(site, publish=["colour.>"], subscribe=["colour.*"])).token
    async with connect(site.url, token=token) as system, site.system.subscribe("colour.>") as heard:
        await system.publish("colour.red.dark", n=1)
        assert (await anext(heard)).subject == "colour.red.dark"
        async with system.subscribe("colour.*") as events:
            await system.publish("colour.red", n=2)
            assert (await anext(events)).body.n == 2
        for beyond in ("colour.>", "inference.loaded", "inference.*"):
            with pytest.raises(Denied, match="no right"):
                async with system.subscribe(beyond) as events:
                    await anext(events)


async def test_a_session_ends_when_its_token_is_revoked_and_no_other_does(site):
    token, other = (await made(site)).token, (await made(site)).token
    site.script.endless = True
    async with (
        connect(site.url, token=narrow(token, make_block())) as system,
        connect(site.url, token=other) as another,
    ):
        stream = system.stream("inference.chat", HELLO)
        await anext(stream)
        await site.system.call("kernel.token_revoke", token=token)
        with pytest.raises(MicrokernelError, match="revoked"):
            async for _ in stream:
                pass
        await site.script.ended.wait()
        assert await another.call("inference.list")
    with pytest.raises(Unauthenticated, match="revoked"):
        async with connect(site.url, token=token):
            pass


async def test_a_new_key_ends_all_sessions_but_those_of_the_nodes_own_token(site):
    token = (await made(site)).token
    async with connect(site.url, token=token) as system, connect(site.url, token=site.system.token) as own:
        async with system.subscribe("inference.>") as events:
            await own.call("kernel.token_rotate")
            with pytest.raises(MicrokernelError):
                await anext(events)
        assert await own.call("kernel.status")
    async with site.http(token) as client, client.get("/v1/models") as response:
        assert response.status == 401


async def test_a_page_of_another_origin_is_audited(site):
    async with site.system.subscribe("audit.denied") as audited, site.http(None) as client:
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await client.ws_connect("/mk", protocols=["mk.v1"], origin="https://evil.example")
        denial = (await anext(audited)).body
    assert (denial.act, denial.target, denial.peer) == ("connect", "/mk", "127.0.0.1")
    assert "https://evil.example" in denial.why


async def test_a_session_lasts_no_longer_than_its_token(site):
    token = (await made(site, subscribe=["inference.>"], expires_in=0.5)).token
    async with connect(site.url, token=token) as system, system.subscribe("inference.>") as events:
        with pytest.raises(MicrokernelError, match="expired"):
            await anext(events)
