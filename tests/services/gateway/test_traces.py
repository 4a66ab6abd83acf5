"""A client's `traceparent` goes with its request through every service, and comes out at the collector as one trace."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from otlp_receiver import attributes, receiving

from microkernel import Service, handles, streams
from microkernel.testing import TestKernel
from services.gateway.service import Gateway
from services.inference.messages import Chat, Piece, Usage
from services.monitor.service import Monitor

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HELLO = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


class Shelf(Service):
    name = "shelf"

    @handles
    async def get(self) -> str:
        return "Hello"


class Inference(Service):
    """Says what it finds on the shelf."""

    name = "inference"
    uses = ("shelf",)

    @streams
    async def chat(self, message: Chat) -> AsyncIterator[Piece]:
        yield Piece(model=message.model, text=await self.call("shelf.get"))
        yield Piece(finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=1))


async def chat(flags: str, *, stream: bool = False):
    """The spans that a chat with a client's `traceparent` leaves."""
    with receiving() as receiver:
        settings = {
            "gateway": {"port": 0, "drain_seconds": 0.0},
            "monitor": {"traces": "otlp", "traces_endpoint": receiver.url},
        }
        async with TestKernel(Monitor, Shelf, Inference, Gateway, settings=settings) as system:
            url = (await system.call("gateway.address")).url
            headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{flags}", "Authorization": f"Bearer {system.token}"}
            async with aiohttp.ClientSession(url, headers=headers) as http:
                answer = await http.post("/v1/chat/completions", json={**HELLO, "stream": stream})
                assert answer.status == 200, await answer.text()
                assert "Hello" in await answer.text()
        return [span for span in receiver.spans if span.trace_id.hex() == TRACE_ID]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_and_the_calls_that_it_leads_to_are_one_trace(stream):
    spans = {span.name: span for span in await chat("01", stream=stream)}
    assert spans.keys() == {"inference.chat", "shelf.get"}
    assert spans["inference.chat"].parent_span_id.hex() == PARENT_ID
    assert spans["shelf.get"].parent_span_id == spans["inference.chat"].span_id
    assert attributes(spans["inference.chat"])["mk.caller"] == "http root"
    assert attributes(spans["shelf.get"])["mk.caller"] == "inference"


async def test_a_request_that_its_client_does_not_sample_leaves_no_spans():
    assert await chat("00") == []
