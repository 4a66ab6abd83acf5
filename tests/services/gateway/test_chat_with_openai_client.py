"""The stock `openai` client, over real sockets."""

from __future__ import annotations

import asyncio

import openai
import pytest

from microkernel.errors import (
    DeadlineExceeded,
    Denied,
    Internal,
    Invalid,
    Overloaded,
    TooBig,
    Unavailable,
)

HELLO = [{"role": "user", "content": "Hello"}]


async def test_a_chat_comes_back_whole(site):
    async with site.openai() as client:
        answer = await client.chat.completions.create(model="beta", messages=HELLO)
    assert answer.choices[0].message.content == "Hello, world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "beta"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 3, 8)
    assert site.system.calls_in_flight() == {}


async def test_a_chat_is_streamed_as_openai_streams_it(site):
    async with site.openai() as client:
        stream = await client.chat.completions.create(
            model="beta", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello, world"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 8
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_what_the_client_asks_arrives_at_inference(site):
    async with site.openai() as client:
        await client.chat.completions.create(
            model="org/alpha",
            messages=[
                {"role": "developer", "content": "Be brief"},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ana"},
            ],
            max_completion_tokens=9,
            temperature=0.5,
            top_p=0.9,
            presence_penalty=1,
            frequency_penalty=-1,
            seed=3,
            stop="END",
            extra_body={"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.1},
        )
    asked = site.script.asked[0]
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert asked.messages[1].content == [{"type": "text", "text": "Hi"}]
    assert asked.messages[1].name == "ana"
    assert (asked.model, asked.max_tokens, asked.stop, asked.seed) == ("org/alpha", 9, ["END"], 3)
    assert (asked.temperature, asked.top_p, asked.top_k, asked.min_p) == (0.5, 0.9, 40, 0.1)
    assert (asked.presence_penalty, asked.frequency_penalty, asked.repetition_penalty) == (1.0, -1.0, 1.1)
    assert asked.owner == "root"
    assert site.script.calls[0].user == "root"


async def test_models_that_answer_are_listed_with_the_default_one_first(site):
    async with site.openai() as client:
        models = [model async for model in client.models.list()]
    assert [model.id for model in models] == ["org/alpha", "aardvark", "beta", "abacus"]
    assert models[0].object == "model"
    assert models[0].created == 1
    assert models[0].owned_by == "microkernel"
    assert models[0].max_model_len == 2048


async def test_a_model_is_shown_by_a_name_with_a_slash(site):
    async with site.openai() as client:
        assert (await client.models.retrieve("org/alpha")).id == "org/alpha"


async def test_an_unknown_model_is_not_found(site):
    async with site.openai() as client:
        with pytest.raises(openai.NotFoundError) as shown:
            await client.models.retrieve("zeta")
        with pytest.raises(openai.NotFoundError) as asked:
            await client.chat.completions.create(model="zeta", messages=HELLO)
    for failure in (shown.value, asked.value):
        assert failure.code == "model_not_found"
        assert failure.param == "model"
        assert "zeta" in failure.message


async def test_a_model_that_loads_is_unavailable_and_says_why(site):
    async with site.openai() as client:
        with pytest.raises(openai.InternalServerError, match="weights 12 of 90 MiB") as failure:
            await client.models.retrieve("gamma")
    assert failure.value.status_code == 503
    assert failure.value.response.headers["Retry-After"] == "1"


async def test_a_model_that_is_loaded_when_asked_is_shown(site):
    async with site.openai() as client:
        assert (await client.models.retrieve("abacus")).state == "stored"


async def test_a_wrong_token_is_refused(site):
    async with site.openai("mk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as failure:
            await client.chat.completions.create(model="beta", messages=HELLO)
    assert failure.value.code == "invalid_api_key"
    assert failure.value.response.headers["WWW-Authenticate"].startswith("Bearer")
    assert site.script.asked == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (Invalid("temperature is odd", field="temperature"), openai.BadRequestError, 400),
        (Denied("not yours"), openai.PermissionDeniedError, 403),
        (TooBig("the prompt has 9000 tokens, at most 2048"), openai.APIStatusError, 413),
        (Overloaded("12 wait", retry_after=2.5), openai.RateLimitError, 429),
        (Unavailable("the device is gone"), openai.InternalServerError, 503),
        (DeadlineExceeded("too late"), openai.InternalServerError, 504),
        (Internal("a defect"), openai.InternalServerError, 500),
        (ValueError("a surprise"), openai.InternalServerError, 500),
    ],
)
async def test_an_error_before_the_first_piece_is_an_http_error(site, error, raised, status, stream):
    site.script.error = error
    async with site.openai() as client:
        with pytest.raises(raised, match=str(error.args[0])) as failure:
            await client.chat.completions.create(model="beta", messages=HELLO, stream=stream)
    assert failure.value.status_code == status
    assert "Traceback" not in failure.value.response.text
    if status == 400:
        assert failure.value.param == "temperature"
    if status == 429:
        assert failure.value.response.headers["Retry-After"] == "3"
        assert failure.value.response.headers["Retry-After-Ms"] == "2500"


async def test_an_error_in_the_middle_of_a_stream_is_raised_by_the_client(site):
    site.script.error, site.script.error_after = Unavailable("the device is gone"), 1
    chunks = []

    async def read(stream) -> None:
        async for chunk in stream:
            chunks.append(chunk.choices[0].delta.content or "")  # noqa: PERF401 - what came before the error counts

    async with site.openai() as client:
        stream = await client.chat.completions.create(model="beta", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="the device is gone"):
            await read(stream)
    assert "".join(chunks) == "Hello"
    await asyncio.sleep(0)  # the client leaves a generator to the loop to be closed


async def test_an_answer_that_breaks_off_is_an_error(site):
    site.script.finish_reason = None
    async with site.openai() as client:
        with pytest.raises(openai.InternalServerError, match="broke off"):
            await client.chat.completions.create(model="beta", messages=HELLO)


@pytest.mark.parametrize(("asked", "told"), [("flex", "flex"), ("auto", "default"), (None, None)])
async def test_who_asks_for_a_tier_is_told_which_it_was(site, asked, told):
    fields = {"model": "beta", "messages": HELLO} | ({} if asked is None else {"service_tier": asked})
    async with site.openai() as client:
        whole = await client.chat.completions.create(**fields)
        chunks = [chunk async for chunk in await client.chat.completions.create(**fields, stream=True)]
    assert whole.service_tier == told
    assert {chunk.service_tier for chunk in chunks} == {told}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"messages": []}, "messages"),
        ({"n": 200}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f f"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": [5]}, "logit_bias"),
    ],
)
async def test_a_bad_or_unsupported_field_is_named(site, fields, param):
    async with site.openai() as client:
        with pytest.raises(openai.BadRequestError) as failure:
            await client.chat.completions.create(**{"model": "beta", "messages": HELLO, **fields})
    assert failure.value.param == param
    assert failure.value.type == "invalid_request_error"
    assert site.script.asked == []
