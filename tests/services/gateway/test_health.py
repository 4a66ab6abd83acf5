"""Alive, ready, and what this is: without a token."""

from __future__ import annotations

import asyncio

from microkernel.errors import PreconditionFailed
from microkernel.service import Service
from microkernel.testing import TestKernel
from services.gateway.service import Gateway


async def test_the_front_page_says_what_this_is_without_a_token(site):
    async with site.http(None) as client, client.get("/") as response:
        assert response.status == 200
        about = await response.json()
    assert about["name"] == "microkernel"
    assert about["openai_api"] == "/v1"
    assert about["docs"]


async def test_a_node_is_alive_before_it_is_ready_and_says_what_it_waits_for(open_site, script):
    script.ready.clear()
    async with open_site(wait_ready=False) as site, site.http(None) as client:
        async with client.get("/livez") as response:
            assert response.status == 200
        async with client.get("/readyz") as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert "inference" in (await response.json())["unready"]
        script.ready.set()
        await site.system.until("inference", "ready")
        async with client.get("/readyz") as response:
            assert response.status == 200
            assert await response.json() == {"status": "ready"}


async def test_reasons_are_told_only_to_who_has_the_token(open_site, script):
    class Broken(Service):
        name = "broken"

        async def start(self) -> None:
            raise PreconditionFailed("no room in /secret/path")

    script.ready.clear()
    async with open_site(wait_ready=False, services=(Broken,)) as site:
        async with asyncio.timeout(10):
            while True:
                async with site.http() as client, client.get("/readyz") as response:
                    told = (await response.json())["unready"]
                if "/secret/path" in told.get("broken", ""):
                    break
                await asyncio.sleep(0.01)
        for token in (None, "wrong-token-of-some-length"):
            async with site.http(token) as client, client.get("/readyz") as response:
                assert response.status == 503
                hidden = (await response.json())["unready"]
            assert hidden.keys() == told.keys()
            assert "/secret/path" not in str(hidden)
            assert all(word.isalpha() for word in hidden.values())
        script.ready.set()


async def test_a_node_whose_inference_restarts_is_not_ready(site):
    site.script.ready.clear()
    async with site.http(None) as client:
        await site.system.restart("inference")
        async with client.get("/readyz") as response:
            assert response.status == 503
        site.script.ready.set()
        await site.system.until("inference", "ready")
        async with client.get("/readyz") as response:
            assert response.status == 200


async def test_a_node_without_inference_is_told_by_the_routes_that_need_it():
    import aiohttp

    async with TestKernel(Gateway, settings={"gateway": {"port": 0}}) as system:
        url = (await system.call("gateway.address")).url
        headers = {"Authorization": f"Bearer {system.token}"}
        async with aiohttp.ClientSession(url, headers=headers) as client:
            for path in ("/v1/models", "/v1/models/beta"):
                async with client.get(path) as response:
                    assert response.status == 503
                    assert "no inference" in (await response.json())["error"]["message"]
            asked = {"messages": [{"role": "user", "content": "Hello"}]}
            async with client.post("/v1/chat/completions", json=asked) as response:
                assert response.status == 503
                assert "no inference" in (await response.json())["error"]["message"]
