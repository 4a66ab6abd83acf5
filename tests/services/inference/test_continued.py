"""An answer goes on behind tokens that were made elsewhere: with the text that it would have had there."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
from inference_node import HELLO, SERVICES
from linked_nodes import linked
from tiny_model import write_tiny_model

from microkernel.errors import Invalid, Unavailable
from microkernel.testing import TestKernel
from services.inference.service import Inference

ASKED = {"messages": HELLO, "max_tokens": 60, "temperature": 1.0, "seed": 11}
WAYS = {
    "greedy": {"temperature": 0.0},
    "seeded": {},
    "cut to few": {"top_k": 5, "top_p": 0.9},
    "with penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    "up to a stop": {"stop": ["zzz", "e"], "max_tokens": 40},
    "fitting a grammar": {"grammar": {"regex": "[a-z]{1,30}"}},
    "of some length": {"min_tokens": 30, "ignore_eos": True},
    "with a bias": {"logit_bias": {"5": 4.0}},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@asynccontextmanager
async def node(tiny, **settings):
    async with TestKernel(*SERVICES, settings={"inference": {"model": str(tiny), **settings}}) as system:
        yield system


async def pieces_of(system, **asked):
    return [piece async for piece in system.stream("inference.chat", **asked)]


def text_of(pieces):
    return "".join(piece.text for piece in pieces)


def tokens_of(pieces):
    return [token for piece in pieces for token in piece.token_ids]


@pytest.mark.parametrize("way", WAYS)
async def test_wherever_it_is_cut_the_text_is_the_same(tiny, way):
    asked = {**ASKED, **WAYS[way], "return_token_ids": True}
    async with node(tiny) as system:
        whole = await pieces_of(system, **asked)
        usage = whole[-1].usage
        for cut in sorted({2, 3, len(whole) // 2, len(whole) - 1} & set(range(2, len(whole)))):
            had = whole[:cut]
            rest = await pieces_of(system, **asked, begun=tokens_of(had))
            assert text_of(had) + text_of(rest) == text_of(whole), f"cut after {len(tokens_of(had))} tokens"
            assert tokens_of(had) + tokens_of(rest) == tokens_of(whole)
            assert rest[-1].finish_reason == whole[-1].finish_reason
            assert rest[-1].usage.completion_tokens == usage.completion_tokens
        assert cut >= 2


async def test_ids_are_told_to_whom_asks_and_to_nobody_else(tiny):
    async with node(tiny) as system:
        silent = await pieces_of(system, **ASKED)
        told = await pieces_of(system, **ASKED, return_token_ids=True)
        assert tokens_of(silent) == []
        ended = told[-1].finish_reason == "stop"  # by a token that is no text
        assert len(tokens_of(told)) == told[-1].usage.completion_tokens - ended


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"begun": [10**9]}, "begun has the token"),
        ({"begun": [-1]}, "begun has the token"),
        ({"begun": [5] * 60}, "60 tokens are there already"),
        ({"begun": [5], "n": 2}, "one answer goes on"),
        ({"begun": [5], "logprobs": 1}, "one answer goes on"),
    ],
)
async def test_what_is_no_beginning_of_an_answer_is_refused(tiny, wrong, match):
    async with node(tiny) as system:
        with pytest.raises(Invalid, match=match) as refused:
            await pieces_of(system, **{**ASKED, **wrong})
        assert refused.value.field == "begun"


@asynccontextmanager
async def three(tiny):
    """A node that has no model, and two that have."""
    async with linked((), SERVICES, SERVICES, services={"inference": {"model": str(tiny)}}) as (door, *others):
        door.installs(Inference)
        for other in others:
            door.knows(other, "inference")
        yield door, others


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {"seed": 5}, {}], ids=["greedy", "seeded", "without a seed"]
)
async def test_a_reader_notices_nothing_but_a_pause_when_the_node_of_its_answer_dies(tiny, sampling):
    asked = {"messages": HELLO, "max_tokens": 150, "ignore_eos": True, "temperature": 1.0, **sampling}
    async with three(tiny) as (door, others):
        pieces = []
        async for piece in door.kernel.stream("inference.chat", **asked):
            pieces.append(piece)
            if len(pieces) == 20:
                (busy,) = [other for other in others if other.kernel.calls_in_flight().get("inference.chat")]
                await door.forgets(busy)
        assert pieces[-1].finish_reason == "length"
        assert pieces[-1].usage.completion_tokens == 150
        assert [piece for piece in pieces[1:-1] if not piece.text and not piece.finish_reason] == []
        if sampling:
            (alive,) = [other for other in others if other is not busy]
            assert text_of(pieces) == text_of(await pieces_of(alive.kernel, **asked))


async def test_several_answers_at_once_end_with_the_cause(tiny):
    asked = {"messages": HELLO, "max_tokens": 150, "ignore_eos": True, "n": 2}
    async with three(tiny) as (door, others):
        stream = door.kernel.stream("inference.chat", **asked)
        for _ in range(20):
            await anext(stream)
        (busy,) = [other for other in others if other.kernel.calls_in_flight().get("inference.chat")]
        await door.forgets(busy)
        with pytest.raises(Unavailable):
            await anext(stream)


async def test_the_models_of_other_nodes_are_listed_where_that_is_asked(tiny):
    async with linked(SERVICES, SERVICES, services={"inference": {"model": str(tiny)}}) as (first, second):
        first.knows(second, "inference")
        await second.call("inference.load", ref=str(write_tiny_model(tiny.parent / "other")))
        here = [model.name for model in await first.call("inference.list")]
        everywhere = {model.name: model for model in await first.call("inference.list", everywhere=True)}
        assert here == ["tiny"]
        assert list(everywhere) == ["tiny", "other"]
        assert everywhere["tiny"].default
        assert everywhere["other"].device.endswith("@n2")
