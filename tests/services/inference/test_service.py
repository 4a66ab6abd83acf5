"""Answers through the kernel, from a real (if tiny and senseless) model on a real compute thread."""

from __future__ import annotations

import asyncio
import threading

import pytest
from inference_node import HELLO, SERVICES, answer, node, reading
from tiny_model import write_tiny_model

from microkernel.errors import (
    CallCancelled,
    DataLoss,
    DeadlineExceeded,
    Internal,
    Invalid,
    NotFound,
    Overloaded,
    Unavailable,
)
from microkernel.testing import TestKernel
from services.devices.service import Devices
from services.inference.loader import Loader
from services.inference.service import Inference
from services.memory.service import Memory
from services.models.service import Models
from services.scheduler.service import Scheduler


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


async def reserved(system) -> dict[int, int]:
    """What is reserved of the device, by the number of each reservation."""
    account, _ = await system.call("memory.usage")
    return {each.id: each.bytes for each in account.reservations}


async def test_a_chat_streams_text_and_ends_with_its_reason_and_usage(tiny):
    async with node(tiny) as system:
        text, last = await answer(system, max_tokens=12, temperature=0)
        assert text
        assert last.finish_reason == "length"
        assert last.usage.completion_tokens == 12
        assert last.usage.prompt_tokens > len("Hello")
        assert 0 <= last.usage.queue_seconds <= last.usage.first_token_seconds <= last.usage.total_seconds
        assert last.model == "tiny"


async def test_the_same_seed_gives_the_same_text_alone_or_among_others(tiny):
    async with node(tiny) as system:
        alone, _ = await answer(system, max_tokens=40, temperature=1.0, seed=7)
        others = [answer(system, max_tokens=n * 7, temperature=1.0, seed=n) for n in range(1, 6)]
        (among, _), *_ = await asyncio.gather(answer(system, max_tokens=40, temperature=1.0, seed=7), *others)
        different, _ = await answer(system, max_tokens=40, temperature=1.0, seed=8)
        assert alone == among
        assert alone != different


async def test_more_requests_than_slots_wait_and_are_all_answered(tiny):
    async with node(tiny, slots=2) as system:
        answers = await asyncio.gather(*(answer(system, max_tokens=5, temperature=0) for _ in range(9)))
        assert len({text for text, _ in answers}) == 1
        assert all(last.usage.completion_tokens == 5 for _, last in answers)


async def test_a_stop_string_ends_the_answer_and_is_not_shown(tiny):
    async with node(tiny) as system:
        text, _ = await answer(system, max_tokens=40, temperature=0)
        stop = text[5:7]
        cut, last = await answer(system, max_tokens=40, temperature=0, stop=[stop])
        assert cut == text[: text.index(stop)]
        assert last.finish_reason == "stop"


async def test_a_completion_goes_on_from_text_or_tokens(tiny):
    async with node(tiny) as system:
        for prompt in ("once upon", [1, 2, 3]):
            pieces = [
                piece async for piece in system.stream("inference.complete", prompt=prompt, max_tokens=4, temperature=0)
            ]
            assert pieces[-1].usage.completion_tokens == 4


@pytest.mark.parametrize("kernels", [True, False])
async def test_pages_of_8_bits_take_less_memory_and_answer_all_the_same(kernels, tiny):
    taken = {}
    for dtype in ("bfloat16", "int8"):
        async with node(tiny, page_dtype=dtype, kernels=kernels) as system:
            [model] = await system.call("inference.list")
            taken[dtype] = model.cache_bytes
            _, last = await answer(system, max_tokens=5, temperature=0)
            assert last.usage.completion_tokens == 5
    assert taken["int8"] < 0.7 * taken["bfloat16"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"temperature": 9.0}, "temperature"),
        ({"top_p": -1.0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "long " * 1000}]}, "prompt"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
    ],
)
async def test_a_request_that_does_not_fit_names_its_field_and_costs_nobody_anything(tiny, fields, field):
    async with node(tiny) as system:
        with pytest.raises(Invalid) as caught:
            await answer(system, **fields)
        if field is not None:
            assert caught.value.field == field
        assert await system.call("scheduler.list") == []


