"""Models that other devices serve, asked as those that are here."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from inference_node import HELLO, SERVICES, answer, reading
from model_servers import Parrot, parrots
from tiny_model import write_tiny_model

import services.devices.service as devices_module
from microkernel.asking import ChatMessage
from microkernel.errors import (
    CallCancelled,
    Invalid,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
    Unimplemented,
)
from microkernel.model_server import Generated
from microkernel.testing import TestKernel
from services.inference.continued import continued
from services.inference.messages import Chat, Piece


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def node(tiny, monkeypatch):
    @asynccontextmanager
    async def made(*birds, **settings):
        parrots(devices_module, monkeypatch, *birds)
        async with TestKernel(*SERVICES, settings={"inference": {"model": str(tiny), **settings}}) as system:
            yield system

    return made


async def processes(system):
    return {each.pid: each for each in await system.call("scheduler.list", ended=True)}


async def test_a_chat_with_a_served_model_is_one_as_any_other(node):
    bird = Parrot("a", "polly")
    async with node(bird) as system:
        text, last = await answer(system, model="polly", temperature=0.5, max_tokens=9, stop=["x"], seed=3)
        assert text == "Hello, world"
        assert (last.finish_reason, last.model, last.index) == ("stop", "polly", 0)
        assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (5, 3, 2)
        assert 0 <= last.usage.queue_seconds <= last.usage.first_token_seconds <= last.usage.total_seconds
        (ask,) = bird.asked
        assert (ask.model, ask.temperature, ask.max_tokens, ask.stop, ask.seed) == ("polly", 0.5, 9, ["x"], 3)
        assert ask.messages[0].content == "Hello"


async def test_a_text_is_completed_by_a_served_model(node):
    bird = Parrot("a", "polly")
    async with node(bird) as system:
        pieces = [piece async for piece in system.stream("inference.complete", prompt="Once", model="polly")]
        assert "".join(piece.text for piece in pieces) == "Hello, world"
        assert (bird.asked[0].prompt, bird.asked[0].messages) == ("Once", None)


async def test_what_is_here_goes_before_what_is_served_under_the_same_name(node):
    bird = Parrot("a", "tiny")
    async with node(bird) as system:
        await answer(system, model="tiny", max_tokens=2)
        assert bird.asked == []
        for name in ("a/tiny", "parrot/tiny"):
            text, last = await answer(system, model=name)
            assert (text, last.model) == ("Hello, world", name)
        assert [ask.model for ask in bird.asked] == ["tiny", "tiny"]


async def test_a_model_that_is_stored_meanwhile_goes_before_the_served_one(node, tmp_path):
    bird = Parrot("a", "late")
    async with node(bird) as system:
        await answer(system, model="late")
        assert len(bird.asked) == 1
        ref = str(write_tiny_model(tmp_path / "late"))
        async for _ in system.stream("models.pull", ref=ref):
            pass
        while len((await answer(system, model="late", max_tokens=2))[0]) > 2:  # until the event has come
            await asyncio.sleep(0)
        asked = len(bird.asked)
        await answer(system, model="late", max_tokens=2)
        assert len(bird.asked) == asked


async def test_models_are_listed_with_their_devices_by_the_names_that_mean_them(node):
    birds = Parrot("a", "polly", "tiny"), Parrot("b", "polly"), Parrot("c", "gone")
    birds[2].away = "no route"
    async with node(*birds) as system:
        listed = {model.name: model for model in await system.call("inference.list")}
        assert listed["tiny"].device == "cpu0"
        assert (listed["polly"].device, listed["polly"].state) == ("a, b", "ready")
        assert (listed["polly"].context_length, listed["polly"].created) == (512, 7)
        assert listed["a/tiny"].device == "a"
        assert (listed["gone"].state, listed["gone"].why) == ("failed", "c: no route")
        assert next(iter(listed)) == "tiny"


async def test_a_name_that_nobody_has_is_not_found(node):
    async with node(Parrot("a", "polly")) as system:
        for name in ("nobody", "a/nobody", "b/polly"):
            with pytest.raises(NotFound):
                await answer(system, model=name)


async def test_a_model_whose_device_is_away_is_there_and_cannot_be_asked_now(node):
    bird = Parrot("a", "polly")
    bird.away = "no route"
    async with node(bird) as system:
        with pytest.raises(Unavailable, match="no route"):
            await answer(system, model="polly")


async def test_an_answer_is_a_process_with_its_device_and_what_it_cost(node):
    bird = Parrot("a", "polly")
    bird.hold = asyncio.Event()
    async with node(bird) as system:
        async with system.stream("inference.chat", messages=HELLO, model="polly") as pieces:
            first = await reading(pieces)
            process = (await processes(system))[first.pid]
            assert (process.kind, process.title, process.service) == ("chat", "Hello", "inference")
            assert "runs at a" in (await system.call("scheduler.why", pid=first.pid))
            bird.hold.set()
            async for _ in pieces:
                pass
        process = (await processes(system))[first.pid]
        assert (process.state, process.why, process.device) == ("done", "stop", "a")
        assert (process.tokens_in, process.tokens_out) == (5, 3)


async def test_a_killed_answer_ends_with_its_cause_and_lets_the_device_go(node):
    bird = Parrot("a", "polly")
    bird.hold = asyncio.Event()
    async with node(bird) as system:
        stream = system.stream("inference.chat", messages=HELLO, model="polly")
        piece = await reading(stream)
        await system.call("scheduler.kill", pid=piece.pid, why="enough")
        with pytest.raises(CallCancelled, match="enough"):
            async for _ in stream:
                pass
        while bird.running:
            await asyncio.sleep(0)
        assert (await processes(system))[piece.pid].state == "killed"


async def test_an_answer_that_waits_for_a_place_can_be_seen_and_killed(node):
    bird = Parrot("a", "polly", places=1)
    bird.hold = asyncio.Event()
    async with node(bird) as system, system.stream("inference.chat", messages=HELLO, model="polly") as stream:
        await reading(stream)
        waiting = asyncio.create_task(answer(system, model="polly"))
        while len(pids := await processes(system)) < 2:
            await asyncio.sleep(0.01)
        pid = max(pids)
        while "waits for a place" not in await system.call("scheduler.why", pid=pid):
            await asyncio.sleep(0.01)
        await system.call("scheduler.kill", pid=pid, why="no time")
        with pytest.raises(CallCancelled, match="no time"):
            await waiting
        assert (await system.call("devices.show", name="a")).queued == 0


async def test_what_a_device_cannot_be_asked_for_is_refused_by_name(node):
    bird = Parrot("a", "polly")
    bird.hold = asyncio.Event()
    async with node(bird) as system, system.stream("inference.chat", messages=HELLO, model="polly") as stream:
        piece = await reading(stream)
        with pytest.raises(PreconditionFailed, match="cannot be saved: a makes its answer"):
            await system.call("inference.save", pid=piece.pid, name="x")
        with pytest.raises(PreconditionFailed, match="cannot be paused"):
            await system.call("scheduler.pause", pid=piece.pid)
        with pytest.raises(PreconditionFailed, match="cannot be paused"):
            await system.call("inference.pause", pid=piece.pid)
        with pytest.raises(PreconditionFailed, match="cannot be reniced"):
            await system.call("scheduler.nice", pid=piece.pid, nice=5)
        with pytest.raises(Invalid, match="signal"):
            await system.call("inference.signal", pid=piece.pid, signal="juggle", why="")


async def test_several_answers_are_several_requests_each_with_a_seed_of_its_own(node):
    bird = Parrot("a", "polly")
    async with node(bird) as system:
        pieces = [piece async for piece in system.stream("inference.chat", messages=HELLO, model="polly", n=3, seed=5)]
        assert sorted(ask.seed for ask in bird.asked) == [5, 6, 7]
        assert len({piece.pid for piece in pieces}) == 3
        for index in range(3):
            assert "".join(piece.text for piece in pieces if piece.index == index) == "Hello, world"


async def test_too_many_answers_are_refused(node):
    async with node(Parrot("a", "polly")) as system:
        for n in (0, 129):
            with pytest.raises(Invalid) as caught:
                await answer(system, model="polly", n=n)
            assert caught.value.field == "n"


async def test_an_answer_whose_tokens_nobody_tells_is_not_begun_again_behind_its_text(node):
    asked = Chat(messages=[ChatMessage(role="user", content="Hello")], model="polly")
    goes_on = continued(asked)
    assert goes_on.message().begun == []
    goes_on.take(Piece(pid=1))
    assert goes_on.message().begun == []
    goes_on.take(Piece(text="Hello"))
    with pytest.raises(Unavailable, match="cannot go on"):
        goes_on.message()
    async with node(Parrot("a", "polly")) as system:
        with pytest.raises(Unimplemented) as caught:
            await answer(system, model="polly", begun=[1, 2])
        assert caught.value.field == "begun"
        text, _ = await answer(system, model="polly", return_token_ids=True)
        assert text == "Hello, world"


async def test_tokens_of_served_models_count_against_an_owners_rate(node):
    bird = Parrot("a", "polly")
    async with node(bird, rates={"local": {"tokens": 1.0}}) as system:
        await answer(system, model="polly")
        with pytest.raises(Overloaded, match="1 tokens in a minute"):
            await answer(system, model="polly")


async def test_an_answer_without_a_count_of_tokens_has_no_usage_and_is_charged_by_its_pieces(node):
    class Terse(Parrot):
        async def generate(self, ask):
            yield Generated()
            yield Generated(text="a", tokens=1)
            yield Generated(text="b", tokens=1)
            yield Generated(finish_reason="length")

    async with node(Terse("a", "polly")) as system:
        _, last = await answer(system, model="polly")
        assert (last.finish_reason, last.usage) == ("length", None)
        assert (await processes(system))[last.pid].tokens_out == 2


async def test_tools_go_to_devices_that_know_them_and_are_refused_here(node):
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}

    class Able(Parrot):
        async def generate(self, ask):
            self.asked.append(ask)
            yield Generated()
            yield Generated(tool_calls=[call], tokens=1)
            yield Generated(finish_reason="tool_calls")

    bird, tools = Able("a", "polly"), [{"type": "function", "function": {"name": "add"}}]
    async with node(bird) as system:
        pieces = [piece async for piece in system.stream("inference.chat", messages=HELLO, model="polly", tools=tools)]
        assert [each for piece in pieces for each in piece.tool_calls] == [call]
        assert pieces[-1].finish_reason == "tool_calls"
        assert bird.asked[0].tools == tools
        with pytest.raises(Unimplemented) as caught:
            await answer(system, tools=tools)
        assert caught.value.field == "tools"


async def test_a_slow_reader_holds_the_device_back_and_is_cut_at_last(node, monkeypatch):
    said = 0

    class Chatty(Parrot):
        async def generate(self, ask):
            nonlocal said
            yield Generated()
            while True:
                said += 1
                yield Generated(text="x", tokens=1)

    monkeypatch.setattr("services.inference.relayed.SLOW_READER", 0.1)
    async with node(Chatty("a", "polly")) as system:
        stream = system.stream("inference.chat", messages=HELLO, model="polly")
        await anext(stream)
        before = -1
        while said != before:
            before = said
            await asyncio.sleep(0.05)
        assert said <= 64
        while (await system.call("devices.show", name="a")).running:
            await asyncio.sleep(0.05)
        assert len((await anext(stream)).text) <= 64
        with pytest.raises(Overloaded, match="slow reader"):
            await anext(stream)


async def test_a_failure_is_told_to_the_reader_after_what_came_before_it(node):
    bird = Parrot("a", "polly")
    bird.error = Unavailable("connection reset")
    async with node(bird) as system:
        stream = system.stream("inference.chat", messages=HELLO, model="polly", temperature=1.0)
        text = ""
        while text != "Hello, world":
            text += (await anext(stream)).text
        with pytest.raises(Unavailable, match="a broke off after 3 tokens: connection reset"):
            await anext(stream)
        (process,) = (await processes(system)).values()
        assert process.state == "failed"


async def test_a_served_model_may_be_the_default_one(tiny, monkeypatch):
    bird = Parrot("a", "org/polly")
    parrots(devices_module, monkeypatch, bird)
    async with TestKernel(*SERVICES, settings={"inference": {"model": "a/org/polly"}}) as system:
        text, last = await answer(system)
        assert (text, last.model) == ("Hello, world", "a/org/polly")
        (first, *_) = await system.call("inference.list")
        assert (first.name, first.default, first.device) == ("a/org/polly", True, "a")


async def test_an_owner_cannot_touch_what_is_another_owners(node):
    from microkernel.capability import Rights

    bird = Parrot("a", "polly")
    bird.hold = asyncio.Event()
    async with node(bird) as system:
        ana, bob = (
            system.kernel.port.narrow(caller=f"session {name}", rights=Rights(), user=name) for name in ("ana", "bob")
        )
        async with ana.stream("inference.chat", messages=HELLO, model="polly") as stream:
            piece = await reading(stream)
            assert (await processes(system))[piece.pid].owner == "ana"
            with pytest.raises(NotFound):
                await bob.call("inference.signal", pid=piece.pid, signal="kill", why="")
