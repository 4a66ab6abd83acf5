"""Adapters through the kernel: loaded by path or from the store, asked by name beside their model, and unloaded."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager

import openai
import pytest
from tiny_adapters import peft_tensors, random_pairs, write_gguf_adapter, write_peft
from tiny_model import write_tiny_model

from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import (
    AlreadyExists,
    Internal,
    Invalid,
    NotFound,
    Overloaded,
    PreconditionFailed,
    Unavailable,
)
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.gateway.service import Gateway
from services.inference import loaded_adapters as module
from services.inference.service import Inference
from services.inference.stored_models import StoredModels
from services.memory.messages import Holding
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler

HELLO = [{"role": "user", "content": "Hello"}]
SERVICES = (Devices, Memory, Models, Scheduler, Inference)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapters(tiny, tmp_path_factory):
    """Two of PEFT's folders."""
    folder, config = tmp_path_factory.mktemp("adapters"), open_checkpoint(tiny).config
    return [
        write_peft(folder / name, peft_tensors(random_pairs(config, seed=seed), config), lora_alpha=8)
        for seed, name in enumerate(("poet", "clerk"))
    ]


@asynccontextmanager
async def node(tiny, *more, memory=None, **settings):
    sections = {"inference": {"model": str(tiny), **settings}, "memory": memory or {}, "gateway": {"port": 0}}
    sections = {name: section for name, section in sections.items() if name != "gateway" or more}
    async with TestKernel(*SERVICES, *more, settings=sections) as system:
        yield system


async def answer(system, **fields):
    """The text of a greedy chat and its last piece."""
    fields = {"messages": HELLO, "max_tokens": 12, "temperature": 0, **fields}
    pieces = [piece async for piece in system.stream("inference.chat", **fields)]
    return "".join(piece.text for piece in pieces), pieces[-1]


async def reading(stream):
    """A stream whose answer has begun."""
    async for piece in stream:
        if piece.text:
            return piece
    raise AssertionError("no text came")


WHOLE = {name: {f"{part} of '{name}'" for part in ("weights", "buffers", "pages")} for name in ("tiny", "other")}


async def reserved(system) -> set[str]:
    """What memory of the device is reserved for."""
    account, _ = await system.call("memory.usage")
    return {each.purpose for each in account.reservations}


async def names(system) -> list[str]:
    return [model.name for model in await system.call("inference.list")]


async def test_an_adapter_is_asked_by_its_name_beside_its_model(tiny, adapters):
    async with node(tiny) as system:
        plain, _ = await answer(system)
        shown = await system.call("inference.load_adapter", ref=str(adapters[0]))
        assert (shown.name, shown.parent, shown.state, shown.default) == ("poet", "tiny", "ready", False)
        text, last = await answer(system, model="poet")
        assert (last.model, text != plain) == ("poet", True)
        pieces = [piece async for piece in system.stream("inference.complete", prompt="once", model="poet")]
        assert pieces[-1].model == "poet"
        assert (await answer(system, model="tiny"))[0] == plain


async def test_a_model_that_is_asked_through_its_adapter_was_asked(tiny, adapters):
    inference = Inference()
    async with TestKernel(*SERVICES[:-1], inference, settings={"inference": {"model": str(tiny)}}) as system:
        await system.call("inference.load_adapter", ref=str(adapters[0]))
        loaded = inference._models.find("tiny")
        before = loaded.asked_at
        await answer(system, model="poet")
        assert before < loaded.asked_at <= inference.clock.now()


async def test_answers_with_several_adapters_and_none_at_once_are_those_that_each_gives_alone(tiny, adapters):
    async with node(tiny) as system:
        for path in adapters:
            await system.call("inference.load_adapter", ref=str(path))
        who = ["tiny", "poet", "clerk"]
        alone = {name: (await answer(system, model=name, max_tokens=30))[0] for name in who}
        assert len(set(alone.values())) == 3
        together = await asyncio.gather(*(answer(system, model=name, max_tokens=30) for name in who * 4))
        assert [text for text, _ in together] == [alone[name] for name in who] * 4


