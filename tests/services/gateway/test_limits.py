"""What a client may not do: too big, too slow, too many, and not HTTP at all."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import threading

import pytest

from services.gateway.openai_request import parse_chat

HELLO = {"model": "beta", "messages": [{"role": "user", "content": "Hello"}]}
BODY = json.dumps(HELLO).encode()


async def response_of(reader: asyncio.StreamReader) -> tuple[int, dict]:
    """Status and JSON of one response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = next(
        int(line.partition(":")[2]) for line in head.split("\r\n") if line.lower().startswith("content-length:")
    )
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


async def still_answers(site) -> bool:
    async with site.http() as client, client.post("/v1/chat/completions", json=HELLO) as response:
        return response.status == 200


async def test_a_body_that_says_it_is_too_big_is_refused_unread(open_site):
    async with open_site(body_limit=1000) as site:
        reader, writer = await site.raw(body=b"", Content_Length="1001")
        status, answer = await response_of(reader)
        assert status == 413
        assert answer["error"]["code"] == "too_big"
        assert "1000 bytes" in answer["error"]["message"]
        writer.close()


async def test_a_chat_has_a_limit_of_its_own(open_site):
    async with open_site(chat_body_limit=1000) as site:
        reader, writer = await site.raw(body=b"", Content_Length="1001")
        status, answer = await response_of(reader)
        assert status == 413
        assert "chat_body_limit" in answer["error"]["message"]
        writer.close()


async def test_at_most_two_long_bodies_are_checked_at_a_time(site, monkeypatch):
    from services.gateway import chat_route

    running, most = 0, 0
    lock, enough = threading.Lock(), threading.Event()

    def watched(body):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        enough.wait(0.2)
        with lock:
            running -= 1
        return parse_chat(body)

    monkeypatch.setattr(chat_route, "parse_chat", watched)
    asked = json.dumps({"messages": [{"role": "user", "content": "x" * (2 << 20)}]}).encode()
    headers = {"Content-Type": "application/json"}
    async with site.http() as client:

        async def ask():
            async with client.post("/v1/chat/completions", data=io.BytesIO(asked), headers=headers) as response:
                return response.status

        assert await asyncio.gather(*(ask() for _ in range(5))) == [200] * 5
    assert most == 2


async def test_a_body_that_turns_out_too_big_is_refused(open_site):
    async def chunks():
        for _ in range(20):
            yield b" " * 100

    async with open_site(body_limit=1000) as site, site.http() as client:
        async with client.post(
            "/v1/chat/completions", data=chunks(), headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == 413
        assert await still_answers(site)


async def test_a_small_body_that_unpacks_to_a_big_one_is_refused(open_site):
    bomb = gzip.compress(b" " * (8 << 20))
    assert len(bomb) < 100_000
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with open_site(body_limit=100_000) as site, site.http() as client:
        async with client.post("/v1/chat/completions", data=bomb, headers=headers) as response:
            assert response.status == 413
        async with client.post("/v1/chat/completions", data=gzip.compress(BODY), headers=headers) as response:
            assert response.status == 200
        async with client.post("/v1/chat/completions", data=b"\x1f\x8bjunk", headers=headers) as response:
            assert response.status == 400


async def test_a_body_that_is_not_what_its_encoding_says_is_answered_and_logs_nothing(site, caplog):
    reader, writer = await site.raw(body=b"xxxxx", Content_Encoding="gzip")
    status, _ = await response_of(reader)
    assert status == 400
    await reader.read()
    writer.close()
    assert await still_answers(site)
    assert not [record for record in caplog.records if record.levelname in {"WARNING", "ERROR", "CRITICAL"}]


async def test_all_bodies_together_are_bounded(open_site):
    async with open_site(bodies_limit=1000) as site:
        _, first = await site.raw(body=b"", Content_Length="900")
        first.write(b" " * 800)
        await first.drain()
        chats = site.system.kernel.instance("gateway").service._chats
        while chats._bodies.held < 800:
            await asyncio.sleep(0)
        reader, second = await site.raw(body=b" " * 300)
        status, answer = await response_of(reader)
        assert status == 429
        assert answer["error"]["code"] == "overloaded"
        first.transport.abort()
        while chats._bodies.held:
            await asyncio.sleep(0)
        second.close()
        assert await still_answers(site)


async def test_a_long_request_is_checked_beside_the_loop_and_answered(site):
    asked = io.BytesIO(json.dumps({"messages": [{"role": "user", "content": "x" * (3 << 20)}]}).encode())
    headers = {"Content-Type": "application/json"}
    async with site.http() as client, client.post("/v1/chat/completions", data=asked, headers=headers) as response:
        assert response.status == 200
    assert len(site.script.asked[0].messages[0].content) == 3 << 20


async def test_half_a_body_is_waited_for_only_so_long(open_site):
    async with open_site(body_seconds=0.1) as site:
        reader, writer = await site.raw(body=b"", Content_Length="100")
        writer.write(b'{"messages"')
        status, answer = await response_of(reader)
        assert status == 408
        assert "11 bytes did" in answer["error"]["message"]
        assert await reader.read() == b""  # and the connection is closed
        writer.close()


@pytest.mark.parametrize("start", [b"", b"POST", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthor"])
async def test_half_a_head_is_waited_for_only_so_long(open_site, start):
    async with open_site(idle_seconds=0.2) as site:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(start)
        assert await reader.read() == b""
        writer.close()
        assert await still_answers(site)


async def test_a_client_that_leaves_in_its_own_request_leaves_nothing_behind(site):
    _, writer = await site.raw(body=b"", Content_Length="100")
    writer.write(b'{"messages"')
    await writer.drain()
    writer.transport.abort()
    assert await still_answers(site)
    assert site.system.calls_in_flight() == {}


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: 1\r\n" * 5000 + b"\r\n",
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: 1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused_in_openais_shape(site, head, caplog):
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(head)
    status, answer = await response_of(reader)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert len(answer["error"]["message"]) <= 200
    writer.transport.abort()
    assert "Traceback" not in caplog.text
    assert await still_answers(site)


async def test_one_connection_too_many_is_told_so(open_site):
    async with open_site(connections=2) as site:
        held = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(2)]
        server = site.system.kernel.instance("gateway").service._runner.server
        while len(server.connections) < 2:
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
        refusal = await reader.read()
        assert refusal.startswith(b"HTTP/1.1 503 ")
        assert refusal.endswith(b"\r\n\r\ntoo many connections here\n")
        writer.close()
        for _, each in held:
            each.close()
            await each.wait_closed()
        while server.connections:
            await asyncio.sleep(0)
        assert await still_answers(site)


async def test_requests_in_a_pipeline_are_answered_in_order(site):
    reader, writer = await site.raw(body=BODY)
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.system.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    for _ in range(30):
        writer.write(request.encode() + BODY)
    for _ in range(31):
        status, answer = await response_of(reader)
        assert status == 200
        assert answer["choices"][0]["message"]["content"] == "Hello, world"
    writer.close()
