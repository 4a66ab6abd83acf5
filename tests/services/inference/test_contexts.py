"""Answers that rest, are kept under a name, and go on: through the kernel, with a tiny model on a real thread."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from inference_node import HELLO, SERVICES, answer, reading
from tiny_model import write_tiny_model

from microkernel.errors import Invalid, NotFound, Overloaded
from microkernel.testing import TestKernel
from services.filesystem.service import Filesystem
from services.scheduler.messages import ProcessState

ASKED = {"messages": HELLO, "max_tokens": 200, "temperature": 1.0, "seed": 11}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@asynccontextmanager
async def node(tiny, **settings):
    services = (*SERVICES, Filesystem)
    async with TestKernel(*services, settings={"inference": {"model": str(tiny), **settings}}) as system:
        yield system


async def rest(stream) -> str:
    return "".join([piece.text async for piece in stream])


async def test_a_paused_answer_says_nothing_and_then_what_it_would_have_said(tiny):
    async with node(tiny) as system:
        whole, _ = await answer(system, **ASKED)
        async with system.stream("inference.chat", **ASKED) as stream:
            first = await reading(stream)
            await system.call("inference.pause", pid=first.pid, swap=True)
            (process,) = await system.call("scheduler.list")
            assert (process.state, process.why) == (ProcessState.PAUSED, "until it is resumed")
            models = await system.call("inference.list")
            assert models[0].running == 0
            await system.call("inference.resume", pid=first.pid)
            assert first.text + await rest(stream) == whole


async def test_a_saved_answer_goes_on_after_a_restart_with_the_same_text(tiny):
    async with node(tiny) as system:
        whole, _ = await answer(system, **ASKED)
        async with system.stream("inference.chat", **ASKED) as stream:
            first = await reading(stream)
            await system.call("inference.pause", pid=first.pid)
            kept = await system.call("inference.save", pid=first.pid, name="story")
        assert kept.bytes > 0
        await system.restart("inference")
        assert await system.call("inference.contexts") == [kept]
        async with system.stream("inference.restore", name="story") as stream:
            assert await rest(stream) == whole
        async with system.stream("inference.restore", name="story", replay=False) as stream:
            later = await rest(stream)
        assert whole.endswith(later)
        assert len(later) < len(whole)
        listed = await system.call("filesystem.list", path="/contexts/local")
        assert [(each.path, each.size) for each in listed] == [("/contexts/local/story.context", kept.bytes)]
        await system.call("inference.forget", name="story")
        with pytest.raises(NotFound):  # and nothing is left of it
            await system.call("filesystem.history", path="/contexts/local/story.context")
        with pytest.raises(NotFound, match="story"):
            await rest(system.stream("inference.restore", name="story"))


async def test_an_answer_goes_on_while_it_is_saved(tiny):
    async with node(tiny) as system:
        whole, _ = await answer(system, **ASKED)
        async with system.stream("inference.chat", **ASKED) as stream:
            first = await reading(stream)
            await system.call("inference.save", pid=first.pid, name="one")
            assert first.text + await rest(stream) == whole


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101, "nul\0", "ü"])
async def test_a_name_that_could_be_a_path_is_refused(tiny, name):
    async with node(tiny) as system, system.stream("inference.chat", **ASKED) as stream:
        first = await reading(stream)
        with pytest.raises(Invalid, match="name"):
            await system.call("inference.save", pid=first.pid, name=name)


async def test_contexts_beyond_the_limit_are_refused_with_the_numbers(tiny):
    async with node(tiny, contexts_bytes=10) as system:
        async with system.stream("inference.chat", **ASKED) as stream:
            first = await reading(stream)
            with pytest.raises(Overloaded, match="10 of the 10 bytes"):
                await system.call("inference.save", pid=first.pid, name="much")
        assert await system.call("inference.contexts") == []


async def test_what_does_not_run_cannot_be_paused_or_saved(tiny):
    async with node(tiny) as system:
        for call, more in (("pause", {}), ("resume", {}), ("save", {"name": "x"})):
            with pytest.raises(NotFound, match="99"):
                await system.call(f"inference.{call}", pid=99, **more)


async def test_several_answers_come_in_one_stream_each_as_it_would_be_alone(tiny):
    async with node(tiny) as system:
        alone = [await answer(system, **(ASKED | {"seed": seed, "max_tokens": 30})) for seed in (11, 12, 13)]
        texts, reasons = ["", "", ""], {}
        async for piece in system.stream("inference.chat", **(ASKED | {"n": 3, "max_tokens": 30})):
            texts[piece.index] += piece.text
            if piece.finish_reason:
                reasons[piece.index] = piece.finish_reason
        assert texts == [text for text, _ in alone]
        assert sorted(reasons) == [0, 1, 2]


@pytest.mark.parametrize("n", [0, -1, 129, 10**12])
async def test_a_number_of_answers_out_of_range_is_refused(tiny, n):
    async with node(tiny) as system:
        with pytest.raises(Invalid, match="n is"):
            await answer(system, n=n)


async def test_killing_one_of_several_answers_ends_the_stream_and_frees_all(tiny):
    async with node(tiny) as system:
        async with system.stream("inference.chat", **(ASKED | {"n": 3})) as stream:
            first = await reading(stream)
            await system.call("scheduler.kill", pid=first.pid)
            with pytest.raises(Exception, match=f"process {first.pid}"):
                await rest(stream)
        for _ in range(100):
            if not await system.call("scheduler.list"):
                break
            await asyncio.sleep(0.01)
        assert await system.call("scheduler.list") == []


@pytest.mark.parametrize("speculation", ["off", "lookup", "draft"])
async def test_whoever_guesses_the_text_is_the_same(tiny, tmp_path, speculation):
    draft = write_tiny_model(tmp_path / "draft")
    (draft / "note.txt").write_text("another digest")
    async with node(tiny, speculation=str(draft) if speculation == "draft" else speculation) as system:
        text, _ = await answer(system, max_tokens=60, temperature=0)
    async with node(tiny, speculation="off") as system:
        assert text == (await answer(system, max_tokens=60, temperature=0))[0]
