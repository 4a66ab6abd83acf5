"""How many answers at once and tokens in a step: set, measured and kept for a model on its device, or a guess."""

from __future__ import annotations

import asyncio

import pytest
from inference_node import SERVICES, answer, node
from tiny_model import write_tiny_model

import services.devices.service as devices
from microkernel.capability import Rights
from microkernel.errors import Denied, MicrokernelError, NotFound, Overloaded, PreconditionFailed, Unavailable
from microkernel.testing import TestKernel
from services.devices import others
from services.devices.messages import Tuning
from services.inference import loaded
from services.inference.engine import trials
from services.inference.engine.trials import Trials
from services.inference.settings import InferenceSettings
from services.inference.sizes import SLOTS, TOKEN_BUDGET, chosen, measured, sizes_of, trials_of


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No other process does anything."""
    monkeypatch.setattr(devices, "others_seconds", lambda: 0.0)
    monkeypatch.setattr(others, "others_seconds", lambda: 0.0)


def settings_of(tiny, **settings):
    return {"inference": {"model": str(tiny), **settings}}


def tuning(**fields) -> Tuning:
    return Tuning(
        device="cpu0",
        subject="a model",
        title="a model",
        machine="this one",
        at=0.0,
        **{"chosen": {"slots": 4, "token_budget": 128}, "measured": {}} | fields,
    )


def test_the_most_answers_that_cost_nothing_and_the_shortest_steps_that_gain_no_less_are_chosen():
    found = Trials(
        decoding={1: 0.010, 2: 0.011, 4: 0.012, 8: 0.0125, 16: 0.0245, 32: 0.080},
        reading={32: 0.04, 64: 0.06, 128: 0.102, 256: 0.200, 512: 0.401},
    )
    assert chosen(found) == {"slots": 16, "token_budget": 16 + 128}, "prompts are read beside sixteen answers, too"


def test_what_is_set_goes_over_what_was_measured_and_that_over_a_guess():
    free, bound = InferenceSettings(), InferenceSettings(slots=7, token_budget=99)
    assert (sizes_of(free, None).slots, sizes_of(free, None).token_budget) == (SLOTS, TOKEN_BUDGET)
    assert (sizes_of(free, tuning()).slots, sizes_of(free, tuning()).token_budget) == (4, 128)
    assert (sizes_of(bound, tuning()).slots, sizes_of(bound, tuning()).token_budget) == (7, 99)


def test_an_engine_is_told_what_steps_took_when_they_were_measured():
    found = Trials(decoding={1: 0.01, 8: 0.02}, reading={64: 0.05})
    kept = tuning(measured=measured(found) | {"something else": 1.0})
    assert trials_of(kept) == found
    assert set(sizes_of(InferenceSettings(), kept).steps) == {(1, 0, 0.01), (8, 0, 0.02), (0, 64, 0.05)}


async def test_a_model_is_tuned_when_asked_and_its_answers_stay_what_they_were(tiny):
    async with node(tiny) as system:
        before, _ = await answer(system, max_tokens=20, temperature=0)
        tuned = await system.call("inference.tune", deadline=None)
        assert (tuned.title, tuned.device) == ("tiny", "cpu0")
        assert tuned.chosen.keys() == {"slots", "token_budget"}
        assert tuned.measured.keys() >= {"decode 1", "read 32"}
        assert (await answer(system, max_tokens=20, temperature=0))[0] == before
        with pytest.raises(NotFound, match="no model is named"):
            await system.call("inference.tune", model="another")


async def test_what_was_chosen_is_used_at_the_next_start_without_measuring(tiny, tmp_path):
    async with TestKernel(*SERVICES, root=tmp_path, settings=settings_of(tiny)) as system:
        tuned = await system.call("inference.tune", deadline=None)
        kept = msgspec_replaced(tuned, slots=2)
        await system.call("devices.keep_tuning", **kept)
    async with TestKernel(*SERVICES, root=tmp_path, settings=settings_of(tiny)) as system:
        told = asyncio.gather(*(answer(system, max_tokens=30, temperature=0) for _ in range(3)))
        sentence = await waiting_for(system)
        assert "one of 2 places in the batch" in sentence
        await told


def msgspec_replaced(tuned: Tuning, **chosen: int) -> dict[str, object]:
    return {
        "device": tuned.device,
        "subject": tuned.subject,
        "title": tuned.title,
        "chosen": tuned.chosen | chosen,
        "measured": tuned.measured,
    }


async def waiting_for(system) -> str:
    """Why the one that waits does."""
    async with asyncio.timeout(30):
        while True:
            for process in await system.call("scheduler.list"):
                sentence = await system.call("scheduler.why", pid=process.pid)
                if "places in the batch" in sentence:
                    return sentence
            await asyncio.sleep(0)


async def test_a_model_that_rests_is_tuned_once_by_itself(tiny, tmp_path):
    settings = settings_of(tiny, tune_after=0.1)
    async with (
        TestKernel(*SERVICES, root=tmp_path, settings=settings) as system,
        system.subscribe("inference.tuned") as tuned,
        asyncio.timeout(60),
    ):
        assert (await anext(tuned)).body.title == "tiny"
    async with (
        TestKernel(*SERVICES, root=tmp_path, settings=settings) as system,
        system.subscribe("inference.tuned") as tuned,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await anext(tuned)


async def test_a_device_at_work_is_not_measured_and_one_model_at_a_time_is(tiny, monkeypatch):
    async with node(tiny) as system:
        stream = system.stream("inference.chat", messages=[{"role": "user", "content": "Hi"}], max_tokens=2000)
        async with stream as pieces:
            await anext(aiter(pieces))
            with pytest.raises(Overloaded, match="cpu0 is at work"):
                await system.call("inference.tune", deadline=None)
        monkeypatch.setattr(trials, "ROUNDS", 10_000)
        first = asyncio.create_task(system.call("inference.tune", deadline=None))
        await asyncio.sleep(0.1)
        with pytest.raises(PreconditionFailed, match="model 'tiny' is being tuned"):
            await system.call("inference.tune", deadline=None)
        first.cancel()
        await asyncio.wait([first])


async def test_who_asks_while_a_model_is_tuned_is_answered_and_the_node_ends_in_time(tiny, monkeypatch):
    monkeypatch.setattr(trials, "ROUNDS", 10_000)
    async with node(tiny) as system:
        alone, _ = await answer(system, max_tokens=20, temperature=0)
        tuning = asyncio.create_task(system.call("inference.tune", deadline=None))
        await asyncio.sleep(0.1)
        assert (await answer(system, max_tokens=20, temperature=0))[0] == alone
        assert not tuning.done()
        await system.restart("inference")
        with pytest.raises(MicrokernelError) as ended:
            await tuning
        assert ended.value.code in {"UNAVAILABLE", "CANCELLED"}, ended.value
        await system.until("inference", "running", "ready")
        assert (await answer(system, max_tokens=20, temperature=0))[0] == alone


async def test_a_trial_that_breaks_costs_no_model(tiny, monkeypatch):
    def breaks(*_: object, **__: object):
        tried.append(1)
        raise RuntimeError("out of memory")
        yield

    tried: list[int] = []
    monkeypatch.setattr(loaded, "measure", breaks)
    async with node(tiny, tune_after=0.1) as system, asyncio.timeout(30):
        while not tried:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.2)  # it is looked after again
        assert len(tried) == 1, "once is enough"
        assert (await answer(system, max_tokens=3))[1].finish_reason == "length"


async def test_a_model_that_was_unloaded_meanwhile_is_tuned_when_it_is_back(tiny, monkeypatch):
    def leaves(*_: object, **__: object):
        tried.append(1)
        if len(tried) == 1:
            raise Unavailable("the model is being unloaded")
        return measure_as_usual(*_, **__)

    tried: list[int] = []
    measure_as_usual = loaded.measure
    monkeypatch.setattr(loaded, "measure", leaves)
    async with (
        node(tiny, tune_after=0.1) as system,
        system.subscribe("inference.tuned") as tuned,
        asyncio.timeout(60),
    ):
        assert (await anext(tuned)).body.title == "tiny"
    assert len(tried) == 2


async def test_who_asks_a_model_while_it_is_tuned_has_asked_it(tiny, monkeypatch):
    monkeypatch.setattr(trials, "ROUNDS", 10_000)
    async with node(tiny) as system:
        model = system.kernel._slots["inference"].instance.service._models.find("tiny")
        tuning = asyncio.create_task(system.call("inference.tune", anyway=True, deadline=None))
        await asyncio.sleep(0.2)
        before = model.asked_at
        await answer(system, max_tokens=2)
        tuning.cancel()
        await asyncio.wait([tuning])
        assert model.asked_at > before
        assert model.idle


async def test_models_by_torch_use_as_many_threads_as_were_chosen(tiny):
    async with node(tiny, kernels=False) as system:
        service = system.kernel._slots["inference"].instance.service
        event = await system.call("devices.tune", name="cpu0", anyway=True, deadline=None)
        chosen = event.chosen["spread"]
        place = service._models.places._places["cpu0"]
        place.computing.spread = 99
        system.publish("devices.tuned", event)
        async with asyncio.timeout(10):
            while place.computing.spread != chosen:
                await asyncio.sleep(0.01)


async def test_only_root_tunes(tiny):
    async with node(tiny) as system:
        ann = system.kernel.port.narrow(caller="session s1", rights=Rights(), user="ann")
        with pytest.raises(Denied):
            await ann.call("inference.tune")


async def test_where_memory_is_short_no_more_is_tried_than_the_model_has(tiny, monkeypatch):
    monkeypatch.setattr(trials, "LESS", 0.0)
    async with node(tiny, slots=4) as system:
        accounts = await system.call("memory.usage")
        (free,) = [each.limit_bytes - each.reserved_bytes for each in accounts if each.tier == "device"]
        loaded = system.kernel._slots["inference"].instance.service._models.find("tiny")
        spared = loaded.trial_bytes(4, 511) + 4096
        await system.call("memory.reserve", purpose="somebody else's", bytes=free - spared, device="cpu0")
        tuned = await system.call("inference.tune", deadline=None)
        assert max(int(name.split()[1]) for name in tuned.measured if name.startswith("decode")) == 4
        accounts = await system.call("memory.usage")
        (left,) = [each.limit_bytes - each.reserved_bytes for each in accounts if each.tier == "device"]
        assert left >= spared, "what was taken for it was given back"


async def test_to_be_tuned_is_not_to_be_asked(tiny):
    async with node(tiny) as system:
        loaded = system.kernel._slots["inference"].instance.service._models.find("tiny")
        asked_at = loaded.asked_at
        await system.call("inference.tune", deadline=None)
        assert loaded.asked_at == asked_at
