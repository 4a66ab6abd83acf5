"""Vectors of texts through the kernel, from a tiny encoder on a real compute thread."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from inference_node import SERVICES, answer, node
from tiny_bert import HIDDEN, LONGEST, write_tiny_bert
from tiny_model import write_tiny_model

from microkernel.capability import Rights
from microkernel.errors import CallCancelled, Denied, Invalid, NotFound, Overloaded, Unavailable
from microkernel.testing import TestKernel
from services.inference.encoder.bert import BertEncoder
from services.inference.messages import LONGEST_TEXT, MOST_TEXTS
from services.memory.messages import Pressure, Rung

TEXTS = ["the cat sat on the mat.", "", "dogs?", "a b c a b c", "c"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture
async def system(tiny, bert):
    async with node(tiny, embedding_model=str(bert)) as opened:
        yield opened


class Gate:
    """Holds the device's thread in the first layer of what is computed after `close`."""

    def __init__(self, monkeypatch) -> None:
        self.entered = asyncio.Event()
        self._open = threading.Event()
        loop, encode = asyncio.get_running_loop(), BertEncoder.encode

        def held(encoder, texts):
            loop.call_soon_threadsafe(self.entered.set)
            self._open.wait(60)
            return (yield from encode(encoder, texts))

        monkeypatch.setattr(BertEncoder, "encode", held)

    def open(self) -> None:
        self._open.set()


async def vectors(system, texts, **fields):
    found = await system.call("inference.embed", texts=texts, **fields)
    return np.asarray(found.vectors)


async def reservations(system) -> dict[str, int]:
    """What is reserved of the device, by its purpose."""
    account, _ = await system.call("memory.usage")
    return {each.purpose: each.bytes for each in account.reservations}


async def test_each_text_has_a_vector_in_the_order_asked(system):
    found = await system.call("inference.embed", texts=TEXTS)
    assert (found.model, found.dimensions, found.tokens, found.truncated) == ("tiny-bert", HIDDEN, 27, 0)
    assert (found.vectors.dtype, found.vectors.shape) == ("float32", (len(TEXTS), HIDDEN))
    together = np.asarray(found.vectors)
    for place, text in enumerate(TEXTS):
        assert np.allclose((await vectors(system, [text]))[0], together[place], atol=1e-6)


async def test_many_texts_of_all_lengths_come_back_in_order(system):
    texts = [("a " * (place % 13)) + "cat" for place in range(500)]
    found = await vectors(system, texts)
    for place in range(13):
        assert np.allclose(found[place::13], found[place], atol=1e-5)
    assert len({row.tobytes() for row in found[:13].round(3)}) == 13


async def test_of_a_long_text_the_begin_counts_and_it_is_said(system):
    begin = "a " * (LONGEST - 2)
    found = await system.call("inference.embed", texts=[begin, begin + "dogs on the mat", "a"])
    assert found.truncated == 1
    assert found.tokens == 2 * LONGEST + 3
    rows = np.asarray(found.vectors)
    assert np.array_equal(rows[0], rows[1])


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "texts"),
        ([""] * (MOST_TEXTS + 1), "texts"),
        (["a", "x" * (LONGEST_TEXT + 1)], "texts[1]"),
        ([1], "texts[0]"),
    ],
)
async def test_texts_that_are_too_many_too_long_or_none_are_refused(system, texts, field):
    with pytest.raises(Invalid) as caught:
        await system.call("inference.embed", texts=texts)
    assert caught.value.field == field
    assert "weights of 'tiny-bert'" not in await reservations(system)  # nothing was loaded for it


async def test_all_texts_together_have_a_limit(system):
    with pytest.raises(Invalid, match="allowed are 67108864"):
        await system.call("inference.embed", texts=["x" * LONGEST_TEXT] * 65)


