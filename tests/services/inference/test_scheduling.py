"""Answers as processes: whose turn is next, said and changed while they are made."""

from __future__ import annotations

import asyncio

import pytest
from inference_node import HELLO, answer, node, reading
from tiny_model import write_tiny_model

from microkernel.capability import Rights
from microkernel.errors import Invalid, Overloaded


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


async def process_of(system, title: str):
    """The process whose title that is, once it is there."""
    async with asyncio.timeout(30):
        while True:
            for process in await system.call("scheduler.list"):
                if process.title == title:
                    return process
            await asyncio.sleep(0.005)


def asking(content: str, **fields):
    return {"messages": [{"role": "user", "content": content}], "temperature": 0} | fields


async def test_policies_change_five_times_and_an_answer_rests_ten_times_and_no_text_is_another(tiny):
    wanted = {
        f"question {number}": {
            "max_tokens": 60 + 10 * number,
            "process_class": ["interactive", "batch", "background"][number % 3],
            "nice": number,
        }
        for number in range(6)
    }
    async with node(tiny, slots=2) as system:
        alone = {title: (await answer(system, **asking(title, **fields)))[0] for title, fields in wanted.items()}
        tasks = {
            title: asyncio.create_task(answer(system, **asking(title, **fields))) for title, fields in wanted.items()
        }
        rests = await process_of(system, "question 5")
        for turn in range(10):
            await system.call("scheduler.pause", pid=rests.pid)
            if turn % 2:
                await system.call("scheduler.set_policy", name=["fifo", "fair", "priority", "deadline"][turn // 2 % 4])
            await asyncio.sleep(0.01)
            await system.call("scheduler.resume", pid=rests.pid)
        texts = {title: (await task)[0] for title, task in tasks.items()}
        assert texts == alone


async def test_somebody_who_looks_is_answered_before_background_work_that_came_earlier(tiny):
    async with node(tiny, slots=1) as system:
        slow = system.stream("inference.chat", **asking("slow", max_tokens=400, process_class="background"))
        await reading(slow)
        waiting = asyncio.create_task(
            answer(system, **asking("background", max_tokens=400, process_class="background"))
        )
        await process_of(system, "background")
        _, last = await answer(system, **asking("now", max_tokens=5))
        assert last.usage.completion_tokens == 5
        assert not waiting.done()
        waiting.cancel()
        await asyncio.wait({waiting})
        await slow.aclose()


async def test_why_says_what_an_answer_waits_for(tiny):
    async with node(tiny, slots=1) as system:
        stream = system.stream("inference.chat", **asking("first", max_tokens=2000))
        await reading(stream)
        second = asyncio.create_task(answer(system, **asking("second", max_tokens=4)))
        first, process = await process_of(system, "first"), await process_of(system, "second")
        why = await system.call("scheduler.why", pid=process.pid)
        assert why.startswith(f"process {process.pid} (chat of local) waits for one of 1 places in the batch, ")
        await system.call("scheduler.pause", pid=first.pid)
        assert "is paused, until it is resumed" in await system.call("scheduler.why", pid=first.pid)
        await second
        await stream.aclose()


async def test_an_answer_that_becomes_nicer_lets_its_equals_go_first(tiny):
    async with node(tiny, slots=1) as system:
        stream = system.stream("inference.chat", **asking("first", max_tokens=2000))
        await reading(stream)
        done: list[str] = []

        async def ask(title: str) -> None:
            await answer(system, **asking(title, max_tokens=3))
            done.append(title)

        tasks = [asyncio.create_task(ask("early"))]
        early = await process_of(system, "early")
        tasks.append(asyncio.create_task(ask("late")))
        await process_of(system, "late")
        await system.call("scheduler.nice", pid=early.pid, nice=19)
        await stream.aclose()
        await asyncio.gather(*tasks)
        assert done == ["late", "early"]


async def test_who_would_wait_too_long_is_told_when_to_come_back(tiny):
    async with node(tiny, slots=1, longest_wait=0.001) as system:
        await answer(system, **asking("how long it takes", max_tokens=200))
        stream = system.stream("inference.chat", **asking("first", max_tokens=2000))
        await reading(stream)
        with pytest.raises(Overloaded, match="requests wait for 1 places") as caught:
            await answer(system, **asking("second"))
        assert caught.value.retry_after > 0
        await stream.aclose()


async def test_an_owner_past_its_rate_waits_while_others_are_answered(tiny):
    rates = {"ann": {"requests": 2}, "bob": {"tokens": 30}}
    async with node(tiny, rates=rates) as system:
        ann, bob, cy = (
            system.kernel.port.narrow(caller=f"session {user}", rights=Rights(), user=user)
            for user in ("ann", "bob", "cy")
        )

        async def ask(port):
            return [piece async for piece in port.stream("inference.chat", messages=HELLO, max_tokens=40)]

        await ask(ann)
        await ask(ann)
        await ask(bob)
        for port in (ann, bob):
            with pytest.raises(Overloaded, match="in a minute"):
                await ask(port)
        await ask(cy)


async def test_a_user_is_no_less_nice_than_the_others(tiny):
    async with node(tiny) as system:
        ann = system.kernel.port.narrow(caller="session s1", rights=Rights(), user="ann")
        with pytest.raises(Invalid, match="allowed is 0 to 19"):
            [piece async for piece in ann.stream("inference.chat", messages=HELLO, max_tokens=1, nice=-1)]
        await answer(system, max_tokens=1, nice=-20)
