"""The stock `openai` client asks for vectors, over real sockets, of a tiny encoder."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator

import openai
import pytest

from microkernel.testing import TestKernel
from services.gateway.embeddings_route import IN_THREAD
from services.gateway.service import Gateway

TEXTS = ["the cat sat on the mat.", "", "dogs?"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from tiny_bert import write_tiny_bert

    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
async def system(tiny, bert) -> AsyncIterator[TestKernel]:
    from inference_node import SERVICES

    settings = {
        "gateway": {"port": 0, "drain_seconds": 0.0},
        "inference": {"model": str(tiny), "embedding_model": str(bert)},
    }
    async with TestKernel(*SERVICES, Gateway, settings=settings) as opened:
        yield opened


@pytest.fixture
async def url(system) -> str:
    return (await system.call("gateway.address")).url


@pytest.fixture
async def client(system, url) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=system.token, max_retries=0) as made:
        yield made


async def vectors(system, texts) -> list[list[float]]:
    found = await system.call("inference.embed", texts=texts)
    numbers = found.vectors.view().cast("f").tolist()
    return [numbers[start : start + found.dimensions] for start in range(0, len(numbers), found.dimensions)]


async def test_texts_have_vectors_in_their_order(client, system):
    answer = await client.embeddings.create(model="tiny-bert", input=TEXTS)
    assert [(item.index, item.object) for item in answer.data] == [(0, "embedding"), (1, "embedding"), (2, "embedding")]
    assert [item.embedding for item in answer.data] == await vectors(system, TEXTS)
    assert (answer.object, answer.model) == ("list", "tiny-bert")
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (16, 16)


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_one_text_and_both_encodings_say_the_same(client, system, encoding):
    answer = await client.embeddings.create(model="", input="the cat", encoding_format=encoding)
    [expected] = await vectors(system, ["the cat"])
    [item] = answer.data
    if encoding == "base64":
        raw = base64.b64decode(item.embedding)
        assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == expected
    else:
        assert item.embedding == pytest.approx(expected, rel=1e-6)


async def test_many_texts_are_answered_from_a_thread(client):
    texts = ["the cat sat on the mat"] * (IN_THREAD // 128 + 1)
    answer = await client.embeddings.create(model="tiny-bert", input=texts)
    assert len(answer.data) == len(texts)
    assert answer.data[0].embedding == pytest.approx(answer.data[-1].embedding, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": [1, 2, 3]}, "input", "unsupported_parameter"),
        ({"input": [[1, 2], [3]]}, "input", "unsupported_parameter"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["a", 1]}, "input[1]", "invalid_value"),
        ({"input": "a", "dimensions": 7}, "dimensions", "invalid_value"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"input": ["a", "x" * (1 << 20) + "x"]}, "input[1]", "invalid_value"),
        ({"input": "x" * (1 << 20) + "x"}, "input[0]", "invalid_value"),
        ({"input": "a", "model": "m" * 600}, "model", "invalid_value"),
    ],
)
async def test_what_is_wrong_is_named(client, fields, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.embeddings.create(**{"model": "tiny-bert", "encoding_format": "float", **fields})
    expected = "input" if param == "input[0]" else param
    assert (caught.value.param, caught.value.code) == (expected, code)


async def test_a_model_that_is_not_there_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.embeddings.create(model="text-embedding-3-small", input="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_a_body_that_is_not_json_or_names_no_input_is_refused(system, url):
    import aiohttp

    headers = {"Authorization": f"Bearer {system.token}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        for body, param in ((b"{", None), (b"{}", "input"), (b'{"input": null}', "input"), (b"[" * 5000, None)):
            async with session.post("/v1/embeddings", data=body) as response:
                assert response.status == 400
                assert json.loads(await response.read())["error"]["param"] == param


async def test_without_a_token_nothing_is_embedded(url):
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.embeddings.create(model="tiny-bert", input="a")


async def test_the_model_is_listed_once_it_was_asked(client):
    await client.embeddings.create(model="tiny-bert", input="a")
    models = {model.id: model.to_dict() for model in (await client.models.list()).data}
    assert models["tiny-bert"]["embeds"] is True
    assert models["tiny"]["embeds"] is False


async def test_texts_and_chats_at_once_are_all_answered(client):
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=4, temperature=0
    )
    texts = [client.embeddings.create(model="tiny-bert", input=TEXTS) for _ in range(8)]
    answer, *found = await asyncio.gather(chat, *texts)
    assert answer.usage.completion_tokens == 4
    assert {len(each.data) for each in found} == {len(TEXTS)}
