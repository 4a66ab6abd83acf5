"""Whatever is sent over HTTP, the answer is ours: never a 5xx, always OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microkernel.testing import TestKernel
from services.gateway.openai_request import ChatRequest
from services.gateway.service import Gateway

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
REQUESTS = st.fixed_dictionaries(
    {
        "messages": st.just([{"role": "user", "content": "Hello"}])
        | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": JSON}), max_size=3)
    },
    optional={
        "model": st.sampled_from(["beta", "zeta", ""]) | JSON,
        "stream": st.booleans(),
        "temperature": st.floats(-1, 3),
        "max_tokens": st.integers(-1, 5),
        "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=3),
    },
)
ANYTHING = st.dictionaries(st.sampled_from(sorted(ChatRequest.__struct_fields__)) | st.text(), JSON, max_size=4)
BODIES = st.one_of(
    REQUESTS.map(lambda value: json.dumps(value).encode()),
    st.tuples(REQUESTS, ANYTHING).map(lambda both: json.dumps(both[0] | both[1]).encode()),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=64),
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """A loop for all examples."""
    with asyncio.Runner() as one:
        yield one


@pytest.fixture(scope="module")
def ask(runner, eloquent):
    """Posts a body to one gateway: status and text."""

    system = TestKernel(eloquent, Gateway, settings={"gateway": {"port": 0}})

    async def open_client() -> aiohttp.ClientSession:
        await system.__aenter__()
        url = (await system.call("gateway.address")).url
        return aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {system.token}"})

    async def post(client: aiohttp.ClientSession, body: bytes) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        async with client.post("/v1/chat/completions", data=body, headers=headers) as response:
            return response.status, await response.text()

    async def close(client: aiohttp.ClientSession) -> None:
        await client.close()
        assert system.calls_in_flight() == {}
        await system.__aexit__(None, None, None)

    client = runner.run(open_client())
    yield lambda body: runner.run(post(client, body))
    runner.run(close(client))


@settings(deadline=None, max_examples=150)
@given(body=BODIES)
def test_any_body_is_answered_or_refused_and_never_an_error_of_ours(ask, body):
    status, text = ask(body)
    if status == 200:
        assert text.endswith("data: [DONE]\n\n") or json.loads(text)["choices"]
        return
    assert status in {400, 404}
    error = json.loads(text)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