async def test_memory_is_reserved_when_it_is_first_asked_and_given_back_when_it_is_unloaded(system):
    before = await reservations(system)
    await vectors(system, TEXTS)
    taken = await reservations(system)
    assert taken.keys() - before.keys() == {"weights of 'tiny-bert'", "buffers of 'tiny-bert'"}
    [shown] = [model for model in await system.call("inference.list") if model.embeds]
    assert (shown.name, shown.state, shown.context_length) == ("tiny-bert", "ready", LONGEST)
    assert shown.weight_bytes == taken["weights of 'tiny-bert'"] == 4 * shown.parameters
    await system.call("inference.unload", name="tiny-bert")
    assert await reservations(system) == before
    assert [model for model in await system.call("inference.list") if model.embeds] == []
    assert (await vectors(system, TEXTS)).shape == (len(TEXTS), HIDDEN)  # it is loaded again


async def test_what_it_takes_is_told_to_memory(system):
    await vectors(system, TEXTS)

    async def holdings():
        account, _ = await system.call("memory.usage")
        return {holding.name: holding for holding in account.holdings}

    while "tiny-bert" not in await holdings():
        await asyncio.sleep(0.01)
    holding = (await holdings())["tiny-bert"]
    assert holding.resident_bytes == holding.weight_bytes + holding.buffer_bytes
    await system.call("inference.unload", name="tiny-bert")
    while "tiny-bert" in await holdings():
        await asyncio.sleep(0.01)


async def test_many_who_ask_first_load_it_once(system):
    async with system.subscribe("inference.loaded") as loaded:
        await asyncio.gather(*(vectors(system, ["cat"]) for _ in range(9)))
        assert (await anext(loaded)).body.name == "tiny-bert"
        assert list(await reservations(system)).count("weights of 'tiny-bert'") == 1


async def test_without_room_for_it_the_caller_is_told_and_answers_go_on(tiny, bert):
    settings = {"inference": {"model": str(tiny), "embedding_model": str(bert)}}
    async with TestKernel(*SERVICES, settings=settings) as system:
        account, _ = await system.call("memory.usage")
        free = account.limit_bytes - account.reserved_bytes
        device = await system.call("devices.show", name="cpu0")
        taken = await system.call("memory.reserve", purpose="all", bytes=min(free, device.memory_free_bytes) - 1000)
        with pytest.raises(Overloaded):
            await vectors(system, TEXTS)
        assert "weights of 'tiny-bert'" not in await reservations(system)
        await answer(system, max_tokens=2)
        await system.call("memory.release", id=taken.id)
        await vectors(system, TEXTS)


async def test_a_model_that_is_not_there_or_none_of_its_kind_is_named(system, tiny):
    with pytest.raises(NotFound, match="no model is named 'nobody'"):
        await vectors(system, ["cat"], model="nobody")


async def test_a_model_that_writes_makes_no_vectors(tiny):
    async with node(tiny, embedding_model=str(tiny)) as system:
        with pytest.raises(Invalid, match="encoder"):
            await vectors(system, ["cat"])
        await answer(system, max_tokens=2)


async def test_other_dimensions_than_the_models_are_refused(system):
    with pytest.raises(Invalid, match="have 32 dimensions, not 16") as caught:
        await vectors(system, ["cat"], dimensions=16)
    assert caught.value.field == "dimensions"
    assert (await vectors(system, ["cat"], dimensions=HIDDEN)).shape == (1, HIDDEN)


async def test_a_stored_encoder_is_asked_by_its_name(tiny, bert):
    async with node(tiny) as system:
        async with system.stream("models.pull", ref=str(bert), name="mine") as progress:
            async for _ in progress:
                pass
        [shown] = [model for model in await system.call("inference.list") if model.embeds]
        assert (shown.name, shown.state) == ("mine", "stored")
        found = await system.call("inference.embed", texts=["cat"], model="mine")
        assert found.model == "mine"


