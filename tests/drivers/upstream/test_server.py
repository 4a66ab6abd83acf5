"""A server that is talked with over a real socket: what it says, and all that may go wrong."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import aclosing, asynccontextmanager

import pytest
from fake_model_server import DONE, HELLO, FakeServer, event, listing, refuses, said, says

from drivers.upstream.server import Server
from drivers.upstream.settings import ServerSettings
from microkernel.asking import ChatMessage
from microkernel.errors import (
    Invalid,
    MicrokernelError,
    NotFound,
    Overloaded,
    PreconditionFailed,
    TooBig,
    Unavailable,
    Unimplemented,
)
from microkernel.model_server import Generate, Generated, Spent

ASK = Generate(model="m", messages=[ChatMessage(role="user", content="Hello")])


@pytest.fixture
async def fake():
    async with FakeServer() as server:
        yield server


@pytest.fixture
def opened(fake):
    """A server of ours that talks with the fake one, looked at once."""

    @asynccontextmanager
    async def made(**settings):
        server = Server(ServerSettings(**{"name": "s0", "url": fake.url, **settings}))
        await server.open()
        try:
            await server.look()
            yield server
        finally:
            await server.close()

    return made


async def pieces_of(server: Server, ask: Generate = ASK) -> list[Generated]:
    async with aclosing(server.generate(ask)) as pieces:
        return [piece async for piece in pieces]


def text_of(pieces: list[Generated]) -> str:
    return "".join(piece.text for piece in pieces)


async def failure_of(server: Server, ask: Generate = ASK) -> MicrokernelError:
    with pytest.raises(MicrokernelError) as caught:
        await pieces_of(server, ask)
    return caught.value


async def test_an_answer_comes_with_its_text_reason_and_cost(fake, opened):
    async with opened() as server:
        pieces = await pieces_of(server)
        assert pieces[0] == Generated()
        assert text_of(pieces) == "Hello"
        assert pieces[-1].finish_reason == "stop"
        assert pieces[-1].spent == Spent(prompt_tokens=5, completion_tokens=2, cached_tokens=1)
        (post,) = fake.posts
        assert (post.path, post.json["stream"]) == ("/v1/chat/completions", True)
        assert (server.fault(), server.lost()) == (None, None)


async def test_nothing_is_asked_of_a_server_before_it_is_looked_at(fake):
    server = Server(ServerSettings(name="s0", url=fake.url))
    await server.open()
    assert fake.connections == 0
    assert server.lost() == "it was not asked yet"
    await server.close()


async def test_its_models_are_those_that_it_lists_or_those_of_them_that_are_wanted(fake, opened):
    fake.list_models = listing("a", "b", "c")
    async with opened() as server:
        assert [model.name for model in server.models] == ["a", "b", "c"]
    async with opened(models=("c", "z")) as server:
        assert [model.name for model in server.models] == ["c"]


async def test_a_server_without_a_list_has_the_models_that_are_named(fake, opened):
    fake.list_models = refuses(404)
    async with opened(models=("a",)) as server:
        assert [model.name for model in server.models] == ["a"]
        assert server.lost() is None
    async with opened() as server:
        assert server.lost() is not None


@pytest.mark.parametrize(
    ("owner", "title"), [("vllm", "vLLM"), ("sglang", "SGLang"), ("llamacpp", "llama.cpp"), ("microkernel", "a node")]
)
async def test_what_kind_of_server_it_is_tells_its_list(fake, opened, owner, title):
    fake.list_models = listing("m", owned_by=owner)
    async with opened() as server:
        assert server.facts.model.startswith(f"{title} at ")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_text_is_whole_however_the_bytes_are_cut(fake, opened, size):
    whole = said("Grüße, ") + said("世界 🌍") + said(finish="stop") + DONE
    fake.answer = says(*(whole[at : at + size] for at in range(0, len(whole), size)))
    async with opened() as server:
        assert text_of(await pieces_of(server)) == "Grüße, 世界 🌍"


@pytest.mark.parametrize(
    "stream",
    [
        HELLO.replace(b"\n", b"\r\n"),
        HELLO.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + HELLO,
        b": ping\n\n" + HELLO.replace(b"data: ", b"event: message\nid: 7\nretry: 10\ndata:"),
        HELLO.removesuffix(DONE),
        HELLO.removesuffix(b"\n"),
        HELLO.removesuffix(DONE).removesuffix(b"\n\n"),
        HELLO.replace(DONE, b"data:[DONE]\n\n"),
        said("Hello", finish="stop") + DONE,
        event(choices=[{"index": 0, "delta": {"content": "Hello", "weird": {"a": [1]}}, "extra": 1}], id="x", more={})
        + said(finish="stop")
        + DONE,
        event(choices=[{"index": 1, "delta": {"content": "no"}}]) + event(choices=None) + event() + HELLO,
    ],
)
async def test_what_servers_do_differently_is_understood(fake, opened, stream):
    fake.answer = says(stream)
    async with opened() as server:
        pieces = await pieces_of(server)
        assert text_of(pieces) == "Hello"
        assert pieces[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        DONE,
        said("Hello"),
        said("Hello") + DONE,
        said("Hello")[:-9],
        b"data: {not json}\n\n" + DONE,
        b'data: "text"\n\n',
        b"data: []\n\n",
        b"data: \xff\xfe\n\n",
        b"<html>hello</html>\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
        event(choices="many"),
        event(choices=[{"delta": {"content": 7}}]),
        said("Hello", finish="abort") + DONE,
        said("Hello", finish="x" * 100) + DONE,
    ],
)
async def test_what_is_no_answer_is_told_as_one_that_may_have_run(fake, opened, stream):
    fake.answer = says(stream)
    async with opened() as server:
        error = await failure_of(server)
        assert isinstance(error, Unavailable)
        assert error.may_have_run is True
        assert server.fault() is not None


@pytest.mark.parametrize(
    "stream",
    [b"data: " + b"x" * (3 << 20), (b"data: " + b"x" * 100_000 + b"\n") * 20, b": " + b"y" * (3 << 20)],
)
async def test_a_line_or_an_event_without_end_is_cut(fake, opened, stream):
    fake.answer = says(stream)
    async with opened() as server:
        assert "longer than 1048576 bytes" in (await failure_of(server)).message


@pytest.mark.parametrize("kind", ["text/html", "application/json", "application/octet-stream"])
async def test_an_answer_of_another_type_is_not_read_as_one(fake, opened, kind):
    fake.answer = says(HELLO, **{"Content-Type": kind})
    async with opened() as server:
        assert kind in (await failure_of(server)).message


async def test_a_coding_that_nobody_asked_for_is_not_unpacked(fake, opened):
    fake.answer = says(HELLO, **{"Content-Type": "text/event-stream", "Content-Encoding": "gzip"})
    async with opened() as server:
        assert "coding" in (await failure_of(server)).message
        assert fake.posts[0].headers["accept-encoding"] == "identity"


async def test_a_connection_that_is_cut_in_mid_answer_is_told_with_its_cause(fake, opened):
    async def cut(exchange):
        await exchange.start()
        await exchange.write(said("Hel"))
        await asyncio.sleep(0.05)
        exchange.reset()

    fake.answer = cut
    async with opened() as server:
        pieces = server.generate(ASK)
        assert [(await anext(pieces)).text for _ in range(2)] == ["", "Hel"]
        with pytest.raises(Unavailable) as caught:
            await anext(pieces)
        assert caught.value.may_have_run is True


async def test_a_response_that_is_shorter_than_it_says_is_no_whole_answer(fake, opened):
    async def short(exchange):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 10000\r\n\r\n"
        await exchange.write(head + said("Hello"))

    fake.answer = short
    async with opened() as server:
        assert isinstance(await failure_of(server), Unavailable)


async def test_a_server_that_falls_silent_is_given_up_after_a_while(fake, opened):
    async def stall(exchange):
        await exchange.start()
        await exchange.write(said("Hel"))
        await asyncio.Event().wait()

    fake.answer = stall
    async with opened(idle_seconds=0.05) as server:
        assert "silent for 0.05 s" in (await failure_of(server)).message
        await fake.closed.wait()


async def test_a_server_that_never_begins_is_given_up_after_a_longer_while(fake, opened):
    async def never(exchange):
        await asyncio.Event().wait()

    fake.answer = never
    async with opened(first_seconds=0.05, idle_seconds=0.001) as server:
        error = await failure_of(server)
        assert "did not take the request within 0.05 s" in error.message
        assert error.may_have_run is True


async def test_comments_keep_an_answer_alive_but_not_for_ever(fake, opened):
    async def ping(exchange):
        await exchange.start()
        while True:
            await exchange.write(b": ping\n\n")
            await asyncio.sleep(0.005)

    fake.answer = ping
    async with opened(first_seconds=20.0, idle_seconds=20.0, total_seconds=0.3) as server:
        assert "longer than it may" in (await failure_of(server)).message


async def test_a_server_that_does_not_say_that_it_is_done_is_not_waited_for_long(fake, opened, monkeypatch):
    monkeypatch.setattr("drivers.upstream.server.AFTER_THE_END", 0.05)

    async def hang(exchange):
        await exchange.start()
        await exchange.write(said("Hello") + said(finish="length"))
        await asyncio.Event().wait()

    fake.answer = hang
    async with opened() as server:
        pieces = await pieces_of(server)
        assert (pieces[-1].finish_reason, pieces[-1].spent) == ("length", None)


async def test_a_reader_that_leaves_closes_the_connection(fake, opened):
    async def endless(exchange):
        await exchange.start()
        while True:
            await exchange.write(said("x"))
            await asyncio.sleep(0.001)

    fake.answer = endless
    async with opened() as server:
        async with aclosing(server.generate(ASK)) as pieces:
            async for piece in pieces:
                if piece.text:
                    break
        await fake.closed.wait()


async def test_a_slow_reader_slows_the_server_down(fake, opened):
    written = 0

    async def flood(exchange):
        nonlocal written
        await exchange.start()
        while True:
            await exchange.write(said("x" * 10_000))
            written += 10_000

    fake.answer = flood
    async with opened() as server, aclosing(server.generate(ASK)) as pieces:
        await anext(pieces)
        before = -1
        while written != before:  # until both sockets' buffers are full
            before = written
            await asyncio.sleep(0.2)
        assert written < 32 << 20


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "said_of_it"),
    [
        (429, b"", {"Retry-After": "7"}, Overloaded, "too many requests"),
        (401, b'{"error": {"message": "bad key"}}', {}, PreconditionFailed, "asks for a key: bad key"),
        (403, b"", {}, PreconditionFailed, "asks for a key"),
        (402, b"", {}, PreconditionFailed, "payment"),
        (404, b'{"error": {"message": "no such"}}', {}, NotFound, "no model 'm': no such"),
        (400, b'{"error": {"message": "bad\\nline", "param": "seed"}}', {}, Invalid, "(400): bad line"),
        (400, b'{"error": {"message": "long", "code": "context_length_exceeded"}}', {}, TooBig, "too long for it"),
        (422, b'{"detail": [{"msg": "field required"}]}', {}, Invalid, "field required"),
        (413, b"", {}, TooBig, "too long"),
        (500, b"<html>oops</html>", {}, Unavailable, "it failed (500)"),
        (502, b"plain words", {}, Unavailable, "it failed (502): plain words"),
        (503, b"", {"Retry-After": "3"}, Unavailable, "it failed (503)"),
        (307, b"", {"Location": "https://elsewhere.example/x"}, Unavailable, "elsewhere.example"),
        (200, b"", {"Content-Type": "text/plain"}, Unavailable, "no stream of events"),
        (418, b"\xff\xfe\x00", {}, Invalid, "(418)"),
    ],
)
async def test_a_refusal_has_the_code_that_it_has_here(fake, opened, status, body, headers, kind, said_of_it):
    fake.answer = refuses(status, body, **headers)
    async with opened() as server:
        error = await failure_of(server)
        assert type(error) is kind
        assert said_of_it in error.message
        assert "\n" not in error.message
        if "Retry-After" in headers:
            assert error.retry_after == float(headers["Retry-After"])
        if status in {500, 502, 503}:
            assert error.may_have_run is (status == 500)


async def test_a_redirect_is_not_followed_and_the_key_goes_nowhere_else(fake, opened, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sk-secret")
    async with FakeServer() as other:
        fake.answer = refuses(307, Location=f"{other.url}/chat/completions")
        async with opened(key_env="SOME_KEY") as server:
            await failure_of(server)
        assert other.exchanges == []


@pytest.mark.parametrize("status", [429, 400, 404])
async def test_what_is_the_requests_fault_or_passes_says_nothing_of_the_servers_health(fake, opened, status):
    fake.answer = refuses(status)
    async with opened() as server:
        for _ in range(5):
            await failure_of(server)
        assert (server.fault(), server.lost()) == (None, None)


async def test_an_error_in_mid_answer_is_the_servers_own(fake, opened):
    fake.answer = says(said("Hel"), event(error={"message": "out of memory", "type": "server_error", "code": 500}))
    async with opened() as server:
        error = await failure_of(server)
        assert isinstance(error, Unavailable)
        assert "out of memory" in error.message
        assert error.may_have_run is True


async def test_a_node_that_is_overloaded_in_mid_answer_says_so(fake, opened):
    fake.answer = says(said("Hel"), event(error={"message": "slow reader", "code": "overloaded"}))
    async with opened() as server:
        assert isinstance(await failure_of(server), Overloaded)


async def test_a_key_is_sent_and_never_told(fake, opened, monkeypatch, caplog):
    monkeypatch.setenv("SOME_KEY", "sk-very-secret-key")
    fake.answer = refuses(401, b'{"error": {"message": "Incorrect API key provided: sk-very-secret-key"}}')
    with caplog.at_level(logging.DEBUG):
        async with opened(key_env="SOME_KEY") as server:
            error = await failure_of(server)
            told = f"{error!r} {error.report()} {server.lost()} {server.fault()} {server.facts} {vars(server)}"
    assert {each.headers["authorization"] for each in fake.exchanges} == {"Bearer sk-very-secret-key"}
    assert isinstance(error, PreconditionFailed)
    assert "$SOME_KEY" in error.message
    assert "sk-very-secret-key" not in told + caplog.text


async def test_a_key_that_is_refused_keeps_the_server_from_being_asked_until_it_is_another(fake, opened, tmp_path):
    file = tmp_path / "key"
    file.write_text("old-key\n")

    async def by_key(exchange):
        good = exchange.headers["authorization"] == "Bearer new-key"
        await (says(HELLO) if good else refuses(401))(exchange)

    fake.answer = by_key
    async with opened(key_file=str(file)) as server:
        await failure_of(server)
        assert "does not take the key" in server.lost()
        file.write_text("new-key\n")
        await server.look()
        assert server.lost() is None
        assert text_of(await pieces_of(server)) == "Hello"


@pytest.mark.parametrize("content", ["", "two words", "line\nbreak", "ünicode", "x" * 9000])
async def test_what_is_no_key_is_not_sent(fake, opened, tmp_path, content):
    (tmp_path / "key").write_text(content)
    async with opened(key_file=str(tmp_path / "key")) as server:
        assert "has no key" in server.lost()
        assert fake.exchanges == []


async def test_a_key_that_is_not_there_is_named_by_its_place(fake, opened):
    async with opened(key_env="NO_SUCH_VARIABLE") as server:
        assert "NO_SUCH_VARIABLE" in server.lost()
    async with opened(key_file="/no/such/file") as server:
        assert "/no/such/file" in server.lost()


async def test_a_key_that_goes_out_unencrypted_is_warned_of(caplog, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "k")
    server = Server(ServerSettings(name="s0", url="http://192.0.2.1/v1", key_env="SOME_KEY"))
    await server.open()
    await server.close()
    assert "without encryption" in caplog.text


async def test_a_server_that_is_gone_is_suspect_at_first_and_then_lost_and_comes_back(fake, opened):
    async with opened() as server:
        await fake.stop()
        error = await failure_of(server)
        assert isinstance(error, Unavailable)
        assert error.may_have_run is False
        assert (server.lost(), "no connection" in server.fault()) == (None, True)
        for _ in range(3):
            await server.look()
        assert "no connection" in server.lost()
        await fake.start()
        await server.look()
        assert server.lost() is None
        assert text_of(await pieces_of(server)) == "Hello"
        assert server.fault() is None


async def test_a_server_whose_answers_break_is_left_alone_after_the_third(fake, opened):
    fake.answer = refuses(500)
    async with opened() as server:
        for _ in range(2):
            await failure_of(server)
        assert (server.lost(), server.places) == (None, 64)
        await failure_of(server)
        assert "it is asked again in" in server.lost()
        assert server.places == 1
        await server.look()
        assert server.lost() is not None


async def test_a_server_that_answers_is_not_disturbed_by_looks(fake, opened):
    go_on = asyncio.Event()

    async def slow(exchange):
        await exchange.start()
        await exchange.write(said("Hel"))
        await go_on.wait()
        await exchange.write(said("lo", finish="stop") + DONE)

    fake.answer, fake.list_models = slow, listing("m", owned_by="me")
    async with opened() as server:
        async with aclosing(server.generate(ASK)) as pieces:
            while not (await anext(pieces)).text:
                pass
            before = len(fake.exchanges)
            await server.look()
            assert len(fake.exchanges) == before
            go_on.set()
            assert text_of([piece async for piece in pieces]) == "lo"
        await server.look()
        assert len(fake.exchanges) == before + 1


async def test_a_server_that_gives_answers_up_for_a_look_is_asked_when_the_look_is_over(fake, opened):
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def slow_list(exchange):
        begun.set()
        await go_on.wait()
        await listing("m", owned_by="me")(exchange)

    fake.list_models = listing("m", owned_by="me")
    async with opened() as server:
        assert server.places == 1
        fake.list_models = slow_list
        look = asyncio.create_task(server.look())
        await begun.wait()
        answering = asyncio.create_task(pieces_of(server))
        await asyncio.sleep(0.05)
        assert fake.posts == []
        go_on.set()
        assert text_of(await answering) == "Hello"
        await look


async def test_a_connection_is_used_again_and_one_that_was_closed_meanwhile_harms_nobody(fake, opened):
    async def chunked(exchange):
        await exchange.whole(HELLO, Content_Type="text/event-stream")

    fake.answer = chunked
    async with opened() as server:
        for _ in range(3):  # the fake server closes each connection after an answer, without saying so
            assert text_of(await pieces_of(server)) == "Hello"


async def test_logprobs_of_a_chat_are_those_that_the_server_tells(fake, opened):
    likely = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Ho", "logprob": -1.5}]}
    choice = {"index": 0, "delta": {"content": "Hi"}, "logprobs": {"content": [likely]}, "finish_reason": None}
    fake.answer = says(event(choices=[choice]), said(finish="stop"), DONE)
    async with opened() as server:
        pieces = await pieces_of(server, Generate(model="m", messages=ASK.messages, logprobs=1))
        (told,) = [one for piece in pieces for one in piece.logprobs]
        assert (told.text, told.bytes, told.logprob, told.token) == ("Hi", [72, 105], -0.5, -1)
        assert [(other.text, other.bytes) for other in told.top] == [("Ho", [72, 111])]
        assert fake.posts[0].json["top_logprobs"] == 1


async def test_logprobs_of_a_text_are_those_that_the_server_tells(fake, opened):
    told = {"tokens": ["a", "b"], "token_logprobs": [-1.0, None], "top_logprobs": [{"a": -1.0, "c": -2.0}, None]}
    chunk = event(choices=[{"index": 0, "text": "ab", "logprobs": told, "finish_reason": "stop"}])
    fake.answer = says(chunk, DONE)
    async with opened() as server:
        pieces = await pieces_of(server, Generate(model="m", prompt="x", max_tokens=2, logprobs=2))
        likely = [one for piece in pieces for one in piece.logprobs]
        assert [(one.text, one.logprob) for one in likely] == [("a", -1.0), ("b", -9999.0)]
        assert [other.text for other in likely[0].top] == ["a", "c"]
        assert fake.posts[0].path == "/v1/completions"


async def test_logprobs_that_a_server_does_not_tell_are_refused_and_not_left_out(fake, opened):
    async with opened() as server:
        error = await failure_of(server, Generate(model="m", messages=ASK.messages, logprobs=1))
        assert isinstance(error, Unimplemented)
        assert error.field == "logprobs"


async def test_parts_of_tool_calls_are_given_on_as_they_come(fake, opened):
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}
    second = {"index": 0, "function": {"arguments": '{"a": 1}'}}
    fake.answer = says(said(tool_calls=[first]), said(tool_calls=[second]), said(finish="tool_calls"), DONE)
    tools = [{"type": "function", "function": {"name": "add"}}]
    async with opened() as server:
        pieces = await pieces_of(server, Generate(model="m", messages=ASK.messages, tools=tools, tool_choice="auto"))
        assert [call for piece in pieces for call in piece.tool_calls] == [first, second]
        assert pieces[-1].finish_reason == "tool_calls"
        assert (fake.posts[0].json["tools"], fake.posts[0].json["tool_choice"]) == (tools, "auto")


async def test_thoughts_that_are_shown_apart_are_counted_and_not_given(fake, opened):
    fake.answer = says(said(None, reasoning_content="hm"), said("Yes"), said(finish="stop"), DONE)
    async with opened() as server:
        pieces = await pieces_of(server)
        assert text_of(pieces) == "Yes"
        assert sum(piece.tokens for piece in pieces) == 2


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data": 7}', b'{"data": [{"name": "x"}]}', b"<html>"])
async def test_what_is_no_list_of_models_is_no_healthy_server_and_no_crash(fake, opened, body):
    fake.list_models = refuses(200, body)
    async with opened() as server:
        assert server.models == ()
        assert (server.lost() is not None) is (body != b"{}")


async def test_a_list_without_end_is_not_kept(fake, opened):
    fake.list_models = refuses(200, b" " * (5 << 20))
    async with opened() as server:
        assert "more than" in server.lost()


async def test_only_names_that_can_be_asked_for_are_listed(fake, opened):
    fake.list_models = listing("good", "bad\nname", "", "x" * 600)
    async with opened() as server:
        assert [model.name for model in server.models] == ["good"]


async def test_usage_without_a_stream_of_it_is_unknown_and_tokens_are_counted(fake, opened):
    fake.answer = says(said("a"), said("b"), said(finish="length"), DONE)
    async with opened() as server:
        pieces = await pieces_of(server)
        assert pieces[-1].spent is None
        assert sum(piece.tokens for piece in pieces) == 2


async def test_a_long_request_is_sent_whole(fake, opened):
    content = "ß" * 1_000_000
    async with opened() as server:
        await pieces_of(server, Generate(model="m", messages=[ChatMessage(role="user", content=content)]))
        assert json.loads(fake.posts[0].body)["messages"][0]["content"] == content