async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_encoded(tiny, monkeypatch):
    from formats.text.tokenizer import Tokenizer
    from services.inference import loaded as module

    async with node(tiny) as system:
        encoded = []
        monkeypatch.setattr(module, "encode_prompt", lambda *given: encoded.append(given))
        monkeypatch.setattr(Tokenizer, "encode", lambda *given, **_: encoded.append(given))
        text = "never " * 200_000
        with pytest.raises(Invalid, match=r"has 12\d{5} characters, and at most \d+ can fit .* tokens") as caught:
            await answer(system, messages=[{"role": "user", "content": text}])
        assert caught.value.field == "messages"
        with pytest.raises(Invalid, match="has 1200000 characters") as caught:
            async for _ in system.stream("inference.complete", prompt=text):
                pass
        assert caught.value.field == "prompt"
        assert encoded == []


async def test_an_unknown_model_is_not_found(tiny):
    async with node(tiny) as system:
        with pytest.raises(NotFound, match="no model is named 'gpt-9'") as caught:
            await answer(system, model="gpt-9")
        assert caught.value.field == "model"


async def test_an_answer_is_a_process_that_can_be_seen_and_killed(tiny):
    async with node(tiny) as system:
        stream = system.stream("inference.chat", messages=HELLO, max_tokens=400)
        piece = await reading(stream)
        [process] = await system.call("scheduler.list")
        assert (process.pid, process.kind, process.title, process.owner) == (piece.pid, "chat", "Hello", "local")
        await system.call("scheduler.kill", pid=piece.pid, why="enough")
        with pytest.raises(CallCancelled, match="enough"):
            async for _ in stream:
                pass
        [ended] = await system.call("scheduler.list", ended=True)
        assert (ended.state, ended.tokens_in > 0, ended.tokens_out > 0) == ("killed", True, True)
        assert await system.call("scheduler.list") == []


async def test_a_reader_that_leaves_frees_the_slot_at_once(tiny):
    async with node(tiny, slots=1) as system:
        stream = system.stream("inference.chat", messages=HELLO, max_tokens=400)
        await reading(stream)
        await stream.aclose()
        text, _ = await asyncio.wait_for(answer(system, max_tokens=3), 30)
        assert text
        states = {process.state for process in await system.call("scheduler.list", ended=True)}
        assert states == {"killed", "done"}


async def test_a_reader_that_does_not_read_stops_the_generation_and_gets_all_of_it_later(tiny):
    async with node(tiny) as system:
        whole, _ = await answer(system, max_tokens=300, temperature=0)
        stream = system.stream("inference.chat", messages=HELLO, max_tokens=300, temperature=0)
        first = await reading(stream)
        while (process := (await system.call("scheduler.list"))[0]).why != "for its reader":
            await asyncio.sleep(0.05)
        assert process.tokens_out < 100
        rest = [piece.text async for piece in stream]
        assert first.text + "".join(rest) == whole


async def test_a_restart_ends_running_answers_with_a_name_and_the_next_one_works(tiny):
    async with node(tiny) as system:
        Inference.drain_timeout, before = 0.05, Inference.drain_timeout
        try:
            streams = [system.stream("inference.chat", messages=HELLO, max_tokens=450) for _ in range(2)]
            for stream in streams:
                await reading(stream)
            await system.restart("inference")
            for stream in streams:
                with pytest.raises(Unavailable, match="being restarted"):
                    async for _ in stream:
                        pass
        finally:
            Inference.drain_timeout = before
        text, _ = await answer(system, max_tokens=3)
        assert text
        account, _ = await system.call("memory.usage")
        assert len(account.reservations) == 3, "the first incarnation's memory is counted no more"