async def test_it_is_listed_with_its_model_and_its_memory_is_reserved(tiny, adapters):
    async with node(tiny) as system:
        await system.call("inference.load_adapter", ref=str(adapters[0]), name="Poet-2")
        tiny_shown, poet = await system.call("inference.list")
        assert (tiny_shown.name, tiny_shown.parent, tiny_shown.default) == ("tiny", "", True)
        assert (poet.name, poet.parent, poet.context_length) == ("Poet-2", "tiny", tiny_shown.context_length)
        assert 0 < poet.parameters < tiny_shown.parameters
        account, _ = await system.call("memory.usage")
        assert {each.purpose: each.bytes for each in account.reservations}["adapter 'Poet-2'"] == poet.weight_bytes
        await system.call("inference.unload_adapter", name="Poet-2")
        assert await reserved(system) == WHOLE["tiny"]
        assert await names(system) == ["tiny"]
        with pytest.raises(NotFound, match="no model is named 'Poet-2'"):
            await answer(system, model="Poet-2")


async def test_memory_is_told_what_adapters_take(tiny, adapters):
    async with node(tiny) as system:

        async def told(adapted: bool) -> Holding:
            async with asyncio.timeout(20):
                while True:
                    account, _ = await system.call("memory.usage")
                    reserved = {each.purpose: each.bytes for each in account.reservations}
                    weights = reserved["weights of 'tiny'"] + reserved.get("adapter 'poet'", 0)
                    [holding] = account.holdings or [Holding(name="", device="")]
                    if holding.weight_bytes == weights and ("adapter 'poet'" in reserved) == adapted:
                        return holding
                    await asyncio.sleep(0.05)

        await system.call("inference.load_adapter", ref=str(adapters[0]))
        with_it = await told(adapted=True)
        assert with_it.resident_bytes >= with_it.weight_bytes + with_it.buffer_bytes
        await system.call("inference.unload_adapter", name="poet")
        assert (await told(adapted=False)).weight_bytes < with_it.weight_bytes


async def test_a_gguf_adapter_gives_the_same_answers_as_the_folder(tiny, adapters, tmp_path):
    config = open_checkpoint(tiny).config
    path = write_gguf_adapter(tmp_path / "Other.gguf", random_pairs(config, seed=0), config, alpha=8.0)
    async with node(tiny) as system:
        await system.call("inference.load_adapter", ref=str(adapters[0]))
        await system.call("inference.load_adapter", ref=str(path))
        assert (await answer(system, model="other"))[0] == (await answer(system, model="poet"))[0]


async def test_one_in_use_is_not_unloaded_and_goes_when_its_answers_have_ended(tiny, adapters):
    async with node(tiny) as system:
        await system.call("inference.load_adapter", ref=str(adapters[0]))
        stream = system.stream("inference.chat", messages=HELLO, model="poet", max_tokens=400)
        await reading(stream)
        with pytest.raises(PreconditionFailed, match="1 answers use the adapter 'poet'"):
            await system.call("inference.unload_adapter", name="poet")
        await stream.aclose()
        while await system.call("scheduler.list"):
            await asyncio.sleep(0.01)
        await system.call("inference.unload_adapter", name="poet")
        with pytest.raises(NotFound, match="adapter 'poet' is not loaded"):
            await system.call("inference.unload_adapter", name="poet")
        await system.call("inference.load_adapter", ref=str(adapters[0]))
        assert (await answer(system, model="poet"))[1].finish_reason == "length"


async def test_the_same_one_again_is_the_one_that_is_there_and_another_does_not_take_its_name(tiny, adapters):
    async with node(tiny) as system:
        first = await system.call("inference.load_adapter", ref=str(adapters[0]))
        again = await system.call("inference.load_adapter", ref=str(adapters[0]), model="tiny")
        assert again == first
        with pytest.raises(AlreadyExists, match="'poet' is the adapter from .*poet for 'tiny'"):
            await system.call("inference.load_adapter", ref=str(adapters[1]), name="poet")
        with pytest.raises(AlreadyExists, match="'tiny' is the name of a model"):
            await system.call("inference.load_adapter", ref=str(adapters[1]), name="tiny")
        with pytest.raises(Invalid, match="cannot be the name of an adapter"):
            await system.call("inference.load_adapter", ref=str(adapters[1]), name="a b")
        assert await reserved(system) == WHOLE["tiny"] | {"adapter 'poet'"}


