"""From OpenAI's client through a node to somebody else's server and back: what goes through, and how it fails."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from fake_model_server import DONE, FakeServer, event, refuses, said, says, usage
from inference_node import HELLO

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}


@pytest.fixture
async def fake():
    async with FakeServer() as server:
        yield server


@pytest.fixture
async def client(asking, fake):
    async with asking({"name": "s0", "url": fake.url}) as system:
        url = (await system.call("gateway.address")).url
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=system.token, max_retries=0) as made:
            made.system = system
            yield made


async def test_a_tool_is_asked_for_and_its_call_comes_back_whole_and_streamed(client, fake):
    fake.answer = says(said(tool_calls=[CALL]), said(finish="tool_calls"), usage(9, 4), DONE)
    asked = {"model": "m", "messages": HELLO, "tools": [ADD], "tool_choice": "required"}
    whole = await client.chat.completions.create(**asked)
    (call,) = whole.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 2})
    assert whole.choices[0].finish_reason == "tool_calls"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (9, 4)
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    assert [part.function.arguments for part in parts] == ['{"a": 2}']
    assert fake.posts[0].json["tools"] == [ADD]
    assert fake.posts[0].json["tool_choice"] == "required"


async def test_what_a_tool_has_said_goes_back_as_it_is(client, fake):
    turns = [
        *HELLO,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{name: CALL[name] for name in ("id", "type", "function")}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
    ]
    await client.chat.completions.create(model="m", messages=turns)
    assert fake.posts[0].json["messages"] == turns


async def test_tools_are_refused_by_the_nodes_own_model(client):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="tiny", messages=HELLO, tools=[ADD])
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (refuses(429, Retry_After="7"), openai.RateLimitError, "too many requests"),
        (refuses(400, b'{"error": {"message": "bad", "param": "seed"}}'), openai.BadRequestError, "s0: .*bad"),
        (refuses(401), openai.BadRequestError, "asks for a key"),
        (refuses(404), openai.NotFoundError, "no model 'm'"),
        (refuses(500), openai.InternalServerError, "it failed"),
        (says(b"<html>"), openai.InternalServerError, "broke off"),
    ],
)
async def test_a_refusal_over_there_is_an_http_error_here(client, fake, answer, kind, words):
    fake.answer = answer
    with pytest.raises(kind, match=words):
        await client.chat.completions.create(model="m", messages=HELLO, temperature=1.0)


async def test_the_time_to_come_back_is_told_on(client, fake):
    fake.answer = refuses(429, Retry_After="7")
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="m", messages=HELLO)
    assert caught.value.response.headers["Retry-After"] == "7"


async def test_an_error_after_some_text_is_an_event_of_the_stream(client, fake):
    fake.answer = says(said("Hel"), event(error={"message": "out of memory"}))
    stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True, temperature=1.0)
    while (await anext(stream)).choices[0].delta.content != "Hel":
        pass
    with pytest.raises(openai.APIError, match="s0 broke off after 1 tokens: .*out of memory"):
        await anext(stream)


async def test_a_client_that_leaves_closes_the_connection_over_there(client, fake):
    async def endless(exchange):
        await exchange.start()
        while True:
            await exchange.write(said("x"))
            await asyncio.sleep(0.005)

    fake.answer = endless
    stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    await stream.close()
    await fake.closed.wait()
    while await client.system.call("scheduler.list"):
        await asyncio.sleep(0.01)


async def test_whose_answer_it_is_and_what_it_cost_is_in_the_table(client):
    await client.chat.completions.create(model="m", messages=HELLO)
    (process,) = await client.system.call("scheduler.list", ended=True)
    assert (process.owner, process.device, process.tokens_in, process.tokens_out) == ("root", "s0", 5, 2)


async def test_no_user_and_no_token_of_ours_is_told_to_the_server(client, fake):
    await client.chat.completions.create(model="m", messages=HELLO, user="ana@example.org")
    (post,) = fake.posts
    assert "authorization" not in post.headers
    assert b"ana@example.org" not in post.body
    assert client.system.token.encode() not in post.body
