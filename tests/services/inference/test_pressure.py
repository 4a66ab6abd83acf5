"""Memory runs short while answers are made: what each rung does, through the kernel, and that no text changes."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from small_devices import SmallDevices
from tiny_model import write_tiny_model

from microkernel.errors import Overloaded
from microkernel.testing import TestKernel
from services.inference.engine.engine import Engine
from services.inference.engine.relief import Relief
from services.inference.native.pages import HostPages
from services.inference.service import Inference
from services.memory.messages import Pressure, Rung, Tier
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_tiny_model(folder / name, seed=seed) for seed, name in enumerate(("one", "two"))]


@asynccontextmanager
async def node(models, monkeypatch, memory=None, inference=Inference, **settings):
    monkeypatch.setattr(SmallDevices, "memory", 1 << 30)
    monkeypatch.setattr(SmallDevices, "free", None)
    kinds = (SmallDevices, Memory, Models, Scheduler, inference)
    given = {"model": str(models[0]), "slots": 8, "token_budget": 16, **settings}
    async with TestKernel(*kinds, settings={"inference": given, "memory": {"share": 1.0, **(memory or {})}}) as system:
        yield system


async def account(system):
    [device] = [each for each in await system.call("memory.usage") if each.tier is Tier.DEVICE]
    return device


async def press(system, monkeypatch, rung: Rung) -> None:
    """Have others take so much memory that the device comes to `rung`, or give it back."""
    shares = {Rung.CALM: 0.1, Rung.DROP: 0.65, Rung.MOVE: 0.75, Rung.CLOSE: 0.9, Rung.PAUSE: 0.99}
    used = (await account(system)).used_bytes
    monkeypatch.setattr(SmallDevices, "free", int(used / shares[rung]) - used)
    async with asyncio.timeout(20):
        # What the rung does may leave it again at once.
        async for event in system.subscribe("memory.pressure"):
            if (event.body.rung if hasattr(event.body, "rung") else event.body["rung"]) == rung:
                return


async def whole(stream) -> str:
    return "".join([piece.text async for piece in stream])


def ask(system, text="Hello", model="one", tokens=400, owner="local"):
    messages = [{"role": "user", "content": text}]
    return system.stream(
        "inference.chat", messages=messages, model=model, max_tokens=tokens, temperature=0, owner=owner
    )


async def begun(stream):
    """The text of a stream so far; its answer has begun."""
    async for piece in stream:
        if piece.text:
            return piece.text
    raise AssertionError("no text came")


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_prefixes_that_nobody_holds_are_dropped_and_their_memory_is_given_back(models, monkeypatch):
    async with node(models, monkeypatch) as system:
        for number in range(6):
            await whole(ask(system, f"{number} " * 100, tokens=5))

        async def told():
            return (await account(system)).holdings[0].cached_bytes > 200_000

        await until(told)
        before = await account(system)
        await press(system, monkeypatch, Rung.DROP)

        async def dropped():
            return (await account(system)).holdings[0].cached_bytes < before.holdings[0].cached_bytes

        await until(dropped)
        assert (await account(system)).used_bytes < before.used_bytes


async def test_a_pool_of_fixed_size_is_no_pressure_by_itself_and_answers_give_up_what_they_hold_of_it(
    models, monkeypatch
):
    monkeypatch.setattr(HostPages, "elastic", False)
    inference = Inference()
    async with node(models, monkeypatch, inference=inference) as system:
        monkeypatch.setattr(SmallDevices, "free", 1000)  # the pool has taken the rest
        expected = await whole(ask(system))
        [holding] = (await account(system)).holdings
        await whole(ask(system, "more", tokens=4))

        async def told():
            [after] = (await account(system)).holdings
            return after.held_bytes == 0 and after.cached_bytes > holding.cached_bytes

        await until(told)
        device = await account(system)
        assert device.rung is Rung.CALM
        assert device.used_bytes == holding.weight_bytes + holding.buffer_bytes
        running = ask(system)
        text = await begun(running)  # and its reader is behind, until it is wanted again

        async def held():
            return (await account(system)).holdings[0].held_bytes > 0

        await until(held)

        async def stopped():
            generations = inference._models.find("one").runner.generations
            return all(each.held_since is not None for each in generations)

        await until(stopped)
        before = (await account(system)).holdings[0].cached_bytes
        await inference._models.places.press(Pressure(device="cpu0", rung=Rung.MOVE, used=2, limit=2, excess=1 << 40))
        use = await inference._models.find("one").with_pages(Relief.use)
        assert use.status.held == 0
        assert use.status.cached * use.page_bytes >= before, "to forget them would free nothing"
        assert text + await whole(running) == expected


async def test_a_model_that_nobody_asks_leaves_and_the_one_asked_last_stays(models, monkeypatch):
    monkeypatch.setattr("services.inference.housekeeping.COLD", 0.0)
    async with node(models, monkeypatch) as system:
        await system.call("inference.load", ref=str(models[1]))
        first = await whole(ask(system, model="one", tokens=8))
        await whole(ask(system, model="two", tokens=8))

        async def told():
            return len((await account(system)).holdings) == 2

        await until(told)
        await press(system, monkeypatch, Rung.MOVE)

        async def gone():
            return [each.name for each in await system.call("inference.list") if each.state == "ready"] == ["two"]

        await until(gone)
        await press(system, monkeypatch, Rung.CALM)
        assert await whole(ask(system, model="one", tokens=8)) == first


async def test_a_model_that_leaves_for_good_while_others_are_relieved_does_not_rest(models, monkeypatch):
    monkeypatch.setattr("services.inference.housekeeping.COLD", 0.0)
    inference = Inference()
    async with node(models, monkeypatch, inference=inference) as system:
        await system.call("inference.load", ref=str(models[1]))
        await whole(ask(system, model="one", tokens=8))
        short = Pressure(device="cpu0", rung=Rung.MOVE, used=2, limit=2, excess=1 << 40)
        relieved = inference._models.places.press(short)
        await asyncio.gather(relieved, system.call("inference.unload", name="two"))
        assert [(each.name, each.state) for each in await system.call("inference.list")] == [("one", "ready")]
        assert await whole(ask(system, model="one", tokens=8))


async def test_nothing_new_begins_beside_what_runs_and_is_told_when_to_come_back(models, monkeypatch):
    async with node(models, monkeypatch) as system:
        expected = await whole(ask(system))
        running = ask(system)
        text = await begun(running)
        await press(system, monkeypatch, Rung.CLOSE)

        async def closed():
            try:
                await whole(ask(system, "another", tokens=1))
            except Overloaded as error:
                assert error.retry_after
                assert "memory of cpu0 is short" in error.message
                return True
            return False

        await until(closed)
        assert text + await whole(running) == expected
        assert await whole(ask(system)) == expected, "with nothing else running, one goes on"


async def model(system):
    [one] = [each for each in await system.call("inference.list") if each.name == "one"]
    return one


async def test_what_runs_is_paused_down_to_one_and_goes_on_later_with_the_same_text(models, monkeypatch):
    prompts = [f"{number} is a number" for number in range(4)]
    async with node(models, monkeypatch) as system:
        expected = [await whole(ask(system, prompt)) for prompt in prompts]
        step = Engine.step

        def slowly(engine):
            time.sleep(0.01)
            return step(engine)

        monkeypatch.setattr(Engine, "step", slowly)
        answers = [asyncio.create_task(whole(ask(system, prompt))) for prompt in prompts]

        async def all_run():
            return (await model(system)).running == 4

        async def one_runs():
            one = await model(system)
            return (one.running, one.waiting) == (1, 3)

        await until(all_run)
        await press(system, monkeypatch, Rung.PAUSE)
        await until(one_runs)
        monkeypatch.setattr(Engine, "step", step)
        await press(system, monkeypatch, Rung.CALM)
        assert await asyncio.gather(*answers) == expected


async def test_answers_whose_readers_are_behind_give_their_pages_up_and_go_on_with_the_same_text(models, monkeypatch):
    prompts = [f"{number} is a number" for number in range(4)]
    async with node(models, monkeypatch) as system:
        expected = [await whole(ask(system, prompt)) for prompt in prompts]
        streams = [ask(system, prompt) for prompt in prompts]
        texts = [await begun(stream) for stream in streams]
        await press(system, monkeypatch, Rung.PAUSE)  # more is in excess than what is cached

        async def moved():
            return (await model(system)).running == 0

        await until(moved)
        rest = [asyncio.create_task(whole(stream)) for stream in streams]
        assert [text + await each for text, each in zip(texts, rest, strict=True)] == expected


async def test_a_quota_that_is_set_live_holds_for_what_runs(models, monkeypatch):
    async with node(models, monkeypatch) as system:
        expected = await whole(ask(system, owner="ann"))
        page_bytes = 2 * 16 * 2 * 2 * 16 * 2  # as the kernels lay them out; torch's take twice as much
        running = ask(system, owner="ann")
        text = await begun(running)
        await system.call("memory.set_quota", owner="ann", quota=2 * 32 * page_bytes)
        waiting = asyncio.create_task(whole(ask(system, owner="ann")))
        await system.call("memory.set_quota", owner="eve", quota=1)
        with pytest.raises(Overloaded, match=r"needs \d pages of 16 tokens; .* of which 'eve' may have 0"):
            await whole(ask(system, owner="eve"))
        assert await whole(ask(system, owner="bob")) == expected, "others run"
        assert text + await whole(running) == expected
        assert await waiting == expected

        async def are_told() -> bool:
            return {"ann", "bob"} <= {each.owner for each in (await account(system)).owners}

        await until(are_told)
        owners = {each.owner: each for each in (await account(system)).owners}
        assert owners["ann"].quota == 2 * 32 * page_bytes
        assert owners["bob"].quota is None


async def test_settings_say_who_may_have_how_much_from_the_first_request_on(models, monkeypatch):
    memory = {"quotas": {"ann": 0.5}, "default_quota": 1}
    async with node(models, monkeypatch, memory) as system:
        assert await whole(ask(system, owner="ann", tokens=4))
        with pytest.raises(Overloaded, match="'bob' may have 0"):
            await whole(ask(system, owner="bob", tokens=4))
