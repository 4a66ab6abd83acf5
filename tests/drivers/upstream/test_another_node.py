"""Another node of ours as a server: the same words, the same text, whichever of the two is asked."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest
from background_node import BackgroundNode
from inference_node import HELLO, SERVICES, answer, reading
from server_process import node_process
from tiny_model import write_tiny_model

from microkernel.errors import CallCancelled, Invalid, Unavailable, Unimplemented


@pytest.fixture(scope="module")
def other(tiny):
    # Without saved contexts: the threads that keep them would be looked for by the other node of the test.
    with BackgroundNode(*SERVICES, inference={"model": str(tiny), "contexts_bytes": 0}) as node:
        yield node


@pytest.fixture
def server(other, tmp_path):
    file = tmp_path / "key"
    file.write_text(other.token)
    return {"name": "b", "url": f"{other.url}/v1", "key_file": str(file)}


def its_answer(other, **fields):
    """What the other node says when it is asked itself."""

    async def ask():
        return await answer(other.system, **fields)

    return asyncio.run_coroutine_threadsafe(ask(), other.loop).result(60)


async def test_its_models_are_beside_ours_with_what_it_tells_of_them(asking, server, other):
    async with asking(server) as system:
        device = await system.call("devices.show", name="b")
        assert (device.kind, device.state, device.models) == ("upstream", "healthy", ("tiny",))
        assert device.model == f"a node at {other.url}/v1"
        listed = {model.name: model for model in await system.call("inference.list")}
        assert listed["tiny"].device == "cpu0"
        assert (listed["b/tiny"].device, listed["b/tiny"].context_length) == ("b", 512)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0, "max_tokens": 40},
        {"temperature": 1.0, "seed": 7, "max_tokens": 40},
        {"temperature": 1.0, "seed": 7, "max_tokens": 20, "top_k": 9, "min_p": 0.01, "repetition_penalty": 1.2},
        {"temperature": 0.0, "max_tokens": 20, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"temperature": 0.0, "max_tokens": 9, "logit_bias": {"65": 90.0}},
        {"temperature": 0.0, "grammar": {"choice": ["yes", "no"]}},
        {"temperature": 0.0, "grammar": {"regex": "[a-c]{5}"}},
        {"temperature": 0.0, "grammar": {"json_schema": {"type": "boolean"}}},
    ],
)
async def test_the_text_and_its_cost_are_those_of_asking_it_directly(asking, server, other, fields):
    async with asking(server) as system:
        text, last = await answer(system, model="b/tiny", **fields)
        theirs, their_last = await asyncio.to_thread(its_answer, other, **fields)
        assert text == theirs
        assert last.finish_reason == their_last.finish_reason
        assert last.usage.completion_tokens == their_last.usage.completion_tokens
        assert last.usage.prompt_tokens == their_last.usage.prompt_tokens


async def test_logprobs_and_stops_go_through(asking, server, other):
    fields = {"temperature": 0.0, "max_tokens": 12, "logprobs": 2}
    async with asking(server) as system:
        pieces = [piece async for piece in system.stream("inference.chat", messages=HELLO, model="b/tiny", **fields)]
        likely = [one for piece in pieces for one in piece.logprobs]
        assert len(likely) == 12
        assert all(len(one.top) == 2 for one in likely)
        text = "".join(piece.text for piece in pieces)
        cut, last = await answer(system, model="b/tiny", temperature=0.0, max_tokens=12, stop=[text[4:6]])
        assert (cut, last.finish_reason) == (text[: text.index(text[4:6])], "stop")


async def test_openais_client_sees_both_and_chats_with_both(asking, server):
    async with asking(server) as system:
        url = (await system.call("gateway.address")).url
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=system.token, max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ["tiny", "b/tiny"]
            texts = []
            for model in ("tiny", "b/tiny"):
                made = await client.chat.completions.create(
                    model=model, messages=HELLO, max_tokens=15, temperature=0.0, stream=True
                )
                texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in made if chunk.choices]))
            assert texts[0] == texts[1]
            whole = await client.chat.completions.create(
                model="b/tiny", messages=HELLO, max_tokens=15, temperature=0.0, n=2
            )
            assert [choice.message.content for choice in whole.choices] == [texts[0]] * 2
            assert whole.usage.completion_tokens == 30
            with pytest.raises(openai.BadRequestError, match="b: .*context"):
                await client.chat.completions.create(
                    model="b/tiny", messages=[{"role": "user", "content": "x" * 5000}], max_tokens=5
                )


async def test_what_is_wrong_with_a_request_comes_back_as_it_would_from_here(asking, server):
    async with asking(server) as system:
        with pytest.raises(Invalid) as caught:
            await answer(system, model="b/tiny", top_p=7.0)
        assert caught.value.field == "top_p"
        with pytest.raises(Unimplemented, match="chats only"):
            async for _ in system.stream("inference.complete", prompt="Once", model="b/tiny", max_tokens=5):
                pass
        assert (await system.call("devices.show", name="b")).state == "healthy"


async def test_a_kill_here_ends_the_process_there(asking, server, other):
    async with asking(server) as system:
        stream = system.stream("inference.chat", messages=HELLO, model="b/tiny", max_tokens=480, min_tokens=480)
        piece = await reading(stream)
        await system.call("scheduler.kill", pid=piece.pid, why="enough")
        with pytest.raises(CallCancelled, match="enough"):
            async for _ in stream:
                pass
        while await asyncio.to_thread(other.call, "scheduler.list"):
            await asyncio.sleep(0.05)


async def test_a_node_with_another_token_is_not_asked_with_it(asking, server, tmp_path):
    (tmp_path / "wrong").write_text("not-its-token")
    async with asking({**server, "key_file": str(tmp_path / "wrong"), "models": ["tiny"]}) as system:
        device = await system.call("devices.show", name="b")
        assert device.state == "quarantined"
        assert "does not take the key" in device.why
        assert "not-its-token" not in device.why
        with pytest.raises(Unavailable, match="does not take the key"):
            await answer(system, model="b/tiny")


async def test_a_node_that_is_killed_in_mid_answer_is_told_and_found_again(asking, tmp_path):
    model = write_tiny_model(tmp_path / "long", context=8192)
    node = node_process(model, tmp_path / "root")
    with node:
        key = {"key_file": str(tmp_path / "root" / "token")}
        async with asking({"name": "b", "url": node.url, "look_seconds": 0.2, **key}) as system:
            ask = {"model": "long", "temperature": 1.0, "min_tokens": 8000}
            stream = system.stream("inference.chat", messages=HELLO, **ask)
            await reading(stream)
            node.kill()
            with pytest.raises(Unavailable, match="b broke off after .* tokens"):
                async for _ in stream:
                    pass
            await until(system, "quarantined")
            with pytest.raises(Unavailable, match="b is quarantined: no connection"):
                await answer(system, **ask)
            await asyncio.to_thread(node.start)
            await until(system, "healthy")
            text, _ = await answer(system, model="long", max_tokens=5)
            assert text


async def test_a_node_that_stands_still_is_given_up_and_another_is_asked(asking, tmp_path, other):
    node = node_process(write_tiny_model(tmp_path / "tiny"), tmp_path / "root")
    (tmp_path / "key").write_text(other.token)
    with node:
        frozen = {"name": "a", "url": node.url, "key_file": str(tmp_path / "root" / "token"), "first_seconds": 0.5}
        well = {"name": "b", "url": f"{other.url}/v1", "key_file": str(tmp_path / "key"), "weight": 0.1}
        async with asking(frozen, well) as system:
            node.freeze()
            text, last = await answer(system, model="upstream/tiny", max_tokens=5, temperature=0.0)
            assert (bool(text), last.finish_reason) == (True, "length")
            process = (await system.call("scheduler.list", ended=True))[-1]
            assert process.device == "b"


async def until(system, state: str) -> None:
    """Wait for the state of the server b."""
    limit = time.monotonic() + 60.0
    while (device := await system.call("devices.show", name="b")).state != state:
        assert time.monotonic() < limit, device
        await asyncio.sleep(0.05)