async def test_a_step_that_raises_ends_all_answers_with_the_reason_and_the_model_is_loaded_anew(tiny, monkeypatch):
    from services.inference.engine.engine import Engine

    async with node(tiny) as system:
        stream = system.stream("inference.chat", messages=HELLO, max_tokens=400)
        await reading(stream)
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "step", lambda self: 1 / 0)
            with pytest.raises((Internal, Unavailable), match="ZeroDivisionError|crashed"):
                async for _ in stream:
                    pass
        text, _ = await asyncio.wait_for(answer(system, max_tokens=3), 60)
        assert text


async def test_memory_is_reserved_for_weights_and_cache(tiny):
    async with node(tiny) as system:
        account, _ = await system.call("memory.usage")
        [model] = await system.call("inference.list")
        reserved = {each.purpose: each.bytes for each in account.reservations}
        assert reserved.pop("buffers of 'tiny'") > 0
        assert reserved == {"weights of 'tiny'": model.weight_bytes, "pages of 'tiny'": model.cache_bytes}
        assert (model.name, model.state, model.default) == ("tiny", "ready", True)


async def test_a_model_too_large_for_memory_is_refused_with_the_numbers(tiny):
    services = (Devices, Memory, Models, Scheduler, Inference)
    settings = {"inference": {"model": str(tiny)}, "memory": {"share": 1e-6}}
    with pytest.raises(Overloaded, match=r"model 'tiny' needs .* on cpu0 .*, and .* are free"):
        async with TestKernel(*services, settings=settings):
            raise AssertionError("it must not come up")


