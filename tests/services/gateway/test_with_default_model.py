"""The default model, through the whole stack, by the stock `openai` client."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pydantic
import pytest

pytestmark = pytest.mark.model

ASKED = {
    "model": "",
    "messages": [{"role": "user", "content": "What is the capital of France? Answer in one word."}],
    "temperature": 0,
    "max_tokens": 16,
}


async def test_the_default_model_answers_whole_and_streamed_alike(default_site):
    async with default_site.http(None) as plain, plain.get("/readyz") as response:
        assert response.status == 200
    async with default_site.openai() as client:
        models = [model async for model in client.models.list()]
        assert models[0].default
        answer = await client.chat.completions.create(**ASKED)
        assert "Paris" in answer.choices[0].message.content
        assert answer.model == models[0].id
        assert answer.usage.prompt_tokens > 10
        assert 0 < answer.usage.completion_tokens <= 16
        stream = await client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        assert text == answer.choices[0].message.content
        assert chunks[-1].usage.total_tokens == answer.usage.total_tokens
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0, "its prompt was read before"
        with pytest.raises(openai.NotFoundError) as failure:
            await client.chat.completions.create(**{**ASKED, "model": "no-such-model"})
        assert failure.value.code == "model_not_found"
    assert default_site.system.calls_in_flight() == {}


class City(pydantic.BaseModel):
    """What the default model is asked about."""

    name: str
    country: Literal["France", "Spain", "Italy"]
    inhabitants: int


async def test_the_default_model_answers_by_a_schema_and_says_how_likely_each_token_was(default_site):
    async with default_site.openai() as client:
        asked = {**ASKED, "messages": [{"role": "user", "content": "Describe Paris as JSON."}], "max_tokens": 128}
        answer = await client.chat.completions.parse(**asked, response_format=City, logprobs=True, top_logprobs=3)
        choice = answer.choices[0]
        assert isinstance(choice.message.parsed, City)
        assert choice.finish_reason == "stop"
        assert "".join(one.token for one in choice.logprobs.content) == choice.message.content
        plain = await client.chat.completions.create(**asked, response_format={"type": "json_object"})
        if plain.choices[0].finish_reason == "stop":  # a small model may go on to its limit
            assert isinstance(json.loads(plain.choices[0].message.content), dict)
        word = await client.chat.completions.create(**ASKED, extra_body={"guided_choice": ["Paris", "Rome"]})
        assert word.choices[0].message.content == "Paris"
