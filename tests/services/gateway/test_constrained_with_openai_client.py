"""Grammars, log-probabilities and other words for choosing tokens: the stock client, a real engine, a tiny model."""

from __future__ import annotations

import json
import re
from enum import StrEnum

import openai
import pydantic
import pytest
from tokenizers import pre_tokenizers

ASKED = {"model": "", "messages": [{"role": "user", "content": "Hello"}], "temperature": 1.0, "max_tokens": 300}


# The tiny model knows nothing, and would write spaces and letters without end.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())  # its tokens, by their ids
TERSE = {
    "logit_bias": {
        **{str(ALPHABET.index(letter)): -100 for letter in "ĠĊĉč"},
        **{str(ALPHABET.index(letter)): 20 for letter in '"}]'},
    }
}


class Colour(StrEnum):
    """An enumeration, which schemas have by reference."""

    RED = "red"
    BLUE = "blue"


class Tree(pydantic.BaseModel):
    """A type that contains itself."""

    colour: Colour
    size: int = pydantic.Field(ge=0, le=99)
    children: list[Tree] = pydantic.Field(max_length=1)


def schema_format(schema: object) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


async def test_the_client_parses_an_answer_into_the_type_that_it_asked_for(client):
    answer = await client.chat.completions.parse(**ASKED, **TERSE, response_format=Tree)
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Tree)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"guided_regex": "[a-c]{2}[0-9]"}, "[a-c]{2}[0-9]"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"guided_grammar": 'root ::= "a" root "b" | "c"'}, "a*cb*"),
        ({"guided_json": {"enum": [1, "x"]}}, '1|"x"'),
        ({"structured_outputs": {"regex": "x{4}"}}, "x{4}"),
        ({"structured_outputs": {"choice": ["only"]}}, "only"),
    ],
    ids=str,
)
async def test_vllms_words_for_it_are_understood_whole_and_streamed_alike(client, fields, expected):
    asked = {**ASKED, "seed": 3, "extra_body": fields}
    answer = await client.chat.completions.create(**asked)
    assert re.fullmatch(expected, answer.choices[0].message.content)
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"response_format": schema_format({"type": "wizard"})}, "response_format", "wizard"),
        ({"response_format": schema_format({"type": "string", "format": "no-such"})}, "response_format", "no-such"),
        ({"response_format": schema_format({"$ref": "#/$defs/none"})}, "response_format", "none"),
        ({"response_format": schema_format({"$ref": "https://example.com/x"})}, "response_format", "example.com"),
        ({"response_format": schema_format({"enum": ["a" * 70_000]})}, "response_format", "at most 65536"),
        ({"response_format": schema_format({"enum": ["a" * 300_000]})}, "response_format", "256 KiB"),
        ({"extra_body": {"guided_regex": "(("}}, "guided_regex", "unclosed"),
        ({"extra_body": {"guided_choice": []}}, "guided_choice", "choices"),
        ({"extra_body": {"guided_grammar": "start: nothing"}}, "guided_grammar", "nothing"),
        ({"extra_body": {"structured_outputs": {"json": {"not": {}}}}}, "structured_outputs.json", "not"),
        ({"logit_bias": {"70000": 1}}, "logit_bias", "70000"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "101"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "21"),
        ({"extra_body": {"min_tokens": 301}}, "min_tokens", "301"),
        ({"extra_body": {"stop_token_ids": [-4]}}, "stop_token_ids", "-4"),
        ({"extra_body": {"guided_regex": "a", "ignore_eos": True}}, "ignore_eos", "grammar"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_bad_demand_is_an_error_that_names_the_clients_field(client, fields, param, why, stream):
    with pytest.raises(openai.BadRequestError) as failure:
        await client.chat.completions.create(**ASKED, **fields, stream=stream)
    assert failure.value.param == param
    assert why in failure.value.message


async def test_an_answer_that_cannot_go_on_names_the_clients_field_in_mid_stream(client):
    fields = {"guided_regex": "ab", "stop_token_ids": [ALPHABET.index("b")]}
    stream = await client.chat.completions.create(**ASKED, extra_body=fields, stream=True)
    with pytest.raises(openai.APIError, match="allows nothing") as failure:
        [chunk async for chunk in stream]
    assert failure.value.param == "guided_regex"


async def test_log_probabilities_come_in_openais_shape_whole_and_streamed(client):
    asked = {**ASKED, "seed": 1, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    answer = await client.chat.completions.create(**asked)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 20
    assert (
        bytes(byte for one in content for byte in one.bytes).decode(errors="replace")
        == answer.choices[0].message.content
    )
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in content)
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert streamed == content


async def test_who_does_not_ask_for_log_probabilities_gets_null(client):
    answer = await client.chat.completions.create(**ASKED)
    assert answer.choices[0].logprobs is None


async def test_json_mode_gives_an_object(client):
    answer = await client.chat.completions.create(**ASKED, **TERSE, response_format={"type": "json_object"})
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(answer.choices[0].message.content), dict)