async def test_a_damaged_model_ends_the_boot_and_a_missing_one_too(tiny, tmp_path):
    damaged = write_tiny_model(tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    services = (Devices, Memory, Models, Scheduler, Inference)
    for model, kinds in [(damaged, (DataLoss, Invalid)), (tmp_path / "none", (NotFound,))]:
        with pytest.raises(kinds):
            async with TestKernel(*services, settings={"inference": {"model": str(model)}}):
                raise AssertionError("it must not come up")


async def test_a_second_model_is_loaded_when_asked_for_and_unloaded_again(tiny, tmp_path):
    other = write_tiny_model(tmp_path / "other", seed=1)
    async with node(tiny) as system:
        await system.call("inference.load", ref=str(other))
        assert [model.name for model in await system.call("inference.list")] == ["tiny", "other"]
        first, _ = await answer(system, max_tokens=8, temperature=0)
        second, last = await answer(system, max_tokens=8, temperature=0, model="other")
        assert last.model == "other"
        assert first != second
        await system.call("inference.unload", name="other")
        account, _ = await system.call("memory.usage")
        assert len(account.reservations) == 3


async def test_a_model_that_several_unload_at_once_is_unloaded_once_and_does_not_rest(tiny, tmp_path):
    other, inference = write_tiny_model(tmp_path / "other", seed=1), Inference()
    async with TestKernel(*SERVICES[:-1], inference, settings={"inference": {"model": str(tiny)}}) as system:
        await system.call("inference.load", ref=str(other))
        models, leaving = inference._models, inference._models.find("other")
        async with system.subscribe("inference.unloaded") as told:
            unloading = system.call("inference.unload", name="other")
            await asyncio.gather(unloading, models.unload(leaving), models._rest(leaving, "makes room"))
            assert leaving._relief.closed, "who came second has waited for the first"
            assert [each.name for each in await system.call("inference.list")] == ["tiny"]
            await system.call("inference.load", ref=str(other))
            await models._rest(leaving, "makes room")
            assert (await answer(system, model="other", max_tokens=4))[0], "a newer one of its name stays"
            assert told.pending == 1


async def test_an_unloaded_model_gives_its_memory_back_though_who_asked_for_it_has_left(tiny, tmp_path):
    other, inference, goes_on = write_tiny_model(tmp_path / "other", seed=1), Inference(), threading.Event()
    async with TestKernel(*SERVICES[:-1], inference, settings={"inference": {"model": str(tiny)}}) as system:
        before = await reserved(system)
        await system.call("inference.load", ref=str(other))
        busy = asyncio.create_task(inference.executor("cpu0").run(goes_on.wait, 30))
        async with system.subscribe("inference.unloaded") as unloaded:
            with pytest.raises(DeadlineExceeded):
                await system.call("inference.unload", name="other", deadline=0.05)
            assert await reserved(system) != before, "it is still there"
            goes_on.set()
            await anext(unloaded)
        await busy
        assert await reserved(system) == before


async def test_a_model_without_a_template_completes_and_says_why_it_does_not_chat(tmp_path):
    import json

    folder = write_tiny_model(tmp_path / "plain")
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": "{% broken"}))
    async with node(folder) as system:
        with pytest.raises(Invalid, match="model 'plain' cannot chat: the model's chat template, line 1"):
            await answer(system)
        pieces = [piece async for piece in system.stream("inference.complete", prompt="once", max_tokens=2)]
        assert pieces[-1].usage.completion_tokens == 2


async def test_a_long_stop_string_that_may_be_coming_holds_nothing_up(tiny):
    async with node(tiny) as system:
        text, _ = await answer(system, max_tokens=120, temperature=0)
        almost = text[:110] + "\N{SNOWMAN}"  # all of the text may be its beginning, and then it is not
        again, last = await asyncio.wait_for(answer(system, max_tokens=120, temperature=0, stop=[almost]), 30)
        assert again == text
        assert last.finish_reason == "length"


async def test_answers_outlive_a_restart_of_the_scheduler_with_their_pids(tiny):
    async with node(tiny) as system:
        old = system.stream("inference.chat", messages=HELLO, max_tokens=480)
        first = await reading(old)
        await system.restart("scheduler")
        new = system.stream("inference.chat", messages=HELLO, max_tokens=480)
        second = await reading(new)
        assert first.pid != second.pid
        async with asyncio.timeout(10):
            while {process.pid for process in await system.call("scheduler.list")} != {first.pid, second.pid}:
                await asyncio.sleep(0.01)
        await system.call("scheduler.kill", pid=first.pid)
        with pytest.raises(CallCancelled):
            async for _ in old:
                pass
        await new.aclose()
        assert await system.call("scheduler.list") == []


async def test_a_node_without_a_scheduler_answers_all_the_same(tiny):
    services = (Devices, Memory, Models, Inference)
    async with TestKernel(*services, settings={"inference": {"model": str(tiny)}}) as system:
        _, last = await answer(system, max_tokens=3)
        assert (last.finish_reason, last.pid) == ("length", 0)


async def test_a_model_that_makes_no_first_token_leaves_nothing_behind(tiny, tmp_path, monkeypatch):
    other = write_tiny_model(tmp_path / "other", seed=1)
    async with node(tiny) as system:
        tasks = system.kernel.instance("inference").tasks

        async def fail(self, loaded):
            raise DataLoss("no finite numbers")

        monkeypatch.setattr(Loader, "_first_token", fail)
        for _ in range(3):
            with pytest.raises(DataLoss, match="no finite numbers"):
                await system.call("inference.load", ref=str(other))
        assert system.kernel.instance("inference").tasks == tasks
        account, _ = await system.call("memory.usage")
        assert len(account.reservations) == 3


async def test_a_reader_that_takes_nothing_is_cut_when_others_wait_for_its_place(tiny, monkeypatch):
    import services.inference.answers as module

    monkeypatch.setattr(module, "SLOW_READER_WHEN_WANTED", 0.1)
    async with node(tiny, slots=1) as system:
        idle = system.stream("inference.chat", messages=HELLO, max_tokens=450)
        await reading(idle)
        _, last = await asyncio.wait_for(answer(system, max_tokens=3), 30)
        assert last.finish_reason == "length"
        with pytest.raises(Overloaded, match=r"slow reader: \d+ tokens pending for .* others wait"):
            async for _ in idle:
                pass