async def test_it_is_a_process_that_can_be_killed(system, monkeypatch):
    await vectors(system, TEXTS)
    gate = Gate(monkeypatch)
    work = asyncio.create_task(vectors(system, TEXTS))
    await gate.entered.wait()
    [process] = await system.call("scheduler.list")
    assert (process.kind, process.title, process.process_class) == ("embed", "5 texts", "background")
    await system.call("scheduler.kill", pid=process.pid)
    with pytest.raises(CallCancelled, match="killed by its user"):
        await work
    gate.open()
    assert await system.call("scheduler.list") == []
    assert (await vectors(system, TEXTS)).shape == (len(TEXTS), HIDDEN)


async def test_it_rests_while_it_is_paused_and_says_why(system, monkeypatch):
    expected = await vectors(system, TEXTS)
    gate = Gate(monkeypatch)
    work = asyncio.create_task(vectors(system, TEXTS))
    await gate.entered.wait()
    [process] = await system.call("scheduler.list")
    await system.call("scheduler.pause", pid=process.pid)
    gate.open()
    assert "paused" in await system.call("scheduler.why", pid=process.pid)
    [process] = await system.call("scheduler.list")
    assert process.state == "paused"
    assert not work.done()
    await system.call("scheduler.resume", pid=process.pid)
    assert np.array_equal(await work, expected)


async def test_unloading_ends_what_is_computed(system, monkeypatch):
    await vectors(system, TEXTS)
    gate = Gate(monkeypatch)
    work = asyncio.create_task(vectors(system, TEXTS))
    await gate.entered.wait()
    unloading = asyncio.create_task(system.call("inference.unload", name="tiny-bert"))
    await asyncio.sleep(0)
    gate.open()
    await unloading
    with pytest.raises(Unavailable, match="being unloaded"):
        await work


async def test_a_chat_goes_on_between_two_layers_of_much_text(system):
    await vectors(system, TEXTS)
    work = asyncio.create_task(vectors(system, ["a b c cat dogs on the mat"] * 8000))
    _, last = await answer(system, max_tokens=4, temperature=0)
    assert last.usage.completion_tokens == 4
    assert not work.done()  # it came later and ends sooner
    assert (await work).shape == (8000, HIDDEN)


async def test_who_may_not_call_it_is_denied(system):
    port = system.kernel.port.narrow(caller="http ann", rights=Rights(allow=("inference.chat",)), user="ann")
    with pytest.raises(Denied):
        await port.call("inference.embed", texts=["cat"])


async def test_tokens_and_requests_count_against_the_rates_of_their_owner(tiny, bert):
    rates = {"ann": {"tokens": 60.0}, "bob": {"requests": 1.0}}
    async with node(tiny, embedding_model=str(bert), rates=rates) as system:
        await vectors(system, ["a b c a b c"] * 20, owner="ann")
        with pytest.raises(Overloaded, match="'ann' may have 60 tokens"):
            await vectors(system, ["cat"], owner="ann")
        await vectors(system, ["cat"], owner="bob")
        with pytest.raises(Overloaded, match="'bob' may have 1 requests"):
            await vectors(system, ["cat"], owner="bob")


async def test_an_idle_encoder_leaves_where_memory_is_short(system):
    await vectors(system, TEXTS)
    async with system.subscribe("inference.unloaded") as unloaded:
        system.publish("memory.pressure", Pressure(device="cpu0", rung=Rung.MOVE, used=1, limit=1))
        assert (await anext(unloaded)).body["model"] == "tiny-bert"
    await vectors(system, TEXTS)


async def test_a_chat_with_an_encoder_is_refused_and_the_encoder_answers(tiny, bert):
    async with node(tiny) as system:
        async with system.stream("models.pull", ref=str(bert), name="mine") as progress:
            async for _ in progress:
                pass
        with pytest.raises(Invalid):
            await answer(system, model="mine")
        assert (await vectors(system, TEXTS, model="mine")).shape == (len(TEXTS), HIDDEN)


async def test_a_killed_call_before_its_encoder_is_there_leaves_it_to_others(system, monkeypatch):
    first = asyncio.create_task(vectors(system, ["cat"]))
    second = asyncio.create_task(vectors(system, ["cat"]))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).shape == (1, HIDDEN)
    with pytest.raises(asyncio.CancelledError):
        await first
