"""A real llama-cpp-python server, which is a process of its own, as a device."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest
from inference_node import HELLO, answer, reading
from server_process import llama_cpp_server

from microkernel.errors import Unavailable, Unimplemented

pytestmark = [pytest.mark.peer, pytest.mark.model]

COUNT = [{"role": "user", "content": "Count from one to fifty, in words."}]


@pytest.fixture(scope="module")
def llama(default_model, tmp_path_factory):
    pytest.importorskip("llama_cpp")
    pytest.importorskip("fastapi")
    with llama_cpp_server(default_model, tmp_path_factory.mktemp("llama") / "log") as server:
        yield server


def at(server, name="llama0", **settings):
    return {"name": name, "url": server.url, "look_seconds": 0.5, **settings}


async def direct(server, **fields):
    """What it says when it is asked itself."""
    async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        made = await client.chat.completions.create(model="smol", messages=HELLO, **fields)
        return made.choices[0].message.content


async def test_it_is_a_device_with_its_model(asking, llama):
    async with asking(at(llama)) as system:
        device = await system.call("devices.show", name="llama0")
        assert (device.state, device.models) == ("healthy", ("smol",))
        assert device.model == f"llama-cpp-python at {llama.url}"


async def test_a_chat_says_what_it_says_when_it_is_asked_directly(asking, llama):
    async with asking(at(llama)) as system:
        text, last = await answer(system, model="smol", max_tokens=24, temperature=0.0)
        assert text == await direct(llama, max_tokens=24, temperature=0.0)
        assert text
        assert last.finish_reason in {"stop", "length"}
        assert last.usage is None  # it does not tell the cost of a stream


async def test_clients_of_the_gateway_see_it_and_chat_with_it(asking, llama):
    async with asking(at(llama)) as system:
        url = (await system.call("gateway.address")).url
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=system.token, max_retries=0) as client:
            assert "smol" in [model.id async for model in client.models.list()]
            stream = await client.chat.completions.create(
                model="smol", messages=HELLO, max_tokens=24, temperature=0.0, stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
            assert text == await direct(llama, max_tokens=24, temperature=0.0)


async def test_a_text_is_completed(asking, llama):
    async with asking(at(llama)) as system:
        stream = system.stream(
            "inference.complete", prompt="The capital of France is", model="smol", max_tokens=6, temperature=0.0
        )
        assert "Paris" in "".join([piece.text async for piece in stream])


async def test_the_same_seed_says_the_same(asking, llama):
    async with asking(at(llama)) as system:
        fields = {"model": "smol", "max_tokens": 16, "temperature": 1.0, "seed": 11}
        first, _ = await answer(system, **fields)
        second, _ = await answer(system, **fields)
        assert first == second


@pytest.mark.parametrize(
    ("grammar", "fits"),
    [
        ({"choice": ["perhaps", "never"]}, lambda text: text in {"perhaps", "never"}),
        ({"lark": 'root ::= "(" [0-9] ")"'}, lambda text: len(text) == 3 and text[0] == "("),
        (
            {"json_schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}},
            lambda text: text.replace(" ", "").replace("\n", "") in {'{"a":true}', '{"a":false}'},
        ),
    ],
)
async def test_an_answer_fits_its_grammar(asking, llama, grammar, fits):
    async with asking(at(llama)) as system:
        text, _ = await answer(system, model="smol", max_tokens=40, temperature=0.0, grammar=grammar)
        assert fits(text)


async def test_a_stop_ends_the_answer(asking, llama):
    async with asking(at(llama)) as system:
        whole, _ = await answer(system, model="smol", max_tokens=24, temperature=0.0)
        stop = whole.split()[2]
        cut, last = await answer(system, model="smol", max_tokens=24, temperature=0.0, stop=[stop])
        assert stop not in cut
        assert last.finish_reason == "stop"


async def test_what_it_does_not_know_is_refused_by_name(asking, llama):
    async with asking(at(llama)) as system:
        for fields, field in (
            ({"stop_token_ids": [1]}, "stop_token_ids"),
            ({"ignore_eos": True}, "ignore_eos"),
            ({"grammar": {"regex": "a+"}}, "grammar"),
        ):
            with pytest.raises(Unimplemented, match="llama-cpp-python does not know") as caught:
                await answer(system, model="smol", **fields)
            assert caught.value.field == field


async def test_what_it_refuses_itself_is_told_with_its_words(asking, llama):
    async with asking(at(llama)) as system:
        with pytest.raises(Unavailable, match=r"llama0: it failed \(500\): .*less than or equal to 1"):  # its status
            await answer(system, model="smol", top_p=7.0)
        text, _ = await answer(system, model="smol", max_tokens=4)
        assert text
        assert (await system.call("devices.show", name="llama0")).state == "healthy"


async def test_a_reader_that_leaves_frees_it_for_the_next(asking, llama):
    async with asking(at(llama, concurrency=1)) as system:
        async with system.stream("inference.chat", messages=COUNT, model="smol", max_tokens=400) as stream:
            await reading(stream)
        text, _ = await answer(system, model="smol", max_tokens=8, temperature=0.0)
        assert text


async def test_its_key_is_asked_for_and_sent(asking, default_model, tmp_path):
    with llama_cpp_server(default_model, tmp_path / "log", "--api_key", "the-key") as server:
        (tmp_path / "key").write_text("the-key\n")
        async with asking(at(server, models=["smol"]), at(server, "llama1", key_file=str(tmp_path / "key"))) as system:
            states = {each.name: each for each in await system.call("devices.list")}
            assert states["llama0"].state == "quarantined"
            assert "asks for a key" in states["llama0"].why
            text, _ = await answer(system, model="smol", max_tokens=4)
            assert text


async def test_one_of_two_that_is_killed_costs_only_the_answers_that_it_had_begun(
    asking, llama, default_model, tmp_path
):
    with llama_cpp_server(default_model, tmp_path / "log") as leaving:
        async with asking(at(llama, "stays"), at(leaving, "leaves")) as system:
            stream = system.stream("inference.chat", messages=COUNT, model="leaves/smol", max_tokens=400)
            await reading(stream)
            leaving.kill()
            with pytest.raises(Unavailable, match="leaves broke off after .* tokens"):
                async for _ in stream:
                    pass
            answers = await asyncio.gather(
                *(answer(system, model="smol", max_tokens=6, temperature=0.0) for _ in range(6))
            )
            assert len({text for text, _ in answers}) == 1
            until = time.monotonic() + 60.0
            while (await system.call("devices.show", name="leaves")).state != "quarantined":
                assert time.monotonic() < until
                await asyncio.sleep(0.05)
            assert (await system.call("devices.show", name="stays")).state == "healthy"
            ended = await system.call("scheduler.list", ended=True)
            assert {each.device for each in ended if each.state == "done"} == {"stays"}


async def test_a_greedy_answer_goes_on_at_another_when_its_server_is_killed(asking, llama, default_model, tmp_path):
    with llama_cpp_server(default_model, tmp_path / "log") as leaving:
        async with asking(at(llama, "stays", weight=0.01), at(leaving, "leaves")) as system:
            fields = {"messages": COUNT, "model": "smol", "max_tokens": 120, "temperature": 0.0}
            whole = "".join([piece.text async for piece in system.stream("inference.chat", **fields)])
            stream = system.stream("inference.chat", **fields)
            text = (await reading(stream)).text
            leaving.kill()
            text += "".join([piece.text async for piece in stream])
            assert text == whole