async def test_one_that_is_still_to_be_pulled_holds_up_no_other(tiny, adapters, monkeypatch):
    find, pulling, goes_on = StoredModels.find, asyncio.Event(), asyncio.Event()

    async def slowly(self, ref):
        if ref == str(adapters[1]):
            pulling.set()
            await goes_on.wait()
        return await find(self, ref)

    monkeypatch.setattr(StoredModels, "find", slowly)
    async with node(tiny) as system, asyncio.timeout(20):
        slow = [asyncio.create_task(system.call("inference.load_adapter", ref=str(adapters[1]))) for _ in range(2)]
        await pulling.wait()
        await system.call("inference.load_adapter", ref=str(adapters[0]))
        await system.call("inference.unload_adapter", name="poet")
        goes_on.set()
        assert [shown.name for shown in await asyncio.gather(*slow)] == ["clerk", "clerk"]
        assert await reserved(system) == WHOLE["tiny"] | {"adapter 'clerk'"}


async def test_as_many_as_may_be_are_loaded_and_none_of_a_larger_rank(tiny, adapters):
    async with node(tiny, adapters_limit=1) as system:
        await system.call("inference.load_adapter", ref=str(adapters[0]))
        with pytest.raises(Overloaded, match="1 adapters are loaded, and that many may be"):
            await system.call("inference.load_adapter", ref=str(adapters[1]))
    async with node(tiny, adapter_rank=4) as system:
        with pytest.raises(Invalid, match="has the rank 8 for .*, and 1 to 4 are taken"):
            await system.call("inference.load_adapter", ref=str(adapters[0]))


async def test_what_cannot_be_loaded_is_refused_and_leaves_nothing(tiny, adapters, tmp_path, monkeypatch):
    from services.inference.engine.engine import Engine

    broken = write_peft(tmp_path / "broken", {})
    config = broken / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    async with node(tiny) as system:
        for ref, kind, why in (
            (broken, Invalid, "DoRA is not computed here"),
            (tiny, Invalid, "'tiny' is a model, not an adapter"),
            (tmp_path / "none", NotFound, "no model"),
        ):
            with pytest.raises(kind, match=why):
                await system.call("inference.load_adapter", ref=str(ref))
        with pytest.raises(NotFound, match="no model is named 'gpt-9'"):
            await system.call("inference.load_adapter", ref=str(adapters[0]), model="gpt-9")
        with pytest.raises(Invalid, match="'poet' is an adapter"):
            await system.call("inference.load", ref=str(adapters[0]))
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "add_adapter", lambda self, adapter: 1 / 0)
            with pytest.raises(Internal, match="division by zero"):
                await system.call("inference.load_adapter", ref=str(adapters[0]))
        assert await reserved(system) == WHOLE["tiny"]
        assert await names(system) == ["tiny"]
        assert (await answer(system))[1].finish_reason == "length"


async def test_one_from_the_store_is_found_by_name_and_is_no_model_of_its_own(tiny, adapters):
    async with node(tiny) as system:
        async for item in system.stream("models.pull", ref=str(adapters[0])):
            pulled = item.model
        assert (pulled.name, pulled.kind, pulled.format) == ("poet", "adapter", "safetensors")
        assert await names(system) == ["tiny"]
        with pytest.raises(NotFound, match="no model is named 'poet'"):
            await answer(system, model="poet")
        await system.call("inference.load_adapter", ref="poet")
        assert (await answer(system, model="poet"))[1].model == "poet"


async def test_adapters_of_the_settings_come_with_a_default_model_that_has_made_room_already(
    tiny, adapters, monkeypatch
):
    load = module.LoadedAdapters.load

    async def after_a_rest(self, ref, model, name):
        await self._models._rest(self._models.find("tiny"), "makes room")
        return await load(self, ref, model, name)

    monkeypatch.setattr(module.LoadedAdapters, "load", after_a_rest)
    async with asyncio.timeout(20), node(tiny, adapters={"verse": str(adapters[0])}) as system:
        assert (await answer(system, model="verse"))[1].model == "verse"


async def test_adapters_of_the_settings_are_there_from_the_start_and_after_a_restart(tiny, adapters):
    async with node(tiny, adapters={"verse": str(adapters[0])}) as system:
        text, _ = await answer(system, model="verse")
        await system.restart("inference")
        again, last = await answer(system, model="verse")
        assert (again, last.model) == (text, "verse")
        assert await reserved(system) == WHOLE["tiny"] | {"adapter 'verse'"}
    with pytest.raises(NotFound):
        async with node(tiny, adapters={"verse": str(tiny / "nothing")}):
            raise AssertionError("it must not come up")


