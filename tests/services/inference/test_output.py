"""What a request demands of its answer, through the service: grammars, end tokens, biases, log-probabilities."""

from __future__ import annotations

import asyncio
import json
import math
import re
from contextlib import asynccontextmanager

import pytest
import tokenizers
from tiny_model import SPECIAL, write_tiny_model
from tokenizers import AddedToken, decoders, models, normalizers

from microkernel.errors import Invalid
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.inference.service import Inference
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@asynccontextmanager
async def node(tiny, **settings):
    services = (Devices, Memory, Models, Scheduler, Inference)
    async with TestKernel(*services, settings={"inference": {"model": str(tiny), **settings}}) as system:
        yield system


async def answer(system, **fields):
    """The text of a chat, its log-probabilities, and its last piece."""
    fields = {"messages": HELLO, "temperature": 1.0, "seed": 1, "max_tokens": 200, **fields}
    pieces = [piece async for piece in system.stream("inference.chat", **fields)]
    told = [one for piece in pieces for one in piece.logprobs]
    return "".join(piece.text for piece in pieces), told, pieces[-1]


async def test_an_answer_fits_its_grammar_and_ends_with_it_beside_others_that_have_none(tiny):
    grammars = [{"json_schema": SCHEMA}, None, {"regex": "[a-z]{3}-[0-9]{2}"}, {"choice": ["yes", "no"]}]
    async with node(tiny) as system:
        alone, *_ = await answer(system, max_tokens=20)
        answers = await asyncio.gather(
            *(answer(system, grammar=grammar, max_tokens=200 if grammar else 20) for grammar in grammars)
        )
    texts = [text for text, _, _ in answers]
    assert set(json.loads(texts[0])) == {"name", "age"}
    assert texts[1] == alone
    assert re.fullmatch("[a-z]{3}-[0-9]{2}", texts[2])
    assert texts[3] in {"yes", "no"}
    assert [last.finish_reason for _, _, last in answers] == ["stop", "length", "stop", "stop"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"grammar": {"regex": "(("}}, "grammar"),
        ({"grammar": {}}, "grammar"),
        ({"grammar": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"min_tokens": 201}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"logit_bias": {"x": 1.0}}, "logit_bias"),
        ({"logit_bias": {"100000": 1.0}}, "logit_bias"),
        ({"logit_bias": {"1": 100.5}}, "logit_bias"),
        ({"logit_bias": {str(token): 1.0 for token in range(1025)}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
    ],
)
async def test_a_demand_that_no_answer_can_meet_names_its_field_and_costs_nobody_anything(tiny, fields, field):
    async with node(tiny) as system:
        with pytest.raises(Invalid) as refused:
            await answer(system, **fields)
        assert refused.value.field == field
        assert await system.call("scheduler.list") == []


async def test_log_probabilities_come_with_the_text_that_their_tokens_make(tiny):
    async with node(tiny) as system:
        plain, none, _ = await answer(system, max_tokens=30)
        text, told, _ = await answer(system, max_tokens=30, logprobs=2)
    assert (plain, none) == (text, [])
    assert len(told) == 30
    assert b"".join(bytes(one.bytes) for one in told).decode("utf-8", "replace") == text
    for one in told:
        assert math.exp(one.logprob) <= 1
        assert len(one.top) == 2
        assert one.top[0].logprob >= one.top[1].logprob
        assert one.logprob <= one.top[0].logprob + 1e-5


async def test_log_probabilities_are_cut_with_the_text_before_a_stop_string(tiny):
    async with node(tiny) as system:
        grammar = {"regex": "abcdefghij"}
        text, told, last = await answer(system, grammar=grammar, logprobs=0, stop=["efg"])
    assert (text, last.finish_reason) == ("abcd", "stop")
    assert "".join(one.text for one in told) == "abcd"


async def test_stop_tokens_of_a_request_end_its_answer_after_its_min_tokens(tiny):
    async with node(tiny) as system:
        _, told, _ = await answer(system, max_tokens=40, temperature=0, logprobs=0)
        tokens = [one.token for one in told]
        _, told, last = await answer(system, max_tokens=40, temperature=0, stop_token_ids=[tokens[3]], logprobs=0)
        assert [one.token for one in told] == tokens[: tokens.index(tokens[3])]
        assert last.finish_reason == "stop"
        _, told, _ = await answer(
            system, max_tokens=40, temperature=0, stop_token_ids=[tokens[3]], min_tokens=10, logprobs=0
        )
        assert len(told) >= 10
        assert tokens[3] not in [one.token for one in told]


async def test_a_biased_token_comes_or_never_comes(tiny):
    async with node(tiny) as system:
        [letter] = [one.token for one in (await answer(system, max_tokens=1, grammar={"regex": "a"}, logprobs=0))[1]]
        text, *_ = await answer(system, max_tokens=5, logit_bias={str(letter): 100.0})
        assert text == "aaaaa"
        text, *_ = await answer(system, max_tokens=50, logit_bias={str(letter): -100.0})
        assert "a" not in text


async def test_an_end_token_is_ignored_where_that_is_asked(tmp_path):
    async with node(write_tiny_model(tmp_path / "tiny", never_stops=False)) as system:
        end = {"logit_bias": {"258": 100.0}, "max_tokens": 6}
        _, _, last = await answer(system, **end)
        assert (last.finish_reason, last.usage.completion_tokens) == ("stop", 1)
        _, _, last = await answer(system, **end, ignore_eos=True)
        assert (last.finish_reason, last.usage.completion_tokens) == ("length", 6)


async def test_the_first_space_of_a_grammar_is_shown_also_by_a_tokenizer_that_takes_one_off(tmp_path):
    folder = write_tiny_model(tmp_path / "tiny")
    names = ["▁", "a", *(f"<0x{byte:02X}>" for byte in range(0xF8))]
    library = tokenizers.Tokenizer(
        models.BPE({name: place for place, name in enumerate(names)}, [], byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    library.save(str(folder / "tokenizer.json"))
    async with node(folder) as system:
        assert (await answer(system, grammar={"regex": " a{3}"}))[0] == " aaa"
