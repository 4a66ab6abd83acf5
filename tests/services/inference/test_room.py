"""Several models on one device: who gives way to whom, who stays, and what is said to a model that cannot fit."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from small_devices import SmallDevices
from tiny_model import write_tiny_model

from microkernel.errors import Overloaded
from microkernel.testing import TestKernel
from services.inference.cache.status import Status
from services.inference.engine.relief import PagesUse
from services.inference.room import wanted_pages
from services.inference.service import Inference
from services.memory.messages import Tier
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_tiny_model(folder / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))]


@asynccontextmanager
async def node(models, memory, inference=Inference, **settings):
    """A node that may reserve `memory` bytes, with the first of the models, and the others stored."""
    kinds = (SmallDevices, Memory, Models, Scheduler, inference)
    given = {"model": str(models[0]), "slots": 4, "token_budget": 16, **settings}
    SmallDevices.memory = memory
    async with TestKernel(*kinds, settings={"inference": given, "memory": {"share": 1.0}}) as system:
        yield system


async def account(system):
    [device] = [each for each in await system.call("memory.usage") if each.tier is Tier.DEVICE]
    return device


async def sizes(models) -> tuple[int, int]:
    """What one model takes beside its pages, and what pages for one whole context take."""
    async with node(models, 1 << 30) as system:
        reserved = {each.purpose: each.bytes for each in (await account(system)).reservations}
        pages = reserved.pop("pages of 'one'")
        return sum(reserved.values()), pages // 4


async def answer(system, model="one", tokens=8):
    pieces = [
        piece
        async for piece in system.stream(
            "inference.chat", messages=HELLO, model=model, max_tokens=tokens, temperature=0
        )
    ]
    return "".join(piece.text for piece in pieces)


async def ready(system) -> list[str]:
    return sorted(each.name for each in await system.call("inference.list") if each.state == "ready")


async def begun(system, model="one", tokens=400):
    """A stream whose answer has begun."""
    stream = system.stream("inference.chat", messages=HELLO, model=model, max_tokens=tokens, temperature=0)
    async for piece in stream:
        if piece.text:
            return stream
    raise AssertionError("no text came")


def use(*, held: int = 0, cached: int = 0, pages: int = 100, running: int = 0, waiting: int = 0) -> PagesUse:
    """Pages of a pool that may have 400."""
    free = pages - held - cached
    status = Status(pages, free, cached, cached, held, held + cached, hits=0, misses=0, evictions=0, owners={})
    return PagesUse(status, page_bytes=64, least=20, most=400, running=running, waiting=waiting, elastic=True)


def test_a_model_at_work_that_has_hardly_a_page_left_wants_more_and_one_that_rests_does_not():
    assert wanted_pages(use(held=60, cached=30, running=3)) == 200
    assert wanted_pages(use(held=10, running=1, waiting=2)) == 200
    assert wanted_pages(use(held=60, running=3)) == 100
    assert wanted_pages(use(cached=100)) == 100, "what it has only cached it may have to give, not to multiply"
    assert wanted_pages(use(pages=300, held=300, running=3)) == 400


async def test_pages_that_are_not_in_use_go_to_the_next_model_and_nobody_leaves(models):
    fixed, context = await sizes(models)
    async with node(models, 3 * (fixed + context) + context, cache_share=1.0) as system:
        for model in models[1:]:
            await system.call("inference.load", ref=str(model))
        assert await ready(system) == ["one", "three", "two"]
        for name in ("one", "two", "three"):
            assert await answer(system, name)
        device = await account(system)
        assert device.reserved_bytes <= device.limit_bytes


async def test_idle_models_make_room_the_least_recently_asked_first_and_come_back(models):
    fixed, context = await sizes(models)
    async with node(models, 2 * (fixed + context) + fixed // 2) as system:
        first = await answer(system, "one")
        await system.call("inference.load", ref=str(models[1]))
        await answer(system, "two")
        await answer(system, "one")
        await system.call("inference.load", ref=str(models[2]))
        assert await ready(system) == ["one", "three"]
        assert await answer(system, "two")
        assert await ready(system) == ["three", "two"]
        assert await answer(system, "one") == first


async def test_a_model_that_is_being_asked_stays(models):
    fixed, context = await sizes(models)
    async with node(models, fixed + 2 * context + fixed // 2) as system:
        busy = await begun(system)
        with pytest.raises(Overloaded, match=r"model 'two' needs .*it would fit without 'one' \(in use\)") as refused:
            await system.call("inference.load", ref=str(models[1]))
        assert refused.value.retry_after
        assert await ready(system) == ["one"]
        async for _ in busy:
            pass
        await system.call("inference.load", ref=str(models[1]))
        assert await ready(system) == ["two"]


async def test_models_that_are_asked_at_the_same_time_all_answer_or_are_told_to_come_back(models):
    fixed, context = await sizes(models)
    async with node(models, 2 * (fixed + context) + fixed // 2) as system:
        for model in models:
            await system.call("inference.load", ref=str(model))
        expected = [await answer(system, name) for name in ("one", "two", "three")]
        for _ in range(3):
            asked = [answer(system, name) for name in ("one", "two", "three") for _ in range(2)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            for number, given in enumerate(answers):
                assert given == expected[number // 2] or isinstance(given, Overloaded)
            assert sum(isinstance(given, str) for given in answers) >= 2
            device = await account(system)
            assert device.reserved_bytes <= device.limit_bytes
        assert [await answer(system, name) for name in ("one", "two", "three")] == expected


async def test_a_neighbour_that_leaves_while_room_is_made_is_no_reason_to_refuse_anybody(models, monkeypatch):
    inference, squeezed, goes_on = Inference(), asyncio.Event(), asyncio.Event()
    async with node(models, 1 << 30, inference=inference) as system:
        await system.call("inference.load", ref=str(models[1]))
        await answer(system, "one")  # the other one is squeezed first
        leaving, call = inference._models.find("two"), inference.call

        async def after_it_has_left(to, message=None, /, **fields):
            if to == "memory.resize" and message.id == leaving.pages.id:
                squeezed.set()
                await goes_on.wait()
            return await call(to, message, **fields)

        monkeypatch.setattr(inference, "call", after_it_has_left)
        room = inference._models.places._places["cpu0"].room
        free = await room._free()
        asked = asyncio.create_task(room.reserve("something beside", free + 1))
        await squeezed.wait()
        await system.call("inference.unload", name="two")
        goes_on.set()
        assert (await asked).bytes == free + 1


async def test_three_models_loaded_at_once_each_fit_at_the_size_that_there_is(models):
    fixed, context = await sizes(models)
    async with node(models, 3 * (fixed + context) + context, cache_share=1.0) as system:
        await asyncio.gather(*(system.call("inference.load", ref=str(model)) for model in models * 2))
        assert await ready(system) == ["one", "three", "two"]
        assert all(await asyncio.gather(*(answer(system, name) for name in ("one", "two", "three"))))


async def test_a_model_whose_requests_wait_gets_the_pages_that_others_do_not_use(models):
    fixed, context = await sizes(models)
    async with node(models, 2 * fixed + 6 * context) as system:
        before = (await account(system)).reservations
        await system.call("inference.load", ref=str(models[1]))
        streams = [await begun(system, "two", tokens=300) for _ in range(3)]

        async def read(stream) -> None:
            async for _ in stream:
                pass

        await asyncio.gather(*(read(stream) for stream in streams))
        async with asyncio.timeout(20):
            while True:
                pages = {each.purpose: each.bytes for each in (await account(system)).reservations}
                if pages["pages of 'two'"] >= 3 * context:
                    break
                await asyncio.gather(*(answer(system, "two", 300) for _ in range(4)))
        assert pages["pages of 'one'"] <= max(each.bytes for each in before)


async def test_a_context_that_does_not_fit_becomes_shorter_and_the_log_says_so(models, tmp_path, caplog):
    long = write_tiny_model(tmp_path / "long", context=4096)
    fixed, context = await sizes(models)
    async with node([long], fixed + 5 * context, context_length=4096, slots=1, cache_share=1.0) as system:
        [model] = await system.call("inference.list")
        assert 1024 <= model.context_length < 4096
    assert f"has a context of {model.context_length} tokens instead of 4096" in caplog.text


async def test_a_model_that_guesses_counts_with_the_one_that_it_guesses_for(models):
    async with node(models, 1 << 30, speculation=str(models[1])) as system:
        assert await answer(system, tokens=40)
        device = await account(system)
        reserved = {each.purpose: each.bytes for each in device.reservations}
        async with asyncio.timeout(20):
            while not (device.holdings and device.holdings[0].cached_bytes):
                await asyncio.sleep(0.05)
                device = await account(system)
        [holding] = device.holdings
        fixed = holding.weight_bytes + holding.buffer_bytes
        beside = holding.resident_bytes - fixed - holding.held_bytes - holding.cached_bytes
        assert reserved["weights of 'one'"] < beside < reserved["draft model of 'one'"]


async def test_the_use_of_each_model_and_owner_is_told(models):
    prompt = [{"role": "user", "content": "x" * 100}]
    async with node(models, 1 << 30) as system:
        for owner in ("ann", "bob", "ann"):
            async for _ in system.stream("inference.chat", messages=prompt, max_tokens=4, owner=owner):
                pass
        async with asyncio.timeout(20):
            device = await account(system)
            while not any(each.hits for each in device.owners):
                await asyncio.sleep(0.05)
                device = await account(system)
        owners = {each.owner: each for each in device.owners}
        assert owners["ann"].hits > 90
        assert owners["bob"].hits == 0, "what ann has asked is nobody else's to find"
        assert owners["bob"].misses + owners["bob"].misses == owners["ann"].hits + owners["ann"].misses
        [holding] = device.holdings
        assert holding.name == "one"
        assert holding.held_bytes == 0
        assert holding.cached_bytes == sum(each.bytes for each in device.owners)
        fixed = holding.weight_bytes + holding.buffer_bytes
        assert holding.cached_bytes <= holding.resident_bytes - fixed <= holding.cached_bytes + holding.free_bytes
        assert device.used_bytes == holding.resident_bytes
        [disk] = [each for each in await system.call("memory.usage") if each.tier is Tier.DISK]
        assert [each.purpose for each in disk.reservations] == ["saved contexts"]