async def test_a_model_that_made_room_comes_back_with_its_adapter_when_that_is_asked(tiny, adapters, tmp_path):
    inference = Inference()
    services = (Devices, Memory, Models, Scheduler, inference)
    async with TestKernel(*services, settings={"inference": {"model": str(tiny)}}) as system:
        await system.call("inference.load_adapter", ref=str(adapters[0]))
        text, _ = await answer(system, model="poet")
        await inference._models._rest(inference._models.find("tiny"), "makes room")
        states = {model.name: (model.state, model.parent) for model in await system.call("inference.list")}
        assert states == {"tiny": ("stored", ""), "poet": ("stored", "tiny")}
        assert await reserved(system) == set()
        assert (await answer(system, model="poet"))[0] == text
        assert await reserved(system) == WHOLE["tiny"] | {"adapter 'poet'"}


async def test_an_adapter_takes_the_place_of_pages_that_are_not_in_use(tiny, adapters):
    async with node(tiny) as system:
        account, _ = await system.call("memory.usage")
        share = 1.001 * account.reserved_bytes / account.limit_bytes * 0.8
    async with node(tiny, memory={"share": share}) as system:
        await system.call("inference.load_adapter", ref=str(adapters[0]))
        account, _ = await system.call("memory.usage")
        assert account.reserved_bytes <= account.limit_bytes
        assert (await answer(system, model="poet"))[1].finish_reason == "length"


async def test_adapters_go_with_a_model_that_is_unloaded(tiny, adapters, tmp_path):
    other = write_tiny_model(tmp_path / "other", seed=1)
    async with node(tiny) as system:
        await system.call("inference.load", ref=str(other))
        await system.call("inference.load_adapter", ref=str(adapters[0]), model="other")
        stream = system.stream("inference.chat", messages=HELLO, model="poet", max_tokens=400)
        await reading(stream)
        await system.call("inference.unload", name="other")
        with pytest.raises(Unavailable, match="being unloaded"):
            async for _ in stream:
                pass
        assert await names(system) == ["tiny"]
        assert await reserved(system) == WHOLE["tiny"]


async def test_a_model_that_is_unloaded_while_its_adapter_is_read_is_named(tiny, adapters, tmp_path, monkeypatch):
    other, inference = write_tiny_model(tmp_path / "other", seed=1), Inference()
    read = module.open_adapter
    reading, goes_on = threading.Event(), threading.Event()

    def slowly(*arguments, **fields):
        reading.set()
        goes_on.wait(30)
        return read(*arguments, **fields)

    monkeypatch.setattr(module, "open_adapter", slowly)
    async with TestKernel(*SERVICES[:-1], inference, settings={"inference": {"model": str(tiny)}}) as system:
        await system.call("inference.load", ref=str(other))
        loading = asyncio.create_task(system.call("inference.load_adapter", ref=str(adapters[0]), model="other"))
        await asyncio.to_thread(reading.wait, 30)
        await system.call("inference.unload", name="other")
        goes_on.set()
        with pytest.raises(Unavailable, match="model 'other' was unloaded"):
            await loading
        assert await reserved(system) == WHOLE["tiny"]


async def test_openai_clients_see_it_as_a_model_with_a_parent_and_chat_with_it(tiny, adapters):
    async with node(tiny, Gateway) as system:
        await system.call("inference.load_adapter", ref=str(adapters[0]))
        url = (await system.call("gateway.address")).url
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=system.token, max_retries=0) as client:
            listed = (await client.models.list()).data
            assert {model.id: model.parent for model in listed} == {"tiny": None, "poet": "tiny"}
            assert (await client.models.retrieve("poet")).parent == "tiny"
            texts = {}
            for name in ("tiny", "poet"):
                said = await client.chat.completions.create(model=name, messages=HELLO, max_tokens=12, temperature=0)
                assert said.model == name
                texts[name] = said.choices[0].message.content
            assert texts["poet"] != texts["tiny"]
            assert texts["poet"] == (await answer(system, model="poet"))[0]
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="prose", messages=HELLO)
