"""Streams on raw sockets: what exactly is sent, and what happens when an end of it goes away."""

from __future__ import annotations

import asyncio
import json

import pytest

from microkernel.errors import Unavailable
from services.gateway.door import Door

HELLO = {"model": "beta", "messages": [{"role": "user", "content": "Hello"}]}
STREAM = json.dumps({**HELLO, "stream": True}).encode()
JSON = {"Content-Type": "application/json"}


async def ended(site) -> None:
    """Return once the answer's generator is closed and its slot is free."""
    await site.script.ended.wait()
    while site.system.calls_in_flight():
        await asyncio.sleep(0)


async def test_the_event_stream_is_exactly_openais(site):
    async with site.http() as client:
        asked = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
        async with client.post("/v1/chat/completions", json=asked) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-cache"
            text = await response.text()
    assert text.endswith("\n\ndata: [DONE]\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-2]]
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:4]] == ["Hello", ",", " world"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["completion_tokens"] == 3


async def test_a_piece_goes_out_at_once_and_does_not_wait_for_the_next(site):
    site.script.hold_after = 1
    async with site.http() as client, client.post("/v1/chat/completions", data=STREAM, headers=JSON) as response:
        seen = b""
        while b'"Hello"' not in seen:
            seen += await response.content.readany()
        assert b"world" not in seen
        site.script.go_on.set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")


async def test_a_silent_answer_shows_that_it_is_alive(open_site, script):
    script.hold_after = 0
    async with open_site(keepalive_seconds=0.01) as site, site.http() as client:
        response = await client.post("/v1/chat/completions", data=STREAM, headers=JSON)
        seen = b""
        while seen.count(b"\n\n: keep-alive\n\n: keep-alive\n\n") < 1:
            seen += await response.content.readany()
        script.go_on.set()
        seen += await response.content.read()
    assert b'"Hello"' in seen
    assert seen.endswith(b"data: [DONE]\n\n")


async def test_an_error_in_mid_stream_is_an_event_and_then_the_end(site):
    site.script.error, site.script.error_after = Unavailable("the device is gone"), 2
    async with site.http() as client, client.post("/v1/chat/completions", data=STREAM, headers=JSON) as response:
        assert response.status == 200
        text = await response.text()
    last = json.loads(text.strip().rpartition("data: ")[2])
    assert last["error"]["message"] == "the device is gone"
    assert last["error"]["type"] == "server_error"
    assert last["error"]["code"] == "unavailable"
    assert "[DONE]" not in text


async def test_a_text_that_cannot_be_sent_is_told_as_an_error(site, caplog):
    site.script.words = ["fine", "\ud800"]
    async with site.http() as client, client.post("/v1/chat/completions", data=STREAM, headers=JSON) as response:
        text = await response.text()
    assert json.loads(text.strip().rpartition("data: ")[2])["error"]["code"] == "internal_error"
    assert "Traceback" not in text
    assert "mid-stream" in caplog.text


@pytest.mark.parametrize("words", [0, 2])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_closed_connection_ends_its_answer_at_once(site, words, stream):
    site.script.hold_after = words
    _, writer = await site.raw(body=json.dumps({**HELLO, "stream": stream}).encode())
    await site.script.holding.wait()
    writer.transport.abort()
    await ended(site)
    assert site.script.said == words


async def test_a_connection_closed_while_pieces_flow_ends_its_answer(site):
    site.script.endless = True
    reader, writer = await site.raw(body=STREAM)
    await reader.readuntil(b'"Hello"')
    writer.close()
    await writer.wait_closed()
    await ended(site)


async def test_a_slow_reader_slows_its_answer_and_is_cut(open_site, script, caplog):
    script.endless = True
    async with open_site(slow_reader_seconds=0.3) as site:
        _, writer = await site.raw(body=STREAM)
        await ended(site)
        writer.transport.abort()
        said = script.said
        await asyncio.sleep(0.05)
        assert script.said == said
    assert "slow reader of /v1/chat/completions" in caplog.text


async def test_a_reader_that_takes_nothing_is_not_written_for_without_end(site):
    site.script.endless = True
    _, writer = await site.raw(body=STREAM)
    said = -1
    while said != site.script.said:  # until it stands still
        said = site.script.said
        await asyncio.sleep(0.2)
    assert 0 < said * 4096 < 32 << 20
    writer.transport.abort()
    await ended(site)


async def test_a_restart_of_inference_ends_streams_with_an_error_and_later_ones_are_answered(site):
    site.script.hold_after = 1
    async with site.http() as client:
        async with client.post("/v1/chat/completions", data=STREAM, headers=JSON) as response:
            await site.script.holding.wait()
            await site.system.restart("inference")
            text = await response.text()
        assert json.loads(text.strip().rpartition("data: ")[2])["error"]["code"] == "unavailable"
        assert "[DONE]" not in text
        site.script.hold_after = None
        async with client.post("/v1/chat/completions", json=HELLO) as response:
            assert response.status == 200
            assert (await response.json())["choices"][0]["message"]["content"] == "Hello, world"
    assert site.system.calls_in_flight() == {}


async def test_many_restarts_under_many_streams_leave_nothing_open(site):
    site.script.words = ["a"] * 200

    async def ask(client) -> str:
        async with client.post("/v1/chat/completions", data=STREAM, headers=JSON) as response:
            return await response.text()

    async with site.http() as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(20)]
        for _ in range(3):
            await asyncio.sleep(0.01)
            await site.system.restart("inference")
        texts = await asyncio.gather(*asking)
    assert all(("[DONE]" in text) != ('"error"' in text) for text in texts)
    assert site.system.calls_in_flight() == {}


async def test_a_stop_of_the_gateway_ends_running_answers_with_an_error(site):
    site.script.hold_after = 1
    async with site.http() as client:
        streamed = await client.post("/v1/chat/completions", data=STREAM, headers=JSON)
        await site.script.holding.wait()
        whole = asyncio.create_task(client.post("/v1/chat/completions", json=HELLO))
        while len(site.script.asked) < 2:
            await asyncio.sleep(0)
        await site.system.restart("gateway")
        text = await streamed.text()
        answer = await whole
        assert answer.status == 503
        assert (await answer.json())["error"]["message"] == "the gateway stops"
    assert json.loads(text.strip().rpartition("data: ")[2])["error"]["message"] == "the gateway stops"
    assert site.system.calls_in_flight() == {}


async def test_a_stop_lets_an_answer_end_that_needs_a_moment(open_site, script):
    script.hold_after = 1
    async with open_site(drain_seconds=3.0) as site, site.http() as client:
        response = await client.post("/v1/chat/completions", data=STREAM, headers=JSON)
        await script.holding.wait()
        restarting = asyncio.create_task(site.system.restart("gateway"))
        while site.system.state("gateway") == "ready":
            await asyncio.sleep(0)
        script.go_on.set()
        assert (await response.text()).endswith("data: [DONE]\n\n")
        await restarting


async def test_while_it_drains_a_gateway_takes_nothing_new(open_site, script):
    script.hold_after = 1
    async with open_site(drain_seconds=3.0) as site, site.http() as client:
        async with client.get("/livez") as response:
            assert response.status == 200  # its connection is kept
        reader, writer = await site.raw(body=STREAM)
        await script.holding.wait()
        restarting = asyncio.create_task(site.system.restart("gateway"))
        door: Door = site.system.kernel.instance("gateway").service._door
        while not door.closed:
            await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", site.port)
        async with client.get("/v1/models") as response:
            assert response.status == 503
        script.go_on.set()
        assert b"[DONE]" in await reader.read()
        writer.close()
        await restarting
